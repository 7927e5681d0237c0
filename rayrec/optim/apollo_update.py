"""APOLLO's arithmetic on tensors: no Python state, no host synchronization, no branch on a tensor's value.

Everything that changes from step to step comes in as a tensor (step sizes, decay, moments, norms), so that each function can
be compiled once and run ever after. Shapes: k matrices (m, n) at rank r; ``low`` is (m, r) when m >= n ("tall"), else (r, n).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.optim.random_projection import block_sum, project, project_stack

ScaleType = Literal["channel", "tensor"]

_FUSED_DEVICES = ("cpu", "cuda")  # where torch has a fused Adam kernel
_TINY = 1e-8  # keeps both quotients of norms finite, as in the reference


@dataclass(frozen=True)
class UpdateSettings:
    """What never changes between steps."""

    beta1: float
    beta2: float
    eps: float
    scale_type: ScaleType
    norm_growth: float | None
    tall: bool


def late_step(device: torch.device) -> Tensor | None:
    """() A step at which Adam's bias corrections are exactly 1, for torch's fused kernel; None where there is none."""
    return torch.full((), 1e12, device=device) if device.type in _FUSED_DEVICES else None


def step_sizes(
    counts: Tensor,  # steps made, this one included
    lr: float,
    beta1: float,
    beta2: float,
    dtype: torch.dtype,
) -> Tensor:  # same shape, of dtype: lr sqrt(1 - beta2^t) / (1 - beta1^t)
    t = counts.to(dtype)
    first = -torch.expm1(t * (math.log(beta1) if beta1 > 0 else -math.inf))
    second = -torch.expm1(t * (math.log(beta2) if beta2 > 0 else -math.inf))
    return second.sqrt_().mul_(lr).div_(first)


def update_stacked(
    params: list[Tensor],  # of one shape, all together k matrices; updated in place
    gradients: list[Tensor],  # same shapes
    projection: Tensor,  # (r, min(m, n))
    exp_avg: Tensor,  # (k, *low), updated in place
    exp_avg_sq: Tensor,  # (k, *low), updated in place
    norms: Tensor,  # (k,) remembered norms, updated in place
    sizes: Tensor,  # (k,)
    decay: Tensor | None,  # () learning rate times weight decay
    late: Tensor | None,  # as ``late_step`` gives it; None: plain expressions only, as a compiler likes them
    shape: tuple[int, int],  # (m, n)
    settings: UpdateSettings,
) -> None:
    """For small matrices: gradients are copied into one stack, so that each operation is called once for all of them."""
    stack = torch.stack(gradients).reshape(-1, *shape)  # (k, m, n)
    projected = project_stack(stack, projection).to(exp_avg.dtype)  # (k, *low)
    adam = _adam_direction(projected, exp_avg, exp_avg_sq, late, settings)
    update = stack * _scales(adam, projected, settings)
    if settings.norm_growth is not None:
        sizes = sizes.view(-1, 1, 1) * _limit(_norms(update), norms, settings.norm_growth)
    update *= sizes.view(-1, 1, 1)
    if decay is not None:
        torch._foreach_sub_(params, torch._foreach_mul(params, decay))  # more exact than times (1 - decay)
    torch._foreach_sub_(params, update.view(len(params), *params[0].shape).unbind())


def update_in_place(
    params: list[Tensor],
    gradients: list[Tensor],
    projection: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    norms: Tensor,
    sizes: Tensor,
    decay: Tensor | None,
    late: Tensor | None,
    matrices: tuple[int, int, int],  # (matrices in a parameter, m, n)
    scales_shape: tuple[int, ...],  # that of a parameter's scales, broadcasting against the parameter
    settings: UpdateSettings,
) -> None:
    """For large matrices: at most one scaled gradient at a time is allocated; the limiter works on norms of channels."""
    if matrices[0] == 1 and gradients[0].dim() == 2:
        views = gradients
    else:
        views = [matrix for gradient in gradients for matrix in gradient.reshape(matrices).unbind()]
    channels: list[Tensor] | None = None if settings.norm_growth is None or _by_columns(settings) else []
    parts = []
    for view in views:
        # Norms of rows first: all threads bring the gradient into the caches, where the projection finds it.
        if channels is not None:
            channels.append(_channel_norms(view, exp_avg.dtype, late is None and settings.scale_type == "tensor"))
        parts.append(project(view, projection, fused=late is not None))
    projected = (parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)).to(exp_avg.dtype)  # (k, *low)
    adam = _adam_direction(projected, exp_avg, exp_avg_sq, late, settings)
    scales = _scales(adam, projected, settings)  # (k, m, 1), (k, 1, n) or (k, 1, 1)
    if settings.norm_growth is not None:
        if channels is None:
            products = zip(views, scales.unbind(), strict=True)
            scaled = torch.stack([_row_norms(view * scale, exp_avg.dtype) for view, scale in products]).unsqueeze(-1)
        else:
            scaled = torch.stack(channels).unsqueeze(-1) * scales  # (k, m, 1)
        scales = scales * _limit(_norms(scaled), norms, settings.norm_growth)
    coefficients = (scales * sizes.view(-1, 1, 1)).view(len(params), *scales_shape).unbind()
    if decay is not None:
        torch._foreach_addcmul_(params, params, [decay.to(params[0].dtype)] * len(params), value=-1.0)
    if params[0].dtype == gradients[0].dtype == scales.dtype:
        torch._foreach_addcmul_(params, gradients, coefficients, value=-1.0)
    else:
        for parameter, gradient, coefficient in zip(params, gradients, coefficients, strict=True):
            parameter.sub_(gradient * coefficient)


def update_adamw(
    params: list[Tensor],  # updated in place
    gradients: list[Tensor],  # same shapes, perhaps of another dtype than moments
    exp_avgs: list[Tensor],  # updated in place
    exp_avg_sqs: list[Tensor],  # updated in place
    counts: list[Tensor],  # () float32 each: steps made, this one included
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """``torch.optim.AdamW``'s update, with moments that may be wider than the parameters."""
    beta1, beta2 = betas
    gradients = [g.to(m.dtype) for g, m in zip(gradients, exp_avgs, strict=True)]
    wide = [p if p.dtype == m.dtype else p.to(m.dtype) for p, m in zip(params, exp_avgs, strict=True)]
    if params[0].device.type in _FUSED_DEVICES:
        torch._fused_adamw_(
            wide, gradients, exp_avgs, exp_avg_sqs, [], counts, lr=lr, beta1=beta1, beta2=beta2,
            weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
        )  # fmt: skip
    else:
        steps = torch.stack(counts)
        sizes = step_sizes(steps, lr, beta1, beta2, torch.float32)
        roots = step_sizes(steps, 1.0, 0.0, beta2, torch.float32)  # sqrt(1 - beta2^t)
        torch._foreach_mul_(wide, 1.0 - lr * weight_decay)
        torch._foreach_lerp_(exp_avgs, gradients, 1.0 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - beta2)
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, torch._foreach_mul(list(roots.unbind()), eps))
        torch._foreach_div_(denominators, list(sizes.unbind()))
        torch._foreach_addcdiv_(wide, exp_avgs, denominators, value=-1.0)
    for parameter, updated in zip(params, wide, strict=True):
        if updated is not parameter:
            parameter.copy_(updated)


def _channel_norms(
    matrix: Tensor,  # (m, n)
    dtype: torch.dtype,
    as_projected: bool,  # along the dimension in which ``project`` sums, so that a compiler makes one pass of both
) -> Tensor:  # (m,), or (n,) of a wide matrix ``as_projected``
    if as_projected and matrix.shape[0] < matrix.shape[1]:
        return block_sum(matrix.to(dtype).square()).sqrt()
    return _row_norms(matrix, dtype)


def _row_norms(
    matrix: Tensor,  # (m, n)
    dtype: torch.dtype,
) -> Tensor:  # (m,)
    return torch.linalg.vector_norm(matrix, dim=1, dtype=dtype)


def _by_columns(settings: UpdateSettings) -> bool:
    """Whether channels are columns, whose norms are slow to take."""
    return settings.scale_type == "channel" and not settings.tall


def _norms(stack: Tensor) -> Tensor:
    """Norms of the k members of (k, ., .), as (k, 1, 1)."""
    return torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)


def _adam_direction(
    gradient: Tensor,  # any shape
    exp_avg: Tensor,  # same shape, updated in place
    exp_avg_sq: Tensor,  # same shape, updated in place
    late: Tensor | None,
    settings: UpdateSettings,
) -> Tensor:  # M / (sqrt(V) + eps), without bias correction
    if late is None:
        exp_avg.lerp_(gradient, 1.0 - settings.beta1)
        exp_avg_sq.mul_(settings.beta2).addcmul_(gradient, gradient, value=1.0 - settings.beta2)
        return exp_avg / exp_avg_sq.sqrt().add_(settings.eps)
    direction = torch.zeros_like(
        gradient
    )  # a parameter that starts at zero and steps upwards, long past the corrections
    torch._fused_adamw_(
        [direction], [gradient], [exp_avg], [exp_avg_sq], [], [late], lr=-1.0, beta1=settings.beta1,
        beta2=settings.beta2, weight_decay=0.0, eps=settings.eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    return direction


def _scales(
    adam: Tensor,  # (k, *low)
    projected: Tensor,  # (k, *low)
    settings: UpdateSettings,
) -> Tensor:  # (k, m, 1), (k, 1, n), or (k, 1, 1)
    if settings.scale_type == "tensor":
        return _norms(adam) / (_norms(projected) + _TINY)
    if settings.tall:
        stretched, plain = (torch.linalg.vector_norm(x, dim=2, keepdim=True) for x in (adam, projected))
    else:  # the norm kernel is slow across rows; a sum of squares is not
        stretched, plain = ((x * x).sum(1, keepdim=True).sqrt_() for x in (adam, projected))
    return stretched / (plain + _TINY)


def _limit(
    norms: Tensor,  # (k, 1, 1) norms of the updates
    previous: Tensor,  # (k,) remembered norms, updated in place
    growth: float,
) -> Tensor:  # (k, 1, 1) factors in (0, 1]
    factors = ((previous + _TINY).mul_(growth).view(-1, 1, 1) / norms).clamp_(max=1.0)
    limited = (norms * factors).flatten()
    previous.copy_(torch.where(limited > 0, limited, previous))
    return factors
