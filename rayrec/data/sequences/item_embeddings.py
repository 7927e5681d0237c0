"""Text embeddings of a catalogue on disk, in shards that appear one by one, so that an interrupted job goes on where it was.

<folder>/embeddings.json        encoder, dim, items, items a shard
<folder>/part-00000.parquet     embedding: fixed-size list of float32; row r of shard s is item s * shard + r + 1
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.sequences.interactions import ItemTable
from rayrec.files import whole_file, write_text_atomically
from rayrec.typed_json import ConfigError, from_json, to_json


@dataclass(frozen=True)
class EmbeddingRecord:
    """What ``embeddings.json`` holds. source: hash of the texts. catalogue: fingerprint of the items; None = made before there
    were fingerprints."""

    encoder: str
    dim: int
    items: int
    shard: int
    source: str
    catalogue: str | None = None

    @property
    def shards(self) -> int:
        return -(-self.items // self.shard)


def open_embeddings(folder: Path, record: EmbeddingRecord) -> list[int]:
    """Make the folder, or find it again: the shards that are still to be written.

    Raises ConfigError when it holds embeddings of other texts or by another encoder.
    """
    file = folder / "embeddings.json"
    if file.is_file():
        found = from_json(EmbeddingRecord, file.read_bytes(), str(file))
        if found not in (record, replace(record, catalogue=None)):
            raise ConfigError(f"{folder} holds other embeddings ({found}); choose another folder or remove it")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, to_json(record))
    return [shard for shard in range(record.shards) if not _part(folder, shard).is_file()]


def write_shard(folder: Path, shard: int, embeddings: NDArray[np.float32]) -> None:
    """Embeddings (n, E) of one shard; the file appears whole."""
    flat = pa.array(embeddings.astype(np.float32).ravel())
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])})
    with whole_file(_part(folder, shard)) as partial:
        pq.write_table(table, partial)


def text_hash(texts: pa.Array) -> str:
    """What ``EmbeddingRecord.source`` holds."""
    return hashlib.sha256("\0".join(texts.to_pylist()).encode()).hexdigest()[:16]


def read_embeddings(folder: Path, items: ItemTable) -> tuple[NDArray[np.float32], EmbeddingRecord]:
    """(N, E) of all items. Raises ConfigError when shards are missing or they were made of other items or texts."""
    file = folder / "embeddings.json"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; make it with python -m jobs.embed_items")
    record = from_json(EmbeddingRecord, file.read_bytes(), str(file))
    if record.items != len(items):
        raise ConfigError(f"{folder}: embeddings of {record.items:,} items for a catalogue of {len(items):,}")
    same = (
        record.source == text_hash(items.texts) if record.catalogue is None else record.catalogue == items.fingerprint
    )
    if not same:
        raise ConfigError(
            f"{folder}: embeddings of other items or texts than these, though as many; make them anew with jobs.embed_items"
        )
    missing = [shard for shard in range(record.shards) if not _part(folder, shard).is_file()]
    if missing:
        raise ConfigError(f"{_part(folder, missing[0])} is missing; run python -m jobs.embed_items again to go on")
    parts = [pq.read_table(_part(folder, s)).column("embedding").combine_chunks() for s in range(record.shards)]
    found = np.concatenate([part.flatten().to_numpy() for part in parts]).reshape(-1, record.dim)
    if len(found) != len(items):
        raise ConfigError(f"{folder}: {len(found):,} embeddings, expected {len(items):,}")
    return found, record


def _part(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:05d}.parquet"
