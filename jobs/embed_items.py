"""Embed the items' texts: python -m jobs.embed_items --sequences SEQUENCES --out EMBEDDINGS.

Any encoder (a local folder, a hub id, or the installed MiniLM package), batched through Ray Data; an interrupted job goes on with
the shard it was at.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from jobs.command_line import read
from rayrec.data.sequences import read_sequences
from rayrec.data.sequences.item_embeddings import EmbeddingRecord, open_embeddings, text_hash, write_shard
from rayrec.errors import told
from rayrec.runs.cluster import connect
from rayrec.text.encoder import TextEncoder, TextEncoderConfig
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class EmbedItems:
    """Embed the texts of a catalogue."""

    sequences: Path
    """Folder of jobs.import_sequences."""
    out: Path
    """Folder of the embeddings."""
    encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    """That reads the texts."""
    shard: int = 2048
    """Items a file, the unit of resuming."""
    encoders: int = 1
    """How many load the model side by side, with ``cpus`` CPUs each."""
    cpus: float = 1.0
    """Of an encoder."""


class ShardEncoder:
    """A Ray Data actor: a batch of texts to their embeddings."""

    def __init__(self, config: TextEncoderConfig) -> None:
        self._encode = TextEncoder(config)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"shard": batch["shard"], "row": batch["row"], "embedding": self._encode(batch["text"].tolist()).numpy()}


def run(command: EmbedItems) -> Path:
    """Embed what is not embedded yet; prints progress. Raises ConfigError when the items have no text."""
    started, data = time.perf_counter(), read_sequences(command.sequences)
    if not data.items.has_text:
        raise ConfigError(f"{command.sequences}: its items have no text; jobs.semantic_ids can use their attributes")
    texts = data.items.texts
    encoder = TextEncoder(command.encoder)  # a wrong name is an error here, before anything is started
    record = EmbeddingRecord(
        command.encoder.model, encoder.dim, len(texts), command.shard, text_hash(texts), data.items.fingerprint
    )
    waiting = open_embeddings(command.out, record)
    if waiting:
        connect()
        _embed(command, texts, waiting)
    print(f"{command.out}: {record.items:,} x {record.dim}, {len(waiting)} of {record.shards} shards now, "
          f"{time.perf_counter() - started:.1f} s")  # fmt: skip
    return command.out


def _embed(command: EmbedItems, texts: pa.Array, waiting: list[int]) -> None:
    """Shard by shard in order; a shard is one block, so that it is written as soon as it is done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context.execution_options.preserve_order = True
    blocks = []
    for shard in waiting:
        part = texts.slice(shard * command.shard, command.shard)
        blocks.append(pa.table({"shard": np.full(len(part), shard), "row": np.arange(len(part)), "text": part}))
    dataset = ray.data.from_arrow(blocks).map_batches(
        ShardEncoder,
        fn_constructor_args=(command.encoder,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=command.encoders),
        num_cpus=command.cpus,
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        for shard in np.unique(batch["shard"]):
            own = batch["shard"] == shard
            write_shard(command.out, int(shard), np.stack(batch["embedding"][own])[np.argsort(batch["row"][own])])
            print(f"shard {int(shard) + 1}: {int(own.sum()):,} items", flush=True)


def main() -> None:
    with told():
        run(read(EmbedItems, description=__doc__))


if __name__ == "__main__":
    main()
