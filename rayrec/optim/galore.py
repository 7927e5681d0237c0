"""GaLore: Adam on gradients projected to their leading singular vectors, projected back; what APOLLO is compared with.

Source: Zhao et al. 2024, arXiv 2403.03507, Algorithm 2. Unlike APOLLO it takes a singular value decomposition of every matrix
now and then, and its projections depend on the data, so they are part of the state.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from rayrec.errors import DivergedError
from rayrec.optim.apollo_groups import matrix_rank, matrix_shape
from rayrec.optim.eager import EagerOptimizer


class Galore(EagerOptimizer):
    """For parameters of two or more dimensions; ``batch_dims=1``: the first one counts matrices, otherwise as in ``Apollo``.

    rank: rows of the projection, or a float in (0, 1]: that share of each matrix's smaller dimension.
    scale: alpha, what the projected-back update is multiplied by. projection_period: steps between decompositions (T).
    weight_decay: decoupled.

    State of an (m, n) matrix: 2 r max(m, n) moments and the projection, r min(m, n). Raises ValueError when a rank does not fit.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, rank: int | float = 0.25, scale: float = 0.25, projection_period: int = 200,
        batch_dims: int = 0,
    ) -> None:  # fmt: skip
        if not lr >= 0 or not weight_decay >= 0 or not scale > 0 or projection_period < 1:
            raise ValueError("GaLore needs lr >= 0, weight_decay >= 0, scale > 0 and projection_period >= 1")
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "rank": rank, "scale": scale,
            "projection_period": projection_period, "batch_dims": batch_dims,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                _, rows, columns = matrix_shape(parameter.shape, group["batch_dims"])
                matrix_rank(group["rank"], rows, columns)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the parameters' gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        shape = matrix_shape(parameter.shape, group["batch_dims"])
        matrices = gradient.reshape(shape)  # (k, m, n)
        tall, state = shape[1] >= shape[2], self.state[parameter]
        made = int(state["step"]) if state else 0
        if made % group["projection_period"] == 0:
            state["projection"] = singular_vectors(
                matrices, matrix_rank(group["rank"], *shape[1:])
            )  # (k, r, min(m, n))
        projection = state["projection"]
        projected = matrices @ projection.mT if tall else projection @ matrices  # (k, m, r) or (k, r, n)
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(projected), torch.zeros_like(projected)
        state["step"] = torch.tensor(float(made + 1))  # on the CPU, as torch's own optimizers keep it
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(projected, 1.0 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(projected, projected, value=1.0 - beta2)
        corrected = (state["exp_avg_sq"] / (1.0 - beta2 ** (made + 1))).sqrt_().add_(group["eps"])
        direction = state["exp_avg"] / corrected / (1.0 - beta1 ** (made + 1))
        full = direction @ projection if tall else projection.mT @ direction  # (k, m, n)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.sub_(full.view(parameter.shape), alpha=group["lr"] * group["scale"])


def singular_vectors(matrices: Tensor, rank: int) -> Tensor:
    """The first ``rank`` singular vectors of the smaller side of each of (k, m, n), as rows: (k, rank, min(m, n)).

    Raises DivergedError for matrices that are not finite.
    """
    if not torch.isfinite(matrices).all():
        raise DivergedError(
            "a gradient is not finite (NaN or infinite): training has diverged; lower the learning rate"
        )
    left, _, right = torch.linalg.svd(matrices.float(), full_matrices=False)
    vectors = right[:, :rank] if matrices.shape[1] >= matrices.shape[2] else left[:, :, :rank].mT
    return vectors.to(matrices.dtype).contiguous()
