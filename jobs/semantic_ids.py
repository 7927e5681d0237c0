"""Semantic IDs of a catalogue: python -m jobs.semantic_ids --sequences SEQUENCES --embeddings EMBEDDINGS --out IDS.

Residual k-means by default (seconds), or an RQ-VAE. Without embeddings the items' attributes are embedded instead, or, with
``--source cooccurrence``, which items follow each other in training histories. The tokenizer is fitted to the items that occur in
training; cold ones are encoded like new ones. OUT/report shows usage, collisions, reconstruction, and items that share prefixes.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from jobs.command_line import read
from rayrec.data.sequences import SequenceData, SequenceSplit, read_sequences
from rayrec.data.sequences.item_embeddings import read_embeddings
from rayrec.errors import told
from rayrec.families.retriever.semantic_id_files import SEMANTIC_IDS_FILE, write_semantic_ids
from rayrec.families.retriever.split_config import SplitConfig
from rayrec.files import check_replaceable
from rayrec.reporting import Section, Table, write_page
from rayrec.retrieval.attribute_embeddings import attribute_embeddings
from rayrec.retrieval.cooccurrence_embeddings import cooccurrence_embeddings
from rayrec.retrieval.semantic_ids import SemanticIds, weaknesses
from rayrec.retrieval.semantic_tokenizer import TokenizedItems, TokenizerConfig, fit_tokenizer, recommended_tokenizer
from rayrec.typed_json import ConfigError

ATTRIBUTES = "attributes"
COOCCURRENCE = "cooccurrence"


@dataclass(frozen=True)
class MakeSemanticIds:
    """Quantize item embeddings."""

    sequences: Path
    """Folder of jobs.import_sequences."""
    out: Path
    """Folder of the IDs."""
    embeddings: Path | None = None
    """Folder of jobs.embed_items."""
    source: Literal["attributes", "cooccurrence"] | None = None
    """What IDs are made from; None = the embeddings when given, else the items' attributes."""
    dim: int = 128
    """Of the vectors that attributes or co-occurrence are turned into."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Whose training part decides which items are cold, and what co-occurs."""
    tokenizer: Annotated[TokenizerConfig, tyro.conf.arg(name="")] = field(default_factory=recommended_tokenizer)
    """How vectors become codes."""

    def __post_init__(self) -> None:
        if self.embeddings is not None and self.source is not None:
            raise ConfigError(f"give --embeddings or --source {self.source}, not both")


def run(command: MakeSemanticIds) -> TokenizedItems:
    """Fit, write and print the report."""
    started = time.perf_counter()
    check_replaceable(command.out, SEMANTIC_IDS_FILE)
    data = read_sequences(command.sequences)
    split = command.split.split(data)
    raw, encoder = item_embeddings(data, split, command)
    items = fit_tokenizer(raw, command.tokenizer, _say, seen=torch.from_numpy(split.seen[1:]))
    folder = write_semantic_ids(command.out, items, encoder, data.items.fingerprint, command.split)
    write_page(folder / "report", f"Semantic IDs: {data.source or command.sequences.name}", sections(items, data))
    found = items.report
    print(f"{'level':<8}{'reconstruction error':>22}{'codes used':>12}{'perplexity':>12}")
    for level, row in enumerate(zip(found.reconstruction_error, found.usage, found.perplexity, strict=True), 1):
        print(f"{level:<8}{row[0]:>22.4f}{row[1]:>12.3f}{row[2]:>12.1f}")
    print(f"items that share their codes: {found.collision_rate:.4f}; largest collision: {found.largest_collision}")
    for weakness in weaknesses(found, items.ids.level_sizes, items.ids.num_items):
        print(f"warning: {weakness}")
    if found.collision_rate > 0.5 and encoder != COOCCURRENCE:
        print("warning: consider embeddings of the items' texts, or --source cooccurrence")
    print(
        f"{folder}: {items.ids.num_items:,} items of {items.ids.level_sizes} codes, {time.perf_counter() - started:.1f} s"
    )
    return items


def item_embeddings(data: SequenceData, split: SequenceSplit, command: MakeSemanticIds) -> tuple[torch.Tensor, str]:
    """Raw embeddings (N, E) and what made them. Raises ConfigError when there is neither text nor an attribute."""
    if command.embeddings is not None:
        found, record = read_embeddings(command.embeddings, data.items)
        return torch.from_numpy(found), record.encoder
    if command.source == COOCCURRENCE:
        events = data.interactions
        train = split.in_training(events)
        users = np.repeat(np.arange(events.num_users), events.lengths)
        return cooccurrence_embeddings(events.items[train], users[train], events.num_items, command.dim), COOCCURRENCE
    attributes = data.items.attributes.to_pylist()
    if not any(attributes):
        raise ConfigError(
            f"{command.sequences}: its items have no attributes; give embeddings of jobs.embed_items, or --source {COOCCURRENCE}"
        )
    return attribute_embeddings(attributes, command.dim), ATTRIBUTES


def sections(items: TokenizedItems, data: SequenceData) -> tuple[Section, ...]:
    """What the IDs are worth, and items that share prefixes."""
    found = items.report
    rows = tuple(
        (str(level), f"{error:.4f}", f"{usage:.3f}", f"{perplexity:.1f}")
        for level, (error, usage, perplexity) in enumerate(
            zip(found.reconstruction_error, found.usage, found.perplexity, strict=True), 1
        )
    )
    text = (
        f"{found.collision_rate:.2%} of the items share their codes with another one; the largest collision has "
        f"{found.largest_collision} items. Reconstruction error is the mean squared error over the variance."
    )
    table = Table(("level", "reconstruction error", "share of codes used", "perplexity"), rows)
    return (Section("Codebooks", text, table=table), *(_shared(items.ids, data, depth) for depth in (1, 2)))


def _shared(ids: SemanticIds, data: SequenceData, depth: int, groups: int = 5, members: int = 4) -> Section:
    """Some of the largest groups of items with the same first ``depth`` codes."""
    prefixes, inverse, counts = ids.codes[:, :depth].unique(dim=0, return_inverse=True, return_counts=True)
    rows = []
    for group in counts.argsort(descending=True, stable=True)[:groups].tolist():
        for row in (inverse == group).nonzero().squeeze(1)[:members].tolist():
            name = data.items.texts[row].as_py() or data.items.names[row].as_py()
            rows.append(("-".join(map(str, prefixes[group].tolist())), str(int(counts[group])), name[:120]))
    return Section(f"Items that share {depth} code{'s' if depth > 1 else ''}",
                   table=Table(("prefix", "items", "some of them"), tuple(rows)))  # fmt: skip


def _say(epoch: int, train: float, held_out: float) -> None:
    if epoch % 100 == 0:
        print(f"epoch {epoch:,}: training loss {train:.4f}, held-out reconstruction {held_out:.4f}", flush=True)


def main() -> None:
    with told():
        run(read(MakeSemanticIds, description=__doc__))


if __name__ == "__main__":
    main()
