"""The five-axis benchmark on disk: pools, texts with their embeddings, and a card.

<folder>/benchmark.json   the card as data: sources, encoder, counts, what is extractive and what a language model wrote
<folder>/card.md          the same for readers, with examples
<folder>/texts.parquet    text, embedding (fixed-size list of float32, unit length); row i is text i of the pools
<folder>/pools.parquet    axis, split, user, position, target, preference, negative (-1 = none)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.preferences.pools import AXES, SPLITS, Axis, Floats, Pool, Split
from rayrec.data.sequences.interactions import Interactions
from rayrec.files import whole_folder, write_text_atomically
from rayrec.typed_json import ConfigError, from_json, to_json

BENCHMARK_FILE = "benchmark.json"
_COLUMNS = ("users", "positions", "targets", "preferences", "negatives")
_NAMES = ("user", "position", "target", "preference", "negative")


@dataclass(frozen=True)
class Count:
    """rows: of the pool. unseen: of them with a preference that no row of axis 1's training pool has."""

    axis: Axis
    split: Split
    rows: int
    unseen: int


@dataclass(frozen=True)
class BenchmarkCard:
    """users, items: of the sequences, which pools refer to by row. origin: "llm", "extractive" or "table", of the preferences.

    sentiment: where axis 2 comes from ("reviews" or "stand-in", which is extractive). matched_by: "title" or "text" of items.
    without: targets of axis 1 left out by split, since no preference was made before them.
    """

    source: str
    users: int
    items: int
    origin: str
    maker: str
    sentiment: str
    matched_by: str
    encoder: str
    dim: int
    seed: int
    counts: tuple[Count, ...]
    without: dict[str, int]
    format: int = 1


@dataclass(frozen=True)
class Benchmark:
    """texts: T. vectors: (T, E) float32 of length 1. pools: by axis and split; those without a row are there too."""

    card: BenchmarkCard
    texts: tuple[str, ...]
    vectors: Floats
    pools: Mapping[tuple[Axis, Split], Pool]


def count(pools: Mapping[tuple[Axis, Split], Pool]) -> tuple[Count, ...]:
    known = np.unique(pools["recommendation", "train"].preferences)
    return tuple(
        Count(axis, split, len(pool), int((~np.isin(pool.preferences, known)).sum()))
        for (axis, split), pool in pools.items()
    )


def write_benchmark(folder: Path, benchmark: Benchmark, item_names: list[str]) -> Path:
    """Write, whole or not at all, replacing an earlier benchmark. item_names: (N,), for the card's examples.

    Raises UserError for a folder of anything else.
    """
    with whole_folder(folder, BENCHMARK_FILE) as partial:
        flat = pa.array(np.ascontiguousarray(benchmark.vectors, np.float32).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, benchmark.card.dim)
        pq.write_table(pa.table({"text": list(benchmark.texts), "embedding": vectors}), partial / "texts.parquet")
        parts = []
        for (axis, split), pool in benchmark.pools.items():
            columns = {
                name: pa.array(getattr(pool, own), pa.int32()) for name, own in zip(_NAMES, _COLUMNS, strict=True)
            }
            kinds = {
                "axis": pa.array([axis] * len(pool), pa.string()),
                "split": pa.array([split] * len(pool), pa.string()),
            }
            parts.append(pa.table(kinds | columns))
        pq.write_table(pa.concat_tables(parts), partial / "pools.parquet", compression="zstd")
        write_text_atomically(partial / BENCHMARK_FILE, to_json(benchmark.card))
        write_text_atomically(partial / "card.md", _card(benchmark, item_names))
    return folder


def read_benchmark(folder: Path, interactions: Interactions) -> Benchmark:
    """Raises ConfigError that names the file and what is wrong, also when it is of other sequences than ``interactions``."""
    num_users, num_items = interactions.num_users, interactions.num_items
    for name in (BENCHMARK_FILE, "texts.parquet", "pools.parquet"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name}: no such file; make it with python -m jobs.build_preference_benchmark")
    card = from_json(BenchmarkCard, (folder / BENCHMARK_FILE).read_bytes(), str(folder / BENCHMARK_FILE))
    if (card.users, card.items) != (num_users, num_items):
        raise ConfigError(
            f"{folder}: a benchmark of {card.users:,} users and {card.items:,} items; the sequences have {num_users:,} users "
            f"and {num_items:,} items"
        )
    try:
        texts = pq.read_table(folder / "texts.parquet", columns=["text", "embedding"])
        pools = pq.read_table(folder / "pools.parquet", columns=["axis", "split", *_NAMES])
        vectors = texts.column("embedding").combine_chunks().flatten().to_numpy().reshape(-1, card.dim)
    except (pa.ArrowInvalid, pa.ArrowKeyError, ValueError) as error:
        raise ConfigError(f"{folder}: {error}") from None
    columns = [pools.column(name).to_numpy().astype(np.int64) for name in _NAMES]
    for name, column, most in zip(
        _NAMES, columns, (num_users, None, num_items + 1, len(vectors), len(vectors)), strict=True
    ):
        if most is not None and len(column) and (column.max() >= most or column.min() < -(name == "negative")):
            raise ConfigError(
                f"{folder / 'pools.parquet'}: column {name!r} holds {column.max()}, expected less than {most}"
            )
    axes, splits = (np.array(pools.column(name).to_pylist()) for name in ("axis", "split"))
    found = {}
    for axis in AXES:
        for split in SPLITS:
            rows = np.flatnonzero((axes == axis) & (splits == split))
            found[axis, split] = Pool(*(column[rows] for column in columns))
            if axis != "sentiment":  # whose rows are of nobody's history
                _check_histories(folder, axis, found[axis, split], interactions)
    return Benchmark(card, tuple(texts.column("text").to_pylist()), vectors, found)


def _check_histories(folder: Path, axis: Axis, pool: Pool, interactions: Interactions) -> None:
    """Raises ConfigError when a row's position lies outside of its user's history, or its target is not the item there, which it
    is where no other item is asked for."""
    asks_for_it = axis in ("recommendation", "consolidation")
    wrong = (pool.positions < 0) | (pool.positions >= interactions.lengths[pool.users])
    if not wrong.any() and asks_for_it:
        wrong = interactions.items[interactions.offsets[pool.users] + pool.positions] != pool.targets
    if wrong.any():
        row = int(wrong.argmax())
        what = f"item {pool.targets[row]} at position" if asks_for_it else "position"
        raise ConfigError(
            f"{folder}: a benchmark of other sequences: axis {axis}, the history of user row {pool.users[row]} has no {what} "
            f"{pool.positions[row]}"
        )


def _card(benchmark: Benchmark, item_names: list[str]) -> str:
    card = benchmark.card
    written = {"llm": "a language model wrote them", "extractive": "extractive: phrases of the items' own categories"}
    lines = [
        f"# Preference benchmark: {card.source}",
        "",
        f"- preferences: {written.get(card.origin, 'a table of the user')} ({card.maker}); matched to items by {card.matched_by}",
        f"- sentiment (axis 2): {card.sentiment}"
        + (", extractive: says nothing of how users felt" if card.sentiment == "stand-in" else ""),
        f"- encoder: {card.encoder}, {card.dim}-d; {len(benchmark.texts):,} texts; seed {card.seed}",
        f"- targets without an earlier preference, left out: {', '.join(f'{k} {v:,}' for k, v in card.without.items())}",
        "",
        "| axis | split | rows | preference unseen in training |",
        "|---|---|---|---|",
        *(f"| {c.axis} | {c.split} | {c.rows:,} | {c.unseen:,} |" for c in card.counts),
        "",
        "## The first rows of each test pool",
        "",
    ]
    for axis in AXES:
        pool = benchmark.pools[axis, "test"]
        for row in range(min(3, len(pool))):
            wish, against = benchmark.texts[pool.preferences[row]], pool.negatives[row]
            opposite = f' / "{benchmark.texts[against]}"' if against >= 0 else ""
            lines.append(f'- {axis}: "{wish}"{opposite} -> {item_names[pool.targets[row] - 1]}')
    return "\n".join(lines) + "\n"
