"""Our own form of MultiBalance, in the manner of MoCo: min-norm weights of a running Gram matrix of normalized gradients."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.methods.balancing import simplex
from rayrec.methods.balancing.tracked import Tracked


@dataclass(frozen=True)
class RunningMinNorm(Tracked):
    """Weights on the simplex that minimize w^T (M + ridge * mean of its diagonal) w, M the running Gram matrix. The
    scale of a loss changes nothing: gradients are divided by their running norms, and the combination is as long as
    the plain sum."""

    method: Literal["running_min_norm"] = "running_min_norm"
    """What names the method in JSON and on command lines."""
    normalize: bool = True
    decay: float = 0.99
    rescale: bool = True
    solver: Literal["projected_gradient", "exact"] = "projected_gradient"
    """``solver_steps`` projected gradient steps from the last weights, on the gradients' device; or the exact minimum."""
    solver_steps: int = 20
    """Projected gradient steps of that solver at each training step."""
    ridge: float = 1e-3
    """rho, added to the diagonal relative to its mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least_0("ridge")
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps must be at least 1, not {self.solver_steps}")

    def weights(self, gram: Tensor, present: Tensor, last: Tensor, step: Tensor) -> Tensor:
        ridged = gram + self.ridge * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
        if self.solver == "projected_gradient":
            return simplex.min_norm_step(ridged, last, self.solver_steps, present)
        return super().weights(ridged, present, last, step)

    def task_weights(self, gram: Tensor, step: int) -> Tensor:
        return simplex.min_norm(gram)
