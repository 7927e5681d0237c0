"""The pools of Mender's five axes (arXiv 2412.08604, section on the benchmark), as pure functions of arrays.

A row of a pool: the history is what precedes ``position`` of ``user``; with the preference text it should lead to ``target``.
Texts are rows of one table of different texts with unit vectors; items have unit vectors, row 0 is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rayrec.data.preferences.table import Preferences
from rayrec.data.sequences.interactions import Interactions
from rayrec.data.sequences.splits import Examples, SequenceSplit
from rayrec.text.preferences import NEEDED, candidates

Axis = Literal["recommendation", "sentiment", "fine", "coarse", "consolidation"]
Split = Literal["train", "valid", "test"]
AXES: tuple[Axis, ...] = get_args(Axis)
SPLITS: tuple[Split, ...] = get_args(Split)
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """R rows, each column (R,) int64. position 0: no history. negatives: text of the opposite wish, -1 = none."""

    users: Ints
    positions: Ints
    targets: Ints
    preferences: Ints
    negatives: Ints

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Ints) -> "Pool":
        return Pool(
            *(column[rows] for column in (self.users, self.positions, self.targets, self.preferences, self.negatives))
        )

    @staticmethod
    def of(users: Ints, positions: Ints, targets: Ints, preferences: Ints, negatives: Ints | None = None) -> "Pool":
        none = np.full(len(targets), -1, np.int64) if negatives is None else negatives
        return Pool(users, positions, targets.astype(np.int64), preferences, none)


class TextTable:
    """Different texts, numbered from 0 in the order in which they came."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        found = self._numbers.setdefault(text, len(self.texts))
        if found == len(self.texts):
            self.texts.append(text)
        return found


@dataclass(frozen=True)
class PreferenceTexts:
    """By row of ``Preferences``: numbers of those that may be matched, and of all of them joined (the first five)."""

    candidates: tuple[tuple[int, ...], ...]
    joined: tuple[int, ...]

    @staticmethod
    def of(preferences: Preferences, table: TextTable) -> "PreferenceTexts":
        matched = tuple(tuple(table.number(t) for t in candidates(texts)) for texts in preferences.texts)
        joined = tuple(table.number(join(texts)) for texts in preferences.texts)
        return PreferenceTexts(matched, joined)


def join(texts: Sequence[str]) -> str:
    """The first five raw preferences as one, as axis 5 gives them."""
    return ". ".join(text.rstrip(". ") for text in texts[:NEEDED])


def split_examples(interactions: Interactions, split: SequenceSplit) -> dict[Split, Examples]:
    """The targets of each split; of training, every position from the third on, as the paper has it."""
    counts = np.maximum(split.train_lengths - 2, 0)
    users = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return {"train": Examples(users, np.arange(len(users)) - first + 2), "valid": split.valid, "test": split.test}


def recommendation(
    interactions: Interactions, examples: Examples, preferences: Preferences, texts: PreferenceTexts, text_vectors: Floats,
    item_vectors: Floats,
) -> Pool:  # fmt: skip
    """Axis 1: history and the candidate of the newest row that fits the next item best. Targets without a row are left out."""
    rows = preferences.row_for(examples.users, examples.positions)
    found = np.flatnonzero(rows >= 0)
    targets = examples.targets(interactions).astype(np.int64)
    best = np.full(len(rows), -1, np.int64)
    order = found[np.argsort(rows[found], kind="stable")]
    bounds = np.flatnonzero(np.diff(rows[order], prepend=-2))
    for own in np.split(order, bounds[1:]):  # the targets that one row serves
        if len(own):
            options = np.array(texts.candidates[rows[own[0]]])
            fit = item_vectors[targets[own]] @ text_vectors[options].T  # (targets, options)
            best[own] = options[fit.argmax(1)]
    return Pool.of(examples.users[found], examples.positions[found], targets[found], best[found])


def consolidation(
    interactions: Interactions, examples: Examples, preferences: Preferences, texts: PreferenceTexts
) -> Pool:
    """Axis 5: history and the five raw preferences of the newest row, unmatched, joined by ". "."""
    rows = preferences.row_for(examples.users, examples.positions)
    found = np.flatnonzero(rows >= 0)
    joined = np.array(texts.joined, np.int64)[rows[found]]
    return Pool.of(
        examples.users[found], examples.positions[found], examples.targets(interactions)[found].astype(np.int64), joined
    )


def steering(
    interactions: Interactions, examples: Examples, options: Ints, text_vectors: Floats, item_vectors: Floats, *,
    similar: bool, place: int, seed: int = 0,
) -> Pool:  # fmt: skip
    """Axes 3 (``similar``) and 4 (most distinct): the history of a user whose target is j, the preference that points to i.

    options: (O,) texts of which the ``place``-th nearest to i (0 = nearest) points to it. Items are paired greedily by number;
    each is target once; both swaps of a pair are rows. Of several users with one target, the seed chooses.
    """
    targets = examples.targets(interactions).astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(targets))
    items, first = np.unique(targets[order], return_index=True)
    chosen = order[first]  # the example whose user stands for each item
    pairs = pair_up(item_vectors[items], similar=similar)  # (P, 2) places in items
    if place >= len(options) or not len(pairs):
        empty = np.zeros(0, np.int64)
        return Pool.of(empty, empty, empty, empty)
    wanted = np.concatenate([pairs, pairs[:, ::-1]], 1).reshape(-1, 2)  # (2 P, 2): target i, history of j
    fit = item_vectors[items[wanted[:, 0]]] @ text_vectors[options].T
    pointing = options[np.argsort(-fit, axis=1, kind="stable")[:, place]]
    of = chosen[wanted[:, 1]]
    return Pool.of(examples.users[of], examples.positions[of], items[wanted[:, 0]], pointing)


def pair_up(vectors: Floats, *, similar: bool) -> Ints:
    """(P, 2) pairs of T unit vectors (T, E), each used once: the first one left takes the most similar (or distinct) one left."""
    left = np.ones(len(vectors), bool)
    pairs = []
    for i in range(len(vectors)):
        if not left[i]:
            continue
        left[i] = False
        if not left.any():
            break
        closeness = vectors @ vectors[i] if similar else -(vectors @ vectors[i])
        j = int(np.where(left, closeness, -np.inf).argmax())
        left[j] = False
        pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


def usable_options(preferences: Preferences, texts: PreferenceTexts, examples: Examples) -> Ints:
    """Numbers of the candidates of every row that may serve one of the targets: no younger text points in this split."""
    last = np.full(int(max(examples.users.max(initial=-1), preferences.users.max(initial=-1))) + 1, -1, np.int64)
    np.maximum.at(last, examples.users, examples.positions)
    usable = np.flatnonzero(preferences.positions <= last[preferences.users])
    return np.unique(np.array([number for row in usable for number in texts.candidates[row]], np.int64))
