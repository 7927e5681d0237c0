"""Raw numbers to network inputs: log1p where asked, standardized, missing values marked."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LIMIT = 10.0  # standard deviations: a wild value must not drown the other features


class DenseInput(nn.Module):
    """(B, D) raw values with NaN = missing to (B, D + M): standardized and clipped to +-10, missing = 0 (the mean), then one
    indicator column for each of the M features that are ever missing.

    mean, std: of the observed values, after sign(x) * log1p(|x|) where ``log1p`` is set; std 0 counts as 1.
    """

    mean: Tensor
    scale: Tensor
    log1p: Tensor
    indicated: Tensor
    never_missing: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], log1p: Sequence[bool], missing: Sequence[bool]
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor([1.0 / s if s > 0 else 1.0 for s in std]), persistent=False)
        self.register_buffer("log1p", torch.tensor(log1p, dtype=torch.bool), persistent=False)
        indicated = [i for i, m in enumerate(missing) if m]
        self.register_buffer("indicated", torch.tensor(indicated, dtype=torch.int64), persistent=False)
        never = [not m for m in missing]
        self.register_buffer("never_missing", torch.tensor(never, dtype=torch.bool), persistent=False)
        self.any_log1p = any(log1p)
        self.width = len(mean) + len(indicated)

    def forward(self, dense: Tensor) -> Tensor:
        return self.normalized(self.transformed(dense))

    def transformed(self, dense: Tensor) -> Tensor:
        """(B, D): sign(x) * log1p(|x|) of the columns that ask for it."""
        return torch.where(self.log1p, dense.sign() * dense.abs().log1p(), dense) if self.any_log1p else dense

    def imputed(self, values: Tensor) -> Tensor:
        """What ``transformed`` gave, the mean in place of missing values of features that no training row lacked."""
        return torch.where(values.isnan() & self.never_missing, self.mean, values)

    def normalized(self, values: Tensor) -> Tensor:
        """(B, D + M) of what ``transformed`` gave."""
        numbers = ((values - self.mean) * self.scale).clamp(-_LIMIT, _LIMIT).nan_to_num(0.0)
        if not len(self.indicated):
            return numbers
        return torch.cat([numbers, values[:, self.indicated].isnan().to(numbers.dtype)], dim=1)
