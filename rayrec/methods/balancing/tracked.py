"""Balancers that weigh gradients by a function of their Gram matrix, of this batch or of a running mean."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.methods.balancing.balancer import averaged, world_size
from rayrec.methods.balancing.combining import Combining, CombiningBalancer, rescaled, row_gram


@dataclass(frozen=True)
class Tracked(Combining):
    """The defaults are the papers': the raw gradients of this batch, combined by the weights as they are."""

    normalize: bool = False
    """Divide each task's gradient by the running mean of its norm."""
    decay: float = 0.0
    """beta of the running means of norms and Gram matrix; 0 = this batch."""
    statistic: Literal["gram", "summed_gradient"] = "gram"
    """What runs: the Gram matrix of the per-row gradients; or the gradients summed over rows, (T, D), whose
    Gram it is."""
    rescale: bool = False
    """Bring the combination to the norm of the plain sum of gradients, so that the learning rate keeps its meaning."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {self.decay}")
        if self.level == "parameters" and self.statistic == "summed_gradient":
            raise ValueError("statistic summed_gradient belongs to level representation")

    def balancer(self, tasks: int, width: int) -> "TrackedBalancer":
        return TrackedBalancer(self, tasks, width)

    def task_weights(self, gram: Tensor, step: int) -> Tensor:
        """gram: (P, P) of the tasks with a gradient, on any device; give their (P,) weights. step counts from 1.

        A subclass gives this, or ``weights`` of all tasks.
        """
        raise NotImplementedError

    def weights(self, gram: Tensor, present: Tensor, last: Tensor, step: Tensor) -> Tensor:
        """(T,) weights of tracked gradients from their Gram matrix (T, T) and the weights of the step before, (T,).

        present: (T,) bool, the tasks with a gradient in this batch; the others have no say and get weight 0.
        """
        tasks = present.nonzero().squeeze(1)
        weights = torch.zeros_like(last)
        if len(tasks):
            weights[tasks] = self.task_weights(gram[tasks][:, tasks], int(step)).to(weights)
        return weights


class TrackedBalancer(CombiningBalancer):
    """Buffers: ``norms`` (T,) and ``gram`` (T, T), the running means, ``seen`` (T, T), the number of batches they are over;
    ``summed`` (T, D) of that statistic."""

    norms: Tensor
    gram: Tensor
    seen: Tensor
    summed: Tensor

    def __init__(self, config: Tracked, tasks: int, width: int) -> None:
        super().__init__(config.level, tasks)
        self.config = config
        self.register_buffer("norms", torch.zeros(tasks))
        self.register_buffer("gram", torch.zeros(tasks, tasks))
        self.register_buffer("seen", torch.zeros(tasks, tasks))
        if config.statistic == "summed_gradient":
            self.register_buffer("summed", torch.zeros(tasks, width))

    def coefficients_at(self, gradients: Tensor) -> Tensor:
        if self.config.statistic == "gram":
            return super().coefficients_at(gradients)
        gram, summed = row_gram(gradients.flatten(1).float()), gradients.float().sum(1)
        joint = averaged(torch.cat([gram.flatten() / world_size(), summed.flatten()]))
        return self.coefficients(joint[: gram.numel()].view_as(gram), joint[gram.numel() :].view_as(summed))

    @torch.no_grad()
    def coefficients(self, gram: Tensor, summed: Tensor | None = None) -> Tensor:
        """summed: the gradients summed over rows (T, D), for that statistic. A task without gradient in this batch (its label is
        nowhere observed) leaves the running means alone and has no say."""
        self.steps += 1
        if self.tasks == 1:
            return torch.ones_like(gram[0])
        present = gram.diagonal() > 0.0
        self._track(gram, present, summed)
        self.weights.copy_(self.config.weights(self.gram, present, self.weights, self.steps))
        factors = self.weights / self._divisors() if self.config.normalize else self.weights.clone()
        return rescaled(factors, gram) if self.config.rescale else factors

    def _track(self, gram: Tensor, present: Tensor, summed: Tensor | None) -> None:
        """Running means that start as plain means: the rate is 1 / count until that falls to 1 - decay."""
        both = present & present.unsqueeze(1)
        rate = both / (self.seen + 1.0).clamp_max(1.0 / (1.0 - self.config.decay))
        self.seen += both
        self.norms.lerp_(gram.diagonal().sqrt(), rate.diagonal())
        divisors = self._divisors() if self.config.normalize else torch.ones_like(self.norms)
        if summed is None:
            self.gram.lerp_(gram / torch.outer(divisors, divisors), rate)
        else:
            self.summed.lerp_(summed / divisors.unsqueeze(1), rate.diagonal().unsqueeze(1))
            self.gram.copy_(self.summed @ self.summed.T)

    def _divisors(self) -> Tensor:
        return torch.where(self.norms > 0.0, self.norms, 1.0)
