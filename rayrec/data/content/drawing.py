"""Impressions for data sets that hold likes only: candidates that the user did not like, drawn by popularity and by kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrec.data.content.lists import Lists
from rayrec.data.content.log import ContentError, Impressions


@dataclass(frozen=True)
class CandidateDraw:
    """How candidates are drawn beside a like."""

    positives: int = 5
    """Most likes an impression holds."""
    negatives: int = 4
    """Drawn beside each like."""
    by_kind: float = 0.5
    """Share of the negatives that are of the like's own kind (film genres). All are drawn with probability in
    proportion to how many users like them, so that popularity alone ranks little."""
    seed: int = 0
    """Fixes all draws."""

    def __post_init__(self) -> None:
        if min(self.positives, self.negatives) < 1 or not 0 <= self.by_kind <= 1:
            raise ValueError("positives and negatives must be at least 1, by_kind within [0, 1]")


class Drawer:
    """counts: (N + 1,) likes in training by item number. kinds: for each item number the items of its own kind, or None."""

    def __init__(
        self, draw: CandidateDraw, counts: NDArray[np.int64], kinds: Sequence[NDArray[np.int32]] | None
    ) -> None:
        self.draw, self._kinds = draw, kinds
        self._random = np.random.default_rng(draw.seed)
        self._weights = counts.astype(np.float64)
        self._weights[0] = 0.0
        if self._weights.sum() == 0:
            raise ContentError("no item is liked in training: nothing to draw candidates by")
        self._cumulative = np.cumsum(self._weights / self._weights.sum())

    def impressions(
        self, split: str, history: int, liked: Sequence[int], known: set[int]
    ) -> list[tuple[str, int, list[int], list[int]]]:
        """(split, history, candidates, labels) of likes, ``positives`` at a time; no candidate is in ``known`` but the likes."""
        found = []
        for start in range(0, len(liked), self.draw.positives):
            positives = list(liked[start : start + self.draw.positives])
            taken = known | set(positives)
            negatives: list[int] = []
            for like in positives:
                for _ in range(self.draw.negatives):
                    item = self._one(like, taken)
                    taken.add(item)
                    negatives.append(item)
            candidates = np.asarray(positives + negatives)
            order = self._random.permutation(len(candidates))
            found.append((split, history, candidates[order].tolist(), (order < len(positives)).astype(int).tolist()))
        return found

    def _one(self, like: int, taken: set[int]) -> int:
        kind = None if self._kinds is None else self._kinds[like]
        if kind is not None and self._weights[kind].sum() > 0 and self._random.random() < self.draw.by_kind:
            sums = np.cumsum(self._weights[kind])
            places = np.searchsorted(sums, self._random.random(50) * sums[-1], side="right")
            for item in kind[places.clip(max=len(kind) - 1)]:
                if int(item) not in taken:
                    return int(item)
        for _ in range(10_000):
            item = int(np.searchsorted(self._cumulative, self._random.random(), side="right"))
            if item not in taken:
                return item
        raise ContentError("a user likes nearly every item: no candidate is left to draw")


def gather(rows: Sequence[tuple[str, int, list[int], list[int]]]) -> Impressions:
    """Rows of (split, history, candidates, labels) as impressions."""
    return Impressions(
        np.asarray([row[0] for row in rows], dtype=np.str_), np.asarray([row[1] for row in rows], dtype=np.int64),
        Lists.of(row[2] for row in rows), Lists.of(row[3] for row in rows),
    )  # fmt: skip
