"""MultiBalance as published (arXiv 2411.11871): steps towards the min-norm weights, by historic gradient norms."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.methods.balancing.combining import Combining, CombiningBalancer, rescaled
from rayrec.methods.balancing.simplex import project_on_simplex


@dataclass(frozen=True)
class Multibalance(Combining):
    """With g_m the gradient of task m's loss, lambda0 uniform, V the matrix of all v_m:

        u_m <- (1 - gamma) u_m + gamma |g_m|         v_m = u_m g_m / |g_m|
        lambda <- Proj_simplex(lambda - beta V^T (V lambda + rho V lambda0))

    and the trunk gets V lambda: this batch's directions with historic norms. Tasks of small gradients gain weight, so
    the scale of a loss matters; the combination is a mean of gradients, not their sum.
    """

    method: Literal["multibalance"] = "multibalance"
    """What names the method in JSON and on command lines."""
    norm_rate: float = 0.01
    """gamma, of the running norms (its value is uncertain)"""
    step_size: float = 1.0
    """beta, of the weights (its value is uncertain)"""
    uniform_pull: float = 0.1
    """rho, the pull to uniform weights."""
    rescale: bool = False
    """Bring the combination to the norm of the plain sum of gradients: ours, not in the paper."""

    def __post_init__(self) -> None:
        self._check_at_least_0("step_size", "uniform_pull")
        if not 0 < self.norm_rate <= 1:
            raise ValueError(f"norm_rate must lie in (0, 1], not {self.norm_rate}")

    def balancer(self, tasks: int, width: int) -> "MultibalanceBalancer":
        return MultibalanceBalancer(self, tasks)


class MultibalanceBalancer(CombiningBalancer):
    """Buffers: ``weights`` (T,), lambda; ``norms`` (T,), u, that starts as the first gradient's norm (the paper does not say)."""

    norms: Tensor

    def __init__(self, config: Multibalance, tasks: int) -> None:
        super().__init__(config.level, tasks)
        self.config = config
        self.register_buffer("norms", torch.zeros(tasks))

    @torch.no_grad()
    def coefficients(self, gram: Tensor) -> Tensor:
        """A task without gradient in this batch keeps its norm and its weight, and has no say."""
        self.steps += 1
        if self.tasks == 1:
            return torch.ones_like(gram[0])
        config, norms = self.config, gram.diagonal().sqrt()
        present = norms > 0.0
        first = present & (self.norms == 0.0)
        self.norms.lerp_(norms, torch.where(first, 1.0, config.norm_rate * present))
        stretch = torch.where(present, self.norms / norms, 0.0)  # v_m = stretch_m g_m
        pulled = self.weights + config.uniform_pull / self.tasks
        moved = self.weights - config.step_size * (torch.outer(stretch, stretch) * gram @ pulled)
        mass = 1.0 - torch.where(present, 0.0, self.weights).sum()
        projected = project_on_simplex(torch.where(present, moved, -1e30), mass)
        self.weights.copy_(torch.where(present, projected, self.weights))
        factors = self.weights * stretch
        return rescaled(factors, gram) if config.rescale else factors
