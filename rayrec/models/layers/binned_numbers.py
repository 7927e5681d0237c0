"""A vector for each number, linear between quantiles of its feature: networks follow jumps and thresholds as trees do."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BinnedNumbers(nn.Module):
    """(B, D) numbers after log1p where asked, NaN = missing, to (B, D * dim): the vector of a number is one of its feature, the
    vectors of all bins below it, and of its own bin's the share that lies below it, summed; zeros where it is missing.

    quantiles: of each feature, rising, at even steps but for the ends, as ``DenseStatistics`` has them. bins: of equally many
    rows each, as near as the quantiles tell; those without width (a value that many rows have) are empty. Below the lowest and
    above the highest quantile a vector stays as it is there, so what is rarer than that has no bin of its own.

    After Gorishniy, Rubachev and Babenko, On Embeddings for Numerical Features in Tabular Deep Learning (2022): their piecewise
    linear code (eq. 1; theirs goes on linearly beyond the outer edges) with a linear layer for each feature behind it.
    """

    lower: Tensor
    per_width: Tensor

    def __init__(self, quantiles: Sequence[Sequence[float]], bins: int, dim: int) -> None:
        super().__init__()
        each = [_edges(torch.tensor(q, dtype=torch.float64, device="cpu"), bins) for q in quantiles]
        edges = torch.stack(each).float()  # (D, bins + 1)
        per_width = 1 / edges.diff(dim=1)
        has_width = per_width.isfinite() & (per_width > 0)  # one too narrow or too wide for float32 has none either
        self.register_buffer("lower", edges[:, :-1], persistent=False)
        self.register_buffer("per_width", per_width.where(has_width, 0.0), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(edges), bins + 1, dim))
        nn.init.normal_(self.weight, std=0.05)
        self.width = len(edges) * dim

    def forward(self, numbers: Tensor) -> Tensor:
        return self._vectors(self._code(numbers))

    def moved(self, numbers: Tensor, others: Tensor) -> Tensor:
        """The vectors of ``others`` less those of ``numbers``, of codes subtracted first: exact for numbers that are close."""
        return self._vectors(self._code(others) - self._code(numbers))

    def _vectors(self, code: Tensor) -> Tensor:
        return torch.einsum("bdt,dte->bde", code, self.weight).flatten(1)

    def _code(self, numbers: Tensor) -> Tensor:
        """(B, D, 1 + bins): 1, then the share of each bin that lies below."""
        missing = numbers.isnan()
        code = ((numbers.unsqueeze(2) - self.lower) * self.per_width).clamp(0.0, 1.0)  # (B, D, bins)
        code = code.masked_fill(self.per_width == 0, 0.0)
        return torch.cat([torch.ones_like(code[:, :, :1]), code], dim=2).masked_fill(missing.unsqueeze(2), 0.0)


def _edges(quantiles: Tensor, bins: int) -> Tensor:
    """(bins + 1,) float64: every so many of the quantiles, between two of them where they do not go round."""
    place = torch.linspace(0, len(quantiles) - 1, bins + 1, dtype=torch.float64, device="cpu")
    below = place.floor().long().clamp(max=len(quantiles) - 2)
    return quantiles[below].lerp(quantiles[below + 1], place - below)
