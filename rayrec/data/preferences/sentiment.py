"""Axis 2 of the benchmark, sentiment following: a wish and its opposite, without any history.

From negative reviews: of what the user's preferences say against, the one nearest to the review and the title, and its rule
inversion. Without ratings or reviews a documented stand-in: "Avoid" and "Find" with a phrase of the item's own categories, which
says how well a model follows the words, not how users felt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayrec.data.importing.own_tables import OwnTable, read_own_table
from rayrec.data.importing.reading import SourceError
from rayrec.data.log.raw_columns import ColumnTypeError, as_numbers
from rayrec.data.preferences.pools import SPLITS, Floats, Ints, Pool, Split, TextTable
from rayrec.data.preferences.table import Preferences
from rayrec.data.sequences.interactions import SequenceData
from rayrec.data.sequences.splits import SequenceSplit
from rayrec.text.preferences import inverted, is_negative


@dataclass(frozen=True)
class ReviewColumns:
    """Column names of a table of reviews; either ``rating`` or ``sentiment`` must be there."""

    user: str = "user"
    """Name of the user's column."""
    item: str = "item"
    """Name of the item's column."""
    rating: str | None = "rating"
    """Stars; ``negative_at_most`` of them or fewer are a negative review."""
    sentiment: str | None = None
    """"negative" or anything else, or a number below 0: the verdict of your own classifier. It goes before the rating."""
    review: str | None = None
    """Its text; None = there is none, and preferences are matched by the title alone."""
    negative_at_most: float = 2.0
    """So many stars or fewer are a negative review."""

    def __post_init__(self) -> None:
        if self.rating is None and self.sentiment is None:
            raise ValueError("reviews need a column of ratings or of sentiments")


@dataclass(frozen=True)
class NegativeReviews:
    """users, positions: (R,) where they stand in the histories. reviews: R texts. outside: how many more there were, of users or
    items that are not in the sequences, or items not in the user's history."""

    users: Ints
    positions: Ints
    reviews: tuple[str, ...]
    outside: int


def read_negative_reviews(file: Path, columns: ReviewColumns, data: SequenceData) -> NegativeReviews:
    """The negative ones of a Parquet or CSV table. Raises SourceError naming file, column and row."""
    verdict = columns.sentiment or columns.rating
    assert verdict is not None
    table = read_own_table(
        file, (columns.user, columns.item, verdict, *(() if columns.review is None else (columns.review,)))
    )
    negative = _negative(table, columns)
    interactions = data.interactions
    numbers = {name: row for row, name in enumerate(data.users.to_pylist())}
    items = {name: row + 1 for row, name in enumerate(data.items.names.to_pylist())}
    texts = [""] * len(table) if columns.review is None else table.texts(columns.review)
    found: list[tuple[int, int, str]] = []
    for against, user, item, text in zip(
        negative.tolist(), table.names(columns.user), table.names(columns.item), texts, strict=True
    ):
        row, number = numbers.get(user), items.get(item)
        if not against or row is None or number is None:
            continue
        start, end = interactions.offsets[row], interactions.offsets[row + 1]
        places = np.flatnonzero(interactions.items[start:end] == number)
        if len(places):
            found.append((row, int(places[-1]), text))
    found.sort()
    users, positions = (np.array([one[i] for one in found], np.int64) for i in (0, 1))
    return NegativeReviews(users, positions, tuple(one[2] for one in found), int(negative.sum()) - len(found))


def review_pools(
    data: SequenceData, split: SequenceSplit, reviews: NegativeReviews, preferences: Preferences, table: TextTable,
    encode: Callable[[Sequence[str]], Floats],
) -> dict[Split, Pool]:  # fmt: skip
    """From negative reviews. The row of preferences is the one that was made right after the review, if there is one."""
    rows = preferences.row_for(reviews.users, reviews.positions + 1)
    drafts: list[tuple[int, list[str], str]] = []
    titles = data.items.titles.to_pylist()
    targets = data.interactions.items[data.interactions.offsets[reviews.users] + reviews.positions].astype(np.int64)
    for i, row in enumerate(rows):
        if row < 0 or preferences.positions[row] != reviews.positions[i] + 1:
            continue
        against = [text for text in preferences.texts[row] if is_negative(text) and inverted(text) is not None]
        if against:
            drafts.append((i, against, f"Review: {reviews.reviews[i]}, Title: {titles[targets[i] - 1]}"))
    questions = encode([draft[2] for draft in drafts])
    several = list(dict.fromkeys(text for _, against, _ in drafts for text in against))
    vectors, place = encode(several), {text: i for i, text in enumerate(several)}
    chosen = []
    for (i, against, _), question in zip(drafts, questions, strict=True):
        fit = vectors[[place[text] for text in against]] @ question
        chosen.append((i, against[int(fit.argmax())]))
    places = {
        "train": reviews.positions < split.train_lengths[reviews.users],
        "valid": _is_target(reviews, split.valid.users, split.valid.positions),
        "test": _is_target(reviews, split.test.users, split.test.positions),
    }
    return _pools([(text, int(targets[i]), name) for i, text in chosen for name in SPLITS if places[name][i]], table)


def stand_in_pools(phrases: Sequence[str], table: TextTable, seed: int) -> dict[Split, Pool]:
    """Without reviews: "Avoid" and "Find" a phrase of each item (N,), "" = none; 80, 10 and 10 % of the different phrases."""
    generator = np.random.default_rng((seed, 2))
    drafts: dict[str, int] = {}
    for row in generator.permutation(len(phrases)):  # of items with one phrase, the seed chooses
        if phrases[row]:
            drafts.setdefault(phrases[row], int(row) + 1)
    rows = list(drafts.items())
    bounds = (int(0.8 * len(rows)), int(0.9 * len(rows)))
    names = [SPLITS[(i >= bounds[0]) + (i >= bounds[1])] for i in range(len(rows))]
    return _pools([(f"Avoid {phrase}", item, name) for (phrase, item), name in zip(rows, names, strict=True)], table)


def _pools(rows: Sequence[tuple[str, int, Split]], table: TextTable) -> dict[Split, Pool]:
    """Of (negative, target, split); of equal positive texts the first one stays."""
    columns: dict[Split, list[tuple[int, int, int]]] = {name: [] for name in SPLITS}
    taken = set[str]()
    for negative, target, name in rows:
        positive = inverted(negative)
        assert positive is not None
        if positive not in taken:
            taken.add(positive)
            columns[name].append((target, table.number(positive), table.number(negative)))
    pools = {}
    for name, found in columns.items():
        array = np.array(found, np.int64).reshape(-1, 3)
        nobody = np.zeros(len(array), np.int64)
        pools[name] = Pool.of(nobody, nobody, array[:, 0], array[:, 1], array[:, 2])
    return pools


def _is_target(reviews: NegativeReviews, users: Ints, positions: Ints) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    width = int(max(reviews.positions.max(initial=0), positions.max(initial=0))) + 1
    return np.isin(reviews.users * width + reviews.positions, users * width + positions)


def _negative(table: OwnTable, columns: ReviewColumns) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """(n,) which reviews are; those without a verdict are not."""
    if columns.sentiment is None:
        assert columns.rating is not None
        return table.numbers(columns.rating) <= columns.negative_at_most
    verdicts = table.columns.column(columns.sentiment)
    try:
        below = as_numbers(verdicts).values < 0
    except ColumnTypeError as error:
        raise SourceError(f"{table.file}: column {columns.sentiment!r} {error}") from None
    words = [isinstance(verdict, str) and verdict.strip().lower() == "negative" for verdict in verdicts.to_pylist()]
    return below | np.array(words, bool)
