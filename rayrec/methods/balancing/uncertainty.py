"""Uncertainty weighting (Kendall et al. 2018, equation 10): losses are weighed by learned inverse variances."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayrec.methods.balancing.balancer import Balancer, Balancing, averaged


@dataclass(frozen=True)
class Uncertainty(Balancing):
    """Settings of uncertainty weighting."""

    method: Literal["uncertainty"] = "uncertainty"
    """What names the method in JSON and on command lines."""
    learning_rate: float = 0.025
    """Of the log variances."""

    def __post_init__(self) -> None:
        self._check_at_least_0("learning_rate")

    def balancer(self, tasks: int, width: int) -> "UncertaintyBalancer":
        return UncertaintyBalancer(self, tasks)


class UncertaintyBalancer(Balancer):
    """Buffers: ``loss_weights`` (T,)."""

    loss_weights: Tensor

    def __init__(self, config: Uncertainty, tasks: int) -> None:
        super().__init__(tasks)
        self.config = config
        self.register_buffer("loss_weights", torch.ones(tasks))

    @property
    def shares(self) -> Tensor:
        return self.loss_weights.clone()

    def total(self, losses: Tensor, h: Tensor, inputs: Tensor, parameters: Iterable[nn.Parameter] = ()) -> Tensor:
        factors = self.loss_weights.clone()
        with torch.no_grad():
            uncertainty_step(self.loss_weights, averaged(losses.detach().clone()), self.config.learning_rate)
        return (losses * factors).sum()


def uncertainty_step(weights: Tensor, losses: Tensor, learning_rate: float) -> Tensor:
    """One gradient step, in place, of s = log variance on exp(-s) L + s / 2, where the weight (T,) is exp(-s); the minimum is
    the weight 1 / (2 L). Tasks of loss 0 keep theirs."""
    slope = 0.5 - weights * losses
    return weights.mul_(torch.where(losses > 0.0, torch.exp(learning_rate * slope), 1.0))
