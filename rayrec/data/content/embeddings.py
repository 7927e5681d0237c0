"""Embeddings of a content ranker's items or users on disk, in shards that appear one by one; a service maps them into memory.

<root>/<model>/items.json, users.json      which folder is in force: the record of its embeddings
<root>/<model>/<what>-<source>-<shard>/    embeddings of one state of the data, in shards of that many rows
    part-00000.safetensors                 embeddings float32 (n, codes, dim); row r of shard s is row s * shard + r
    part-00000.arrow                       name; of items: tokens list<int32>; of users: interest, summary ("" for none)

<model>: the first 16 digits of the weights' SHA-256. New data come into a new folder, which is put in force when it is whole, by
one rename: whoever reads the old one goes on with it.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayrec.files import whole_file, write_text_atomically
from rayrec.typed_json import ConfigError, from_json, to_json

What = Literal["items", "users"]


@dataclass(frozen=True)
class EmbeddingsRecord:
    """model: 16 digits of the weights' hash. source: fingerprint of all that was read, and of the choices that matter.

    rows, codes, dim: shape of all embeddings. shard: rows a file, the unit of resuming.
    """

    what: What
    model: str
    source: str
    rows: int
    codes: int
    dim: int
    shard: int

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard)

    def folder(self, root: Path) -> Path:
        return root / self.model / f"{self.what}-{self.source}-{self.shard}"


def missing_shards(root: Path, record: EmbeddingsRecord) -> list[int]:
    """Those that are still to be written."""
    folder = record.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    return [shard for shard in range(record.shards) if not _tensors(folder, shard).is_file()]


def write_shard(folder: Path, shard: int, embeddings: Tensor, columns: pa.Table) -> None:
    """Embeddings (n, codes, dim) of one shard and what else is told of its rows; the embeddings appear last, whole.

    Raises ConfigError for values that are not finite.
    """
    if not embeddings.isfinite().all():
        raise ConfigError(f"{folder}: embeddings of shard {shard} that are not finite; the model's training diverged")
    folder.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(_columns(folder, shard)) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, columns.schema) as writer,
    ):
        writer.write_table(columns)
    with whole_file(_tensors(folder, shard)) as partial:
        save_file({"embeddings": embeddings.float().contiguous()}, partial)


def put_in_force(root: Path, record: EmbeddingsRecord) -> None:
    """From now on readers find these; all but the ones before them are removed. Raises ConfigError when a shard is missing."""
    missing = missing_shards(root, record)
    if missing:
        raise ConfigError(f"{record.folder(root)}: {len(missing)} of {record.shards} shards are not written yet")
    pointer = pointer_to(root, record.model, record.what)
    before = from_json(EmbeddingsRecord, pointer.read_bytes(), str(pointer)) if pointer.is_file() else record
    write_text_atomically(pointer, to_json(record))
    kept = {record.folder(root), before.folder(root)}
    for old in pointer.parent.glob(f"{record.what}-*"):
        if old.is_dir() and old not in kept:
            shutil.rmtree(old, ignore_errors=True)


def pointer_to(root: Path, model: str, what: What) -> Path:
    return root / model / f"{what}.json"


class StoredEmbeddings:
    """The embeddings in force of a model, mapped into memory: what is not looked at is not read.

    Raises ConfigError that names the file that is missing or does not fit.
    """

    def __init__(self, root: Path, model: str, what: What) -> None:
        pointer = pointer_to(root, model, what)
        if not pointer.is_file():
            job = "embed_users" if what == "users" else "embed_content_items"
            raise ConfigError(f"{pointer}: no such file; make the embeddings of this model with python -m jobs.{job}")
        self.record = from_json(EmbeddingsRecord, pointer.read_bytes(), str(pointer))
        self.pointer, folder = pointer, self.record.folder(root)
        if (self.record.model, self.record.what) != (model, what):
            raise ConfigError(f"{pointer}: {self.record.what} of model {self.record.model}")
        self._parts: list[Tensor] = []
        tables = []
        for shard in range(self.record.shards):
            part, columns = _tensors(folder, shard), _columns(folder, shard)
            rows = min(self.record.shard, self.record.rows - shard * self.record.shard)
            try:
                found = load_file(part)["embeddings"]
                tables.append(pa.ipc.open_file(pa.memory_map(str(columns))).read_all())
            except (OSError, KeyError, SafetensorError, pa.ArrowInvalid) as error:
                raise ConfigError(f"{part}: {str(error).splitlines()[0]}") from None
            shape = (rows, self.record.codes, self.record.dim)
            if tuple(found.shape) != shape or found.dtype != torch.float32 or len(tables[-1]) != rows:
                raise ConfigError(
                    f"{part}: {found.dtype} {tuple(found.shape)} beside {len(tables[-1])} rows of {columns.name}; "
                    f"expected {shape} of float32"
                )
            self._parts.append(found)
        self.columns: pa.Table = pa.concat_tables(tables) if tables else pa.table({"name": pa.array([], pa.string())})

    def __len__(self) -> int:
        return self.record.rows

    @cached_property
    def names(self) -> Sequence[str]:
        found: list[str] = self.columns["name"].to_pylist()
        return found

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Row by name."""
        return {name: row for row, name in enumerate(self.names)}

    def rows(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, codes, dim) of rows (B,)."""
        found = torch.empty(len(rows), self.record.codes, self.record.dim)
        shards, places = np.divmod(rows, self.record.shard)
        for shard in np.unique(shards):
            own = shards == shard
            found[torch.from_numpy(own)] = self._parts[shard][torch.from_numpy(places[own])]
        return found

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """First row and embeddings (n, codes, dim) of each shard."""
        for shard, part in enumerate(self._parts):
            yield shard * self.record.shard, part

    def column(self, name: str, row: int) -> str:
        """Of one row; "" where there is no such column."""
        return str(self.columns[name][row].as_py()) if name in self.columns.column_names else ""

    def tokens(self, row: int) -> list[int]:
        """An item's ids."""
        found: list[int] = self.columns["tokens"][row].as_py()
        return found


def _tensors(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:05d}.safetensors"


def _columns(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:05d}.arrow"
