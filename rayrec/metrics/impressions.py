"""Metrics of ranked impressions, as MIND defines them: AUC, MRR, nDCG@K of each impression, averaged over impressions.

MRR is the mean of 1 / rank over an impression's positives. Ties: half a win each in AUC; in ranks an equal score of a negative
counts before the positive, so that equal scores earn nothing. A NaN among an impression's scores makes all its metrics 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayrec.metrics.binary_groups import group_of
from rayrec.metrics.ranking import PARTS


def impression_metrics(scores: Tensor, labels: Tensor, cutoffs: Sequence[int] = (5, 10)) -> Tensor:
    """(B, 2 + len(cutoffs)) float64: AUC, MRR, nDCG@K of each row; NaN rows where a class is absent.

    scores: (B, C). labels: (B, C) 1 positive, 0 negative, -1 padding.
    """
    scores, real, positive = scores.double(), labels >= 0, labels == 1
    broken = (scores.isnan() & real).any(1)
    scores = torch.where(real, scores.nan_to_num(0.0), -torch.inf)
    negative = real & ~positive
    pairs = positive.unsqueeze(2) & negative.unsqueeze(1)  # (B, P, N)
    above, equal = scores.unsqueeze(2) > scores.unsqueeze(1), scores.unsqueeze(2) == scores.unsqueeze(1)
    auc = ((above + 0.5 * equal) * pairs).sum((1, 2)) / pairs.sum((1, 2))
    # Equal scores: negatives come first, positives behind them in the order they stand in.
    key = torch.argsort(negative.int(), dim=1, descending=True, stable=True)
    order = key.gather(1, scores.gather(1, key).argsort(dim=1, descending=True, stable=True))
    hits = positive.gather(1, order).double()  # (B, C) best first
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=torch.float64)
    count = positive.sum(1)
    columns = [auc, (hits / ranks).sum(1) / count]
    gains = 1 / torch.log2(1 + ranks)
    ideal = gains.cumsum(0)
    for cutoff in cutoffs:
        best = ideal[(count.clamp(1, min(cutoff, len(ideal))) - 1)]
        columns.append((hits * gains)[:, :cutoff].sum(1) / best)
    found = torch.stack(columns, dim=1)
    found[broken] = 0.0
    found[(count == 0) | (negative.sum(1) == 0)] = torch.nan
    return found


class ImpressionMetrics:
    """Running sums over impressions; one without a positive or without a negative is left out and counted as such.

    ``state`` (64, 2 + metrics) float64 holds the sums of users by a hash of their key, so that ``without_groups`` can tell how
    much the metrics hang on the users. States of workers add up.
    """

    def __init__(self, cutoffs: Sequence[int] = (5, 10)) -> None:
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError(f"cutoffs must be at least 1, not {tuple(cutoffs)}")
        self.cutoffs = tuple(cutoffs)
        self.names = ("auc", "mrr", *(f"ndcg@{cutoff}" for cutoff in self.cutoffs))
        self._state = torch.zeros(PARTS, 2 + len(self.names), dtype=torch.float64)
        self._shown = 0

    def update(self, scores: Tensor, labels: Tensor, users: Tensor | None = None) -> None:
        """Fold in scores and labels (B, C); see ``impression_metrics``.

        users: (B,) int64 key of each impression's user, the same in whatever batch, worker or model; None = each impression is of
        another user.
        """
        found = impression_metrics(scores, labels, self.cutoffs)
        judged = ~found.isnan().any(1)
        users = torch.arange(self._shown, self._shown + len(found), device=found.device) if users is None else users
        terms = torch.cat(
            [torch.stack([judged, ~judged], dim=1).double(), found.nan_to_num(0.0) * judged.unsqueeze(1)], dim=1
        )
        self._state.index_add_(0, group_of(users, PARTS).cpu(), terms.cpu())
        self._shown += len(found)

    def state(self) -> Tensor:
        return self._state

    def load_state(self, state: Tensor) -> None:
        self._state = state.to(torch.float64)

    def compute(self) -> dict[str, float | None]:
        """rows (impressions judged), left_out, and the mean of each metric; None where nothing was judged."""
        rows, left_out, *sums = self._state.sum(0).tolist()
        means = {name: value / rows if rows else None for name, value in zip(self.names, sums, strict=True)}
        return {"rows": rows, "left_out": left_out, **means}

    def without_groups(self) -> dict[str, tuple[float, ...]]:
        """By metric the 64 values without each part of the users; nothing where one part has all that was judged."""
        rest = self._state.sum(0) - self._state  # (64, 2 + metrics)
        if bool((rest[:, 0] <= 0).any()):
            return {}
        means = (rest[:, 2:] / rest[:, :1]).T.tolist()
        return {name: tuple(values) for name, values in zip(self.names, means, strict=True)}
