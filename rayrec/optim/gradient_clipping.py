"""Clipping by the global norm, sparse embedding gradients included."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rayrec.optim.sparse_rows import merge_rows


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale all gradients in place so that their joint L2 norm is at most ``largest``; returns the norm before, ().

    Sparse gradients become ones with each row once. No host synchronization for dense gradients.
    """
    values: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = merge_rows(parameter.grad)
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    if not values:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values)))
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    if factor.device.type != "cpu" or factor != 1.0:  # on a CPU looking at it costs nothing
        torch._foreach_mul_(values, factor)
    return norm
