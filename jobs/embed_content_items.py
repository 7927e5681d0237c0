"""A content ranker's embeddings of all items: python -m jobs.embed_content_items --model M --content C --tokens T --out OUT.

Through Ray Data, shard by shard: an interrupted job goes on with the shards that are missing. When all are there they are put in
force by one rename, and the services that read OUT take them over without a dropped request. jobs.embed_users does the
same for users.
"""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray

from jobs.command_line import read
from rayrec.data.content import read_content
from rayrec.data.content.batches import ContentInputs
from rayrec.data.content.embeddings import EmbeddingsRecord, What, missing_shards, put_in_force, write_shard
from rayrec.data.content.tokens import read_tokens
from rayrec.errors import told
from rayrec.families.content.bundle import ContentBundle, load_content_ranker
from rayrec.families.content.embedding import ContentEmbedder
from rayrec.families.content.experiment import ContentExperiment
from rayrec.registry import resolve_model
from rayrec.runs.cluster import connect
from rayrec.typed_json import from_plain


@dataclass(frozen=True)
class EmbedContent:
    """Embeddings by a trained model."""

    model: str
    """Models:/NAME@ALIAS, models:/NAME/VERSION, or a bundle folder."""
    content: Path
    """Folder of jobs.import_content."""
    tokens: Path
    """Folder of jobs.tokenize_content, by the model's own tokenizer."""
    out: Path
    """Root of the embeddings of all models and days."""
    shard: int = 1024
    """Rows a file, the unit of resuming."""
    encoders: int = 1
    """How many load the model side by side, with ``cpus`` CPUs each; 0 = this process reads, without Ray."""
    cpus: float = 1.0
    """Of an encoder."""
    token_budget: int = 65_536
    """Of what is read at once."""


@dataclass(frozen=True)
class EmbedContentItems(EmbedContent):
    """Embed the items of a content log."""


class ShardWriter:
    """A Ray Data actor: writes the shards whose numbers it is given."""

    def __init__(self, command: EmbedContent, record: EmbeddingsRecord, interest: str | None) -> None:
        torch.set_num_threads(1)
        self._out, self._record = command.out, record
        bundle = load_content_ranker(command.model)
        self._inputs = inputs_of(command, bundle, interest)
        self._embedder = ContentEmbedder(bundle, command.token_budget)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for shard in batch["shard"].tolist():
            self.write(shard)
        return batch

    def write(self, shard: int) -> None:
        log, tokens = self._inputs.log, self._inputs.tokens
        first = shard * self._record.shard
        rows = range(first, min(first + self._record.shard, self._record.rows))
        if self._record.what == "items":
            ids = [tokens.items[row].tolist() for row in rows]
            embeddings = self._embedder.items(ids)
            columns = {"name": log.items.names.slice(first, len(rows)), "tokens": pa.array(ids, pa.list_(pa.int32()))}
        else:
            interest = self._inputs.interest
            ids, texts = [[]] * len(rows), [""] * len(rows)
            if interest is not None:
                read = [int(row) for row in log.current_text_rows(interest)[rows.start : rows.stop]]
                ids = [tokens.user_texts[interest][row].tolist() if row >= 0 else [] for row in read]
                texts = [log.user_texts[interest].texts[row].as_py() if row >= 0 else "" for row in read]
            histories = [log.histories[log.current[u]].tolist() if log.current[u] >= 0 else [] for u in rows]
            embeddings, summaries = self._embedder.users(
                [[tokens.items[item - 1].tolist() for item in history] for history in histories],
                ids,
            )
            columns = {
                "name": log.users.slice(first, len(rows)),
                "interest": pa.array(texts, pa.string()),
                "summary": pa.array(summaries, pa.string()),
            }
        write_shard(self._record.folder(self._out), shard, embeddings, pa.table(columns))


def inputs_of(command: EmbedContent, bundle: ContentBundle, interest: str | None) -> ContentInputs:
    """Raises ConfigError for tokens that the model cannot read."""
    log = read_content(command.content)
    inputs = ContentInputs(log, read_tokens(command.tokens, log), bundle.saved.ranker.max_history, interest)
    bundle.refuse_other_inputs(inputs, command.tokens)
    return inputs


def embed(command: EmbedContent, what: What, interest: str | None = None) -> EmbeddingsRecord:
    """Write what is missing and put it in force; prints progress. Everything is checked before Ray is started."""
    started, folder = time.perf_counter(), Path(resolve_model(command.model).path).resolve()
    bundle = load_content_ranker(folder)
    inputs = inputs_of(command, bundle, interest)
    record = ContentEmbedder(bundle).record(what, inputs, bundle.weights, command.shard)
    absolute = replace(
        command, model=str(folder), content=command.content.resolve(), tokens=command.tokens.resolve(),
        out=command.out.resolve(),
    )  # fmt: skip
    waiting = missing_shards(absolute.out, record)
    if waiting and not command.encoders:
        writer = ShardWriter(absolute, record, interest)
        for shard in waiting:
            writer.write(shard)
    elif waiting:
        connect()
        _through_ray(absolute, record, interest, waiting)
    put_in_force(absolute.out, record)
    print(f"{record.folder(command.out)}: {record.rows:,} {what}, {record.codes} x {record.dim} each, "
          f"{len(waiting)} of {record.shards} shards now, {time.perf_counter() - started:.1f} s")  # fmt: skip
    return record


def _through_ray(command: EmbedContent, record: EmbeddingsRecord, interest: str | None, waiting: list[int]) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    dataset = ray.data.from_arrow([pa.table({"shard": [shard]}) for shard in waiting]).map_batches(
        ShardWriter,
        fn_constructor_args=(command, record, interest),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=command.encoders),
        num_cpus=command.cpus,
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        for shard in batch["shard"].tolist():
            print(f"shard {shard + 1} of {record.shards}", flush=True)


def run(command: EmbedContentItems) -> EmbeddingsRecord:
    return embed(command, "items")


def trained_interest(bundle: ContentBundle) -> str | None:
    """The version of user texts that a model was trained to read."""
    return from_plain(ContentExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config").interest


def main() -> None:
    with told():
        run(read(EmbedContentItems, description=__doc__))


if __name__ == "__main__":
    main()
