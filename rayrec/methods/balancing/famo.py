"""FAMO (Liu et al. 2023, algorithm 1): losses are weighed so that all fall at the same relative pace; no gradient by task."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayrec.methods.balancing.balancer import Balancer, Balancing, averaged


@dataclass(frozen=True)
class Famo(Balancing):
    """With z = softmax(xi), a step descends c sum_t z_t log L_t, c = 1 / sum_t (z_t / L_t), and then moves

        xi <- xi - beta (J^T (log L - log L') + gamma xi)        J = dz / dxi

    L' the losses after the step. The paper looks at the same batch again; here L' is the next batch's (choice: no
    further forward pass, at the price of the batches' noise). Towers feel the weights too.
    """

    method: Literal["famo"] = "famo"
    """What names the method in JSON and on command lines."""
    learning_rate: float = 0.025
    """beta, of xi."""
    decay: float = 0.01
    """gamma, the pull of xi to 0."""

    def __post_init__(self) -> None:
        self._check_at_least_0("learning_rate", "decay")

    def balancer(self, tasks: int, width: int) -> "FamoBalancer":
        return FamoBalancer(self, tasks)


class FamoBalancer(Balancer):
    """Buffers: ``weights`` (T,) of the losses, of sum 1; ``logits`` (T,), xi; ``last_losses`` (T,), 0 = not seen yet."""

    logits: Tensor
    last_losses: Tensor

    def __init__(self, config: Famo, tasks: int) -> None:
        super().__init__(tasks)
        self.config = config
        self.register_buffer("logits", torch.zeros(tasks))
        self.register_buffer("last_losses", torch.zeros(tasks))

    def total(self, losses: Tensor, h: Tensor, inputs: Tensor, parameters: Iterable[nn.Parameter] = ()) -> Tensor:
        """A task of loss 0 (observed nowhere in this batch) has no say; it keeps its last loss and, but for the pull to 0, its
        logit."""
        with torch.no_grad():
            joint = averaged(losses.detach().clone())
            present = joint > 0.0
            compared = present & (self.last_losses > 0.0)
            improved = torch.where(compared, self.last_losses.log() - joint.log(), 0.0)
            if self.steps > 0:
                z = torch.where(compared, self.logits.softmax(0), 0.0)
                z = z / z.sum().clamp_min(torch.finfo(z.dtype).tiny)  # among those that can be compared
                slope = z * (improved - z @ improved)
                self.logits -= self.config.learning_rate * (slope + self.config.decay * self.logits)
            self.last_losses.copy_(torch.where(present, joint, self.last_losses))
            parts = torch.where(present, self.logits.softmax(0) / joint, 0.0)
            self.weights.copy_(parts / parts.sum().clamp_min(torch.finfo(parts.dtype).tiny))
            self.steps += 1
        return (losses * self.weights.clone()).sum()
