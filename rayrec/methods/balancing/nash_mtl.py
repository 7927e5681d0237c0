"""Nash-MTL (Navon et al. 2022, equation 2): the bargaining solution, in which every task gains alike."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.methods.balancing.simplex import as_double
from rayrec.methods.balancing.tracked import Tracked


@dataclass(frozen=True)
class NashMtl(Tracked):
    """Has no settings of its own."""

    method: Literal["nash_mtl"] = "nash_mtl"
    """What names the method in JSON and on command lines."""

    def task_weights(self, gram: Tensor, step: int) -> Tensor:
        return nash_mtl(gram)


def nash_mtl(gram: Tensor, ridge: float = 1e-6) -> Tensor:
    """The bargaining solution: positive weights a with (gram a)_t = 1 / a_t, so that every task gains alike.

    Nash-MTL: Navon et al. 2022, equation 2. It is the minimum of a^T gram a / 2 - sum log a, self-concordant, hence damped Newton
    steps. ``ridge`` times the mean squared norm is added to the diagonal: where the gradients cancel there is no minimum.
    """
    gram = as_double(gram)
    gram = gram + ridge * gram.diagonal().mean().clamp_min(1e-300) * torch.eye(len(gram), dtype=torch.float64)
    weights = gram.diagonal().rsqrt() / len(gram) ** 0.5
    for _ in range(100):
        slope = gram @ weights - 1.0 / weights
        step = torch.linalg.solve(gram + torch.diag(weights.square().reciprocal()), slope)
        decrement = (slope @ step).clamp_min(0.0).sqrt()
        weights = weights - step / (1.0 + decrement)  # stays positive
        if decrement < 1e-12:
            break
    return weights
