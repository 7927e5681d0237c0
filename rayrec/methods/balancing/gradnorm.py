"""GradNorm (Chen et al. 2018, algorithm 1): losses are weighed so that tasks that learn slowly get larger gradients."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayrec.methods.balancing.balancer import averaged
from rayrec.methods.balancing.combining import Combining, CombiningBalancer


@dataclass(frozen=True)
class Gradnorm(Combining):
    """Towers feel the weights too, since losses are what is weighed."""

    method: Literal["gradnorm"] = "gradnorm"
    """What names the method in JSON and on command lines."""
    asymmetry: float = 1.5
    """alpha, how strongly tasks that learn slowly are pulled."""
    learning_rate: float = 0.025
    """Of the loss weights."""
    relative: bool = False
    """Divide the slope by the mean gradient norm: ours; the learning rate then does not hang on the losses' scale (at
    the representation gradients are small, and as published the weights hardly move)."""

    def __post_init__(self) -> None:
        self._check_at_least_0("asymmetry", "learning_rate")

    def balancer(self, tasks: int, width: int) -> "GradnormBalancer":
        return GradnormBalancer(self, tasks)


class GradnormBalancer(CombiningBalancer):
    """Buffers: ``loss_weights`` and ``first_losses`` (T,)."""

    loss_weights: Tensor
    first_losses: Tensor

    def __init__(self, config: Gradnorm, tasks: int) -> None:
        super().__init__(config.level, tasks)
        self.config = config
        self.register_buffer("loss_weights", torch.ones(tasks))
        self.register_buffer("first_losses", torch.zeros(tasks))

    @property
    def shares(self) -> Tensor:
        return self.loss_weights.clone()

    def total(self, losses: Tensor, h: Tensor, inputs: Tensor, parameters: Iterable[nn.Parameter] = ()) -> Tensor:
        with torch.no_grad():
            self._losses = averaged(losses.clone())  # the joint values, for the update of the weights
            self.first_losses.copy_(torch.where(self.first_losses > 0.0, self.first_losses, self._losses))
        return super().total(losses * self.loss_weights.clone(), h, inputs, parameters)

    @torch.no_grad()
    def coefficients(self, gram: Tensor) -> Tensor:
        """Moves the loss weights; gradients are left as they are."""
        self.steps += 1
        gradnorm_step(
            self.loss_weights,
            norms=gram.diagonal().sqrt(),
            progress=self._losses / self.first_losses,
            asymmetry=self.config.asymmetry,
            learning_rate=self.config.learning_rate,
            relative=self.config.relative,
        )
        return torch.ones_like(gram[0])


def gradnorm_step(
    weights: Tensor, *, norms: Tensor, progress: Tensor, asymmetry: float, learning_rate: float, relative: bool
) -> Tensor:
    """One step of the weights (T,), in place.

    norms: (T,) gradient norms G_t of the *weighted* losses. progress: (T,) loss now / loss at the start. Each G_t is drawn to the
    mean G times (relative progress)^asymmetry by a gradient step on sum |G_t - target_t|, the targets held fixed (relative:
    divided by G); then these weights are scaled so that all sum to T. Tasks with gradient 0 in this batch keep theirs.
    """
    seen = norms > 0.0
    count = seen.sum().clamp_min(1)
    mean_norm = norms.sum() / count
    pace = progress / (torch.where(seen, progress, 0.0).sum() / count).clamp_min(1e-12)
    target = mean_norm * pace.pow(asymmetry)
    slope = torch.sign(norms - target) * norms / weights
    if relative:
        slope = slope / mean_norm.clamp_min(torch.finfo(norms.dtype).tiny)
    moved = torch.where(seen, (weights - learning_rate * slope).clamp_min(1e-3), 0.0)
    mass = len(weights) - torch.where(seen, 0.0, weights).sum()
    return weights.copy_(torch.where(seen, moved * (mass / moved.sum()), weights))
