"""Ranking metrics of one relevant item a query: Recall@K, NDCG@K, MRR, from the rank of the target.

Ranks start at 1; ``ABSENT`` means that the target was not retrieved. With one target, Recall@K = HitRate@K and the ideal DCG is
1, so NDCG@K = 1 / log2(1 + rank) inside the first K and 0 beyond. Full ranking, no sampled negatives (Krichene and Rendle 2020,
"On sampled metrics for item recommendation", shows what sampling does).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrec.metrics.binary_groups import group_of

PARTS = 64
ABSENT = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class RankingResult:
    """Means over ``count`` queries; empty groups hold None. ``recall`` and ``ndcg`` by cutoff K."""

    count: int
    recall: dict[int, float | None]
    ndcg: dict[int, float | None]
    mrr: float | None

    def as_numbers(self) -> dict[str, float | None]:
        """Flat names: count, recall@5, ndcg@5, ..., mrr."""
        numbers: dict[str, float | None] = {"count": float(self.count)}
        for cutoff in self.recall:
            numbers[f"recall@{cutoff}"] = self.recall[cutoff]
            numbers[f"ndcg@{cutoff}"] = self.ndcg[cutoff]
        return {**numbers, "mrr": self.mrr}


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank (B,) int64 of each row's target among all scores (B, N): 1 + how many others score at least as high.

    Ties count against the target, so a model that scores all items alike gets no credit. A NaN anywhere ranks as ABSENT.
    """
    target_scores = scores.gather(1, targets.unsqueeze(1))  # (B, 1)
    ranks = (scores >= target_scores).sum(1)
    broken = scores.isnan().any(1)
    return ranks.masked_fill(broken, ABSENT)


def list_ranks(retrieved: Tensor, targets: Tensor, scores: Tensor | None = None) -> Tensor:
    """Rank (B,) int64 of each row's target in its retrieved list (B, K), best first; ABSENT where it is not in it.

    With the list's ``scores`` (B, K) ties count against the target, and a NaN among them ranks as ABSENT.
    """
    hits = retrieved == targets.unsqueeze(1)  # (B, K)
    first, found = hits.int().argmax(1), hits.any(1)
    if scores is None:
        return torch.where(found, first + 1, ABSENT)
    ranks = (scores >= scores.gather(1, first.unsqueeze(1))).sum(1)
    return torch.where(found & ~scores.isnan().any(1), ranks, ABSENT)


class RankingMetrics:
    """Running sums over queries, by group: ``all``, ``in_set`` (target seen in training) and ``cold`` (never seen).

    ``state`` (64, 3, 2 + 2 * cutoffs) float64 holds count, reciprocal ranks, then recalls and gains, by a hash of each query's
    user, so that ``left_out`` can tell how much the metrics hang on the users. States of workers add up.
    """

    GROUPS = ("all", "in_set", "cold")

    def __init__(self, cutoffs: Sequence[int] = (5, 10)) -> None:
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError(f"cutoffs must be at least 1, not {tuple(cutoffs)}")
        self.cutoffs = tuple(cutoffs)
        self._state = torch.zeros(PARTS, len(self.GROUPS), 2 + 2 * len(self.cutoffs), dtype=torch.float64)
        self._queries = 0

    def update(self, ranks: Tensor, cold: Tensor | None = None, users: Tensor | None = None) -> None:
        """Fold in ranks (B,) int64 >= 1; ``cold`` (B,) bool tells which targets were never seen in training.

        users: (B,) int64 whose queries these are, the same in whatever batch, worker or model; None = each of another user.
        Raises ValueError for a rank below 1.
        """
        if ranks.numel() and int(ranks.min()) < 1:
            raise ValueError(f"ranks start at 1, not {int(ranks.min())}")
        cold = torch.zeros_like(ranks, dtype=torch.bool) if cold is None else cold
        found = (ranks != ABSENT).double()
        rank = ranks.double()
        cutoffs = torch.tensor(self.cutoffs, device=ranks.device)
        hits = (ranks.unsqueeze(1) <= cutoffs).double()  # (B, C)
        gains = hits / torch.log2(1 + rank).unsqueeze(1)
        terms = torch.cat([torch.ones_like(rank).unsqueeze(1), (found / rank).unsqueeze(1), hits, gains], dim=1)
        groups = torch.stack([torch.ones_like(cold), ~cold, cold]).double()  # (3, B)
        own = torch.arange(self._queries, self._queries + len(ranks), device=ranks.device)
        part = group_of(own if users is None else users, PARTS)
        self._queries += len(ranks)
        by_query = groups.T.unsqueeze(2) * terms.unsqueeze(1)  # (B, 3, terms)
        self._state.index_add_(0, part.cpu(), by_query.cpu())

    def state(self) -> Tensor:
        return self._state

    def load_state(self, state: Tensor) -> None:
        self._state = state.to(torch.float64)

    def compute(self) -> dict[str, RankingResult]:
        """Result by group."""
        return {group: self._result(row) for group, row in zip(self.GROUPS, self._state.sum(0).tolist(), strict=True)}

    def left_out(self) -> dict[str, dict[str, tuple[float, ...]]]:
        """By group and metric the 64 values without each part of the queries; of a group with queries outside every part."""
        rest = self._state.sum(0) - self._state  # (64, 3, terms)
        names = ["mrr", *(f"recall@{c}" for c in self.cutoffs), *(f"ndcg@{c}" for c in self.cutoffs)]
        return {
            group: {name: tuple(v) for name, v in zip(names, (rest[:, i, 1:] / rest[:, i, :1]).T.tolist(), strict=True)}
            for i, group in enumerate(self.GROUPS)
            if bool((rest[:, i, 0] > 0).all())
        }

    def _result(self, row: list[float]) -> RankingResult:
        count = row[0]
        means = [value / count if count else None for value in row[1:]]
        recalls, gains = means[1 : 1 + len(self.cutoffs)], means[1 + len(self.cutoffs) :]
        return RankingResult(
            count=round(count),
            recall=dict(zip(self.cutoffs, recalls, strict=True)),
            ndcg=dict(zip(self.cutoffs, gains, strict=True)),
            mrr=means[0],
        )
