"""How well a ranker orders the rows of each request, or of each user: AUC, MRR and nDCG within groups, averaged over groups.

Each group counts once, whatever its number of rows. Of equal scores the rows without the event come first, so that a constant
score is not flattered; the AUC counts a tie as half, as usual.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class GroupedMetrics:
    """groups: with at least one positive and one negative row, over which all are averaged; None where there is none.

    rows: of these groups. ndcg: binary gains, by cut-off.
    """

    groups: int
    rows: int
    auc: float | None
    mrr: float | None
    ndcg: dict[int, float | None]


def grouped_metrics(
    groups: NDArray[np.generic],  # (n,) any values that can be compared
    scores: NDArray[np.floating],  # (n,)
    labels: NDArray[np.floating],  # (n,) 0 or 1, NaN = not observed, left out
    cutoffs: tuple[int, ...] = (5, 10),
) -> GroupedMetrics:
    """One pass over sorted rows, without a loop over groups. Raises ValueError when the lengths differ."""
    if not len(groups) == len(scores) == len(labels):
        raise ValueError(f"{len(groups)} groups, {len(scores)} scores and {len(labels)} labels do not belong together")
    observed = ~np.isnan(labels)
    _, group = np.unique(groups[observed], return_inverse=True)
    score, label = scores[observed].astype(np.float64), labels[observed] > 0.5
    size, positives = np.bincount(group), np.bincount(group, weights=label)
    judged = (positives > 0) & (positives < size)
    keep = judged[group]
    renumbered = np.cumsum(judged) - 1
    group, score, label = renumbered[group[keep]], score[keep], label[keep]
    count = int(judged.sum())
    if not count:
        return GroupedMetrics(0, 0, None, None, dict.fromkeys(cutoffs))
    order = np.lexsort((label, -score, group))  # of equal scores the negatives first
    group, score, label = group[order], score[order], label[order]
    size, positives = np.bincount(group), np.bincount(group, weights=label)
    start = np.cumsum(size) - size
    place = np.arange(len(group)) - start[group]  # 0 = shown first
    first = np.full(count, len(group))
    np.minimum.at(first, group[label], place[label])
    gains = label / np.log2(place + 2)
    ideal = np.cumsum(1 / np.log2(np.arange(int(size.max())) + 2))
    ndcg: dict[int, float | None] = {}
    for k in cutoffs:
        found = np.bincount(group, weights=gains * (place < k), minlength=count)
        best = ideal[np.minimum(positives, k).astype(int) - 1]
        ndcg[k] = float((found / best).mean())
    return GroupedMetrics(
        count,
        len(group),
        _auc(group, score, label, size, positives.astype(np.float64)),
        float((1 / (first + 1)).mean()),
        ndcg,
    )


class GroupedRows:
    """The rows of one pass with their groups, kept until it is over: 8 + 8 T bytes a row of T tasks."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def __len__(self) -> int:
        return sum(len(groups) for groups, _, _ in self._parts)

    def update(self, groups: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Take in groups (B,) int64, scores and labels (B, T); see ``grouped_metrics``."""
        self._parts.append((groups.cpu(), scores.detach().float().cpu(), labels.float().cpu()))

    def gather(self) -> None:
        """Under torch.distributed the rows of all workers, on each of them: a group's rows may lie on several."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everywhere: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(everywhere, self._parts)
            self._parts = [part for parts in everywhere for part in parts]

    def compute(self, cutoffs: tuple[int, ...] = (5, 10)) -> tuple[GroupedMetrics, ...]:
        """One result a task; none where there are no rows."""
        if not self._parts:
            return ()
        groups, scores, labels = (torch.cat(column).numpy() for column in zip(*self._parts, strict=True))
        return tuple(grouped_metrics(groups, scores[:, t], labels[:, t], cutoffs) for t in range(scores.shape[1]))


def _auc(
    group: NDArray[np.int64], score: NDArray[np.float64], label: NDArray[np.bool_],
    size: NDArray[np.int64], positives: NDArray[np.float64],
) -> float:  # fmt: skip
    """Mean over groups of the share of pairs in the right order; rows sorted by group, then by falling score."""
    new = np.ones(len(group), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    block = np.cumsum(new) - 1  # rows of one group and one score
    length = np.bincount(block)
    higher = np.flatnonzero(new) - (np.cumsum(size) - size)[group[new]]  # rows of the group with a higher score
    rank = (size[group[new]] - higher - (length - 1) / 2)[block]  # 1 = lowest, ties share the mean rank
    negatives = size - positives
    sums = np.bincount(group, weights=rank * label)
    return float(((sums - positives * (positives + 1) / 2) / (positives * negatives)).mean())
