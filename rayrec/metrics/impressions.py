"""Metrics of ranked impressions, as MIND defines them: AUC, MRR, nDCG@K of each impression, averaged over impressions.

MRR is the mean of 1 / rank over an impression's positives. Ties: half a win each in AUC; in ranks an equal score of a negative
counts before the positive, so that equal scores earn nothing. A NaN among an impression's scores makes all its metrics 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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
    """Running sums over impressions; one without a positive or without a negative is left out and counted as such."""

    def __init__(self, cutoffs: Sequence[int] = (5, 10)) -> None:
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError(f"cutoffs must be at least 1, not {tuple(cutoffs)}")
        self.cutoffs = tuple(cutoffs)
        self.names = ("auc", "mrr", *(f"ndcg@{cutoff}" for cutoff in self.cutoffs))
        self._state = torch.zeros(2 + len(self.names), dtype=torch.float64)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Fold in scores and labels (B, C); see ``impression_metrics``."""
        found = impression_metrics(scores, labels, self.cutoffs)
        judged = ~found.isnan().any(1)
        counts = torch.stack([judged.sum(), (~judged).sum()]).double()
        self._state += torch.cat([counts, found[judged].sum(0)]).cpu()

    def state(self) -> Tensor:
        return self._state

    def load_state(self, state: Tensor) -> None:
        self._state = state.to(torch.float64)

    def compute(self) -> dict[str, float | None]:
        """rows (impressions judged), left_out, and the mean of each metric; None where nothing was judged."""
        rows, left_out, *sums = self._state.tolist()
        means = {name: value / rows if rows else None for name, value in zip(self.names, sums, strict=True)}
        return {"rows": rows, "left_out": left_out, **means}
