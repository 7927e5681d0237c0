"""Each task's gradient of all shared parameters: T backward passes through the trunk, for balancers that work on parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding


@dataclass(frozen=True)
class _Rows:
    """One parameter's gradients: (T, numel), or of an embedding table's looked-up rows only, (T, len(rows) * width)."""

    parameter: nn.Parameter
    gradients: Tensor
    rows: Tensor | None


@dataclass(frozen=True)
class SharedGradients:
    """The T gradients of every parameter that the representation depends on."""

    parts: tuple[_Rows, ...]

    @staticmethod
    def of(h: Tensor, at_h: Tensor, parameters: Sequence[nn.Parameter]) -> "SharedGradients":
        """h: (B, D). at_h: (T, B, D), each task's gradient at h. Parameters h does not depend on (the towers') are left out.

        Sparse gradients of embedding tables stay sparse, except under torch.distributed, where the joint gradient is dense.
        """
        by_task = [
            torch.autograd.grad(h, parameters, gradient, retain_graph=True, allow_unused=True)
            for gradient in at_h.unbind()
        ]
        parts = []
        for parameter, *gradients in zip(parameters, *by_task, strict=True):
            if gradients[0] is not None:
                parts.append(_part(parameter, gradients))
        return SharedGradients(tuple(parts))

    def gram(self) -> Tensor:
        """(T, T) inner products over all parts."""
        return torch.stack([part.gradients.float() @ part.gradients.float().T for part in self.parts]).sum(0)

    def carrier(self, factors: Tensor) -> Tensor:
        """A () function, linear in the parameters, whose gradient is the combination with the (T,) factors."""
        total = torch.zeros((), device=factors.device)
        for part in self.parts:
            combined = factors.to(part.gradients.dtype) @ part.gradients
            place: Tensor = part.parameter
            if part.rows is not None:
                place = embedding(part.rows, part.parameter, sparse=True)
            total = total + (place * combined.view_as(place)).sum()
        return total


def _part(parameter: nn.Parameter, gradients: list[Tensor]) -> _Rows:
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if gradients[0].is_sparse and not distributed:
        # The same lookups made all T, so their indices agree entry by entry.
        rows, owner = gradients[0]._indices()[0].unique(return_inverse=True)
        merged = gradients[0]._values().new_zeros(len(gradients), len(rows), parameter.shape[1])
        for target, gradient in zip(merged, gradients, strict=True):
            target.index_add_(0, owner, gradient._values())
        return _Rows(parameter, merged.flatten(1), rows)
    stacked = torch.stack([(g.to_dense() if g.is_sparse else g).flatten() for g in gradients])
    if distributed:
        dist.all_reduce(stacked)
        stacked /= dist.get_world_size()
    return _Rows(parameter, stacked, None)
