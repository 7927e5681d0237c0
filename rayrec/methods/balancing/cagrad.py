"""CAGrad (Liu et al. 2021, equation 3): the average gradient, moved towards the worst-off tasks."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.methods.balancing.simplex import as_double, minimize_on_simplex
from rayrec.methods.balancing.tracked import Tracked


@dataclass(frozen=True)
class Cagrad(Tracked):
    """Settings of CAGrad."""

    method: Literal["cagrad"] = "cagrad"
    """What names the method in JSON and on command lines."""
    conflict_aversion: float = 0.5
    """c, how far from the average, in lengths of the average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least_0("conflict_aversion")

    def task_weights(self, gram: Tensor, step: int) -> Tensor:
        return cagrad(gram, self.conflict_aversion)


def cagrad(gram: Tensor, conflict_aversion: float) -> Tensor:
    """The average gradient moved by at most ``conflict_aversion`` (c) of its norm towards the worst-off tasks.

    CAGrad: Liu et al. 2021, equation 3: weights 1/T + c |g_0| / |g_w| w, where w minimizes g_w . g_0 + c |g_0| |g_w| on the
    simplex. For a given length t = |g_w| that is a quadratic program, (|g_w|^2 / t + t) / 2 being at least |g_w|; length and
    weights in turn go downhill to the one minimum, since this form is convex in both. c = 0 gives the average.
    """
    gram = as_double(gram)
    tasks = len(gram)
    average = torch.full((tasks,), 1.0 / tasks, dtype=torch.float64)
    toward = gram @ average
    radius = conflict_aversion * _norm(gram, average)
    shortest = 1e-8 * gram.diagonal().amax().sqrt()
    length = _norm(gram, average)
    if radius <= 0.0 or length <= shortest:
        return average
    weights = average
    for _ in range(100):
        weights = minimize_on_simplex(radius / length * gram, toward)
        before, length = length, _norm(gram, weights)
        if length <= shortest:  # Pareto stationary: no direction helps every task
            return torch.zeros(tasks, dtype=torch.float64)
        if (before - length).abs() <= 1e-10 * length:
            break
    return average + radius / length * weights


def _norm(gram: Tensor, weights: Tensor) -> Tensor:
    """Length of the combined gradient."""
    return (weights @ gram @ weights).clamp_min(0.0).sqrt()
