"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x; W frozen, A and B learned, B first zero."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A linear layer whose own weights stay as they are."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.down = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        nn.init.normal_(self.down, std=base.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base(x) + self.scale * (x @ self.down.T) @ self.up.T
        return output


def adapt(module: nn.Module, endings: Sequence[str], rank: int, alpha: float) -> int:
    """Freeze ``module`` and adapt its linear layers whose path ends on one of ``endings``; returns how many.

    Raises ValueError when there is none.
    """
    module.requires_grad_(False)
    found = [
        name for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and any(f".{name}".endswith(f".{ending}") for ending in endings)
    ]  # fmt: skip
    if not found:
        raise ValueError(f"no linear layer is called {' or '.join(endings)}: nothing to adapt")
    for name in found:
        parent, _, child = name.rpartition(".")
        holder = module.get_submodule(parent)
        base = getattr(holder, child)
        setattr(holder, child, LoraLinear(base, rank, alpha))
    return len(found)
