"""PCGrad (Yu et al. 2020, algorithm 1): each gradient projected off those it conflicts with, and their sum."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.methods.balancing.simplex import as_double
from rayrec.methods.balancing.tracked import Tracked


@dataclass(frozen=True)
class Pcgrad(Tracked):
    """Settings of PCGrad."""

    method: Literal["pcgrad"] = "pcgrad"
    """What names the method in JSON and on command lines."""
    seed: int = 0
    """Of the random orders in which a task meets the others, drawn anew each step, the same on every worker."""

    def task_weights(self, gram: Tensor, step: int) -> Tensor:
        return pcgrad(gram, random_orders(len(gram), self.seed + step))


def random_orders(tasks: int, seed: int) -> Tensor:
    """For each task an own random order of the others, (T, T - 1), the same on every worker."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(tasks, tasks, generator=generator).fill_diagonal_(2.0)  # oneself last, then cut off
    return keys.argsort(1)[:, :-1]


def pcgrad(gram: Tensor, orders: Tensor) -> Tensor:
    """Each gradient projected off those it conflicts with, in its row of ``orders`` (T, T - 1); their sum.

    PCGrad: Yu et al. 2020, algorithm 1. Row i of ``parts`` holds gradient i as a combination of all, all rows at once.
    """
    gram = as_double(gram)
    parts = torch.eye(len(gram), dtype=torch.float64)  # (T, T)
    norms = gram.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    for others in orders.unbind(1):
        inner = (parts * gram[others]).sum(1)  # of each partly projected gradient with its next other
        shift = inner.clamp_max(0.0) / norms[others]
        parts.scatter_add_(1, others.unsqueeze(1), -shift.unsqueeze(1))
    return parts.sum(0)
