"""Mender's five axes: python -m jobs.build_preference_benchmark --sequences S --preferences P --out BENCHMARK.

1 recommendation, 2 sentiment following, 3 fine-grained and 4 coarse-grained steering, 5 history consolidation; each with pools
for training, validation and test, on the leave-one-out split. Deterministic; BENCHMARK/card.md says what is in it. Any retriever
is judged on it by jobs.evaluate MODEL --benchmark BENCHMARK.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch.nn.functional import normalize

from jobs.command_line import read
from rayrec.data.preferences.benchmark import BENCHMARK_FILE, Benchmark, BenchmarkCard, count, write_benchmark
from rayrec.data.preferences.pools import (
    AXES,
    SPLITS,
    Axis,
    Floats,
    Pool,
    PreferenceTexts,
    Split,
    TextTable,
    consolidation,
    recommendation,
    split_examples,
    steering,
    usable_options,
)
from rayrec.data.preferences.sentiment import (
    NegativeReviews,
    ReviewColumns,
    read_negative_reviews,
    review_pools,
    stand_in_pools,
)
from rayrec.data.preferences.table import Preferences, read_preferences
from rayrec.data.sequences import SequenceData, leave_one_out, read_sequences
from rayrec.errors import told
from rayrec.files import check_replaceable
from rayrec.text.encoder import TextEncoder, TextEncoderConfig
from rayrec.text.extractive import Phrases
from rayrec.text.preferences import Names
from rayrec.typed_json import ConfigError

Encode = Callable[[Sequence[str]], Floats]
_STEERING: tuple[tuple[Axis, bool], ...] = (("fine", True), ("coarse", False))


@dataclass(frozen=True)
class BuildBenchmark:
    """Build the benchmark."""

    sequences: Path
    """Folder of jobs.import_sequences."""
    preferences: Path
    """Of jobs.generate_preferences or jobs.import_preferences."""
    out: Path
    """Folder of the benchmark."""
    reviews: Path | None = None
    """A table with ratings or sentiments, for axis 2; None = the extractive stand-in."""
    review_columns: ReviewColumns = field(default_factory=ReviewColumns)
    """Names of the columns of ``reviews``."""
    match: Literal["title", "text"] = "title"
    """Preferences are matched to the items' title, or to their whole text (title and summary)."""
    encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    """That embeds preferences and titles."""
    things: str = "products"
    """What the items are, for the stand-in's phrases."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, not {self.seed}")


def run(command: BuildBenchmark) -> Benchmark:
    """Build, write and print the card's counts."""
    check_replaceable(command.out, BENCHMARK_FILE)
    data = read_sequences(command.sequences)
    preferences = read_preferences(command.preferences, data)
    described = data.items.titles if command.match == "title" else data.items.texts
    shown = described.to_pylist()
    if not all(shown):
        raise ConfigError(
            f"{command.sequences}: item {shown.index('') + 1} has no {command.match}; import the data again, or match by "
            f"{'text' if command.match == 'title' else 'title'}"
        )
    encoder = TextEncoder(command.encoder)

    def encode(texts: Sequence[str]) -> Floats:
        found: Floats = (
            normalize(encoder(list(texts)), dim=1).numpy() if texts else np.zeros((0, encoder.dim), np.float32)
        )
        return found

    benchmark = build(data, preferences, command, encode, encoder.dim)
    folder = write_benchmark(command.out, benchmark, [title or name for title, name in zip(
        data.items.titles.to_pylist(), data.items.names.to_pylist(), strict=True)])  # fmt: skip
    print(f"{'axis':<16}" + "".join(f"{split:>10}" for split in SPLITS))
    for axis in AXES:
        print(f"{axis:<16}" + "".join(f"{len(benchmark.pools[axis, split]):>10,}" for split in SPLITS))
    print(f"{folder}: {len(benchmark.texts):,} texts; see {folder / 'card.md'}")
    return benchmark


def build(data: SequenceData, preferences: Preferences, command: BuildBenchmark, encode: Encode, dim: int) -> Benchmark:
    """All pools of a data set. ``encode``: texts to unit vectors (n, dim). Says how many reviews are used."""
    reviews = None if command.reviews is None else _reviews(command.reviews, command.review_columns, data)
    interactions, split = data.interactions, leave_one_out(data.interactions)
    described = data.items.titles if command.match == "title" else data.items.texts
    items = np.concatenate([np.zeros((1, dim), np.float32), encode(described.to_pylist())])
    table = TextTable()
    texts = PreferenceTexts.of(preferences, table)
    vectors = encode(table.texts)  # sentiment adds texts behind these, which are not matched to items
    pools: dict[tuple[Axis, Split], Pool] = {}
    without: dict[str, int] = {}
    for name, examples in split_examples(interactions, split).items():
        matched = recommendation(interactions, examples, preferences, texts, vectors, items)
        without[name] = len(examples) - len(matched)
        pools["recommendation", name] = matched
        pools["consolidation", name] = consolidation(interactions, examples, preferences, texts)
        options, place = usable_options(preferences, texts, examples), 0 if name == "train" else 1
        for axis, similar in _STEERING:
            pools[axis, name] = steering(
                interactions, examples, options, vectors, items, similar=similar, place=place, seed=command.seed
            )
    if reviews is None:
        labels = data.items.labels.to_pylist()
        phrases = Phrases(labels, Names(titles=data.items.titles.to_pylist()), command.things)
        sentiment = stand_in_pools([phrases.of(i) for i in range(1, len(labels) + 1)], table, command.seed)
    else:
        sentiment = review_pools(data, split, reviews, preferences, table, encode)
    for name, pool in sentiment.items():
        pools["sentiment", name] = pool
    ordered = {(axis, name): pools[axis, name] for axis in AXES for name in SPLITS}
    all_vectors = np.concatenate([vectors, encode(table.texts[len(vectors) :])])
    record = preferences.record
    card = BenchmarkCard(
        data.source, interactions.num_users, interactions.num_items, record.origin, record.maker,
        "stand-in" if reviews is None else "reviews", command.match, command.encoder.model, dim, command.seed,
        count(ordered), without,
    )  # fmt: skip
    return Benchmark(card, tuple(table.texts), all_vectors, ordered)


def _reviews(file: Path, columns: ReviewColumns, data: SequenceData) -> NegativeReviews:
    found = read_negative_reviews(file, columns, data)
    if not len(found.users):
        raise ConfigError(
            f"{file}: none of {found.outside:,} negative reviews is of an item in its user's history; without --reviews axis 2 "
            "is the stand-in"
        )
    print(
        f"{file}: {len(found.users):,} negative reviews; {found.outside:,} more are of no item in their user's history"
    )
    return found


def main() -> None:
    with told():
        run(read(BuildBenchmark, description=__doc__))


if __name__ == "__main__":
    main()
