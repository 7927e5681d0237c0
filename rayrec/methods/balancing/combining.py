"""Balancers that combine the tasks' gradients by one factor a task, made of the gradients' Gram matrix alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayrec.methods.balancing.balancer import Balancer, Balancing, averaged, world_size
from rayrec.methods.shared_gradients import SharedGradients

_STATIONARY = (
    1e-3  # a combination shorter than that share of its parts is noise: float32 Gram entries cancel to about 3e-4
)


@dataclass(frozen=True)
class Combining(Balancing):
    """Where gradients are taken."""

    level: Literal["representation", "parameters"] = "representation"
    """With respect to the shared representation, or to all shared parameters (T backward passes through the trunk)."""


class CombiningBalancer(Balancer, ABC):
    """Gives the trunk ``sum_t coefficients[t] * gradient_t``; one task alone is trained plainly."""

    def __init__(self, level: Literal["representation", "parameters"], tasks: int) -> None:
        super().__init__(tasks)
        self.level = level

    @abstractmethod
    def coefficients(self, gram: Tensor) -> Tensor:
        """Take in the joint batch's Gram matrix (T, T) of raw gradients; give the (T,) factors of raw gradients. Once a step."""

    def coefficients_at(self, gradients: Tensor) -> Tensor:
        """``coefficients`` of this worker's gradients (T, B, D) at the representation: one all-reduce of T x T numbers."""
        return self.coefficients(averaged(row_gram(gradients.flatten(1).float()) / world_size()))

    def branch(self, h: Tensor) -> Tensor:
        """One view of the representation h (B, D) for each task's tower: (T, B, D), no copy."""
        if self.level == "parameters":
            return h.detach().expand(self.tasks, *h.shape).requires_grad_()
        branches: Tensor = _Branch.apply(h, self)
        return branches

    def total(self, losses: Tensor, h: Tensor, inputs: Tensor, parameters: Iterable[nn.Parameter] = ()) -> Tensor:
        if self.level == "representation" or not losses.requires_grad:
            return losses.sum()
        (at_h,) = torch.autograd.grad(losses.sum(), inputs, retain_graph=True)  # (T, B, D)
        gradients = SharedGradients.of(h, at_h, [p for p in parameters if p.requires_grad])
        # A linear function of the parameters whose gradient is the combination: so it reaches them in the one backward pass
        # that also trains the towers, and DDP's hooks see it. Its value is taken off again.
        carrier = gradients.carrier(self.coefficients(gradients.gram()))
        return losses.sum() + (carrier - carrier.detach())


def rescaled(factors: Tensor, gram: Tensor) -> Tensor:
    """The (T,) factors, brought to where the combination is as long as the plain sum of gradients: ours, in no paper; the
    learning rate then keeps its meaning. A combination that is but noise is not blown up, and one whose weight lies on tasks
    without a gradient stays 0: it has no direction, and the others were given no say."""
    plain = gram.sum().clamp_min(0.0).sqrt()
    length = (factors @ gram @ factors).clamp_min(0.0).sqrt()
    parts = factors @ gram.diagonal().sqrt()
    length = length.maximum(_STATIONARY * parts)
    return factors * torch.where(length > 0.0, plain / length, 0.0)


class _Branch(torch.autograd.Function):
    """Forward: h (B, D) seen T times, (T, B, D). Backward: the T gradients that come back, combined as the balancer says."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, balancer: CombiningBalancer) -> Tensor:
        ctx.balancer = balancer
        return h.expand(balancer.tasks, *h.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        factors = ctx.balancer.coefficients_at(gradients)
        combined = factors @ gradients.flatten(1).float()
        return combined.view(gradients.shape[1:]).to(gradients.dtype), None


def row_gram(rows: Tensor) -> Tensor:
    """rows (T, P) with T small and P large to their Gram matrix (T, T), in pieces that keep all threads at work."""
    pieces = 16
    even = rows.shape[1] - rows.shape[1] % pieces
    pieced = rows[:, :even].unflatten(1, (pieces, -1)).transpose(0, 1)  # (16, T, P / 16)
    rest = rows[:, even:]
    return torch.bmm(pieced, pieced.transpose(1, 2)).sum(0) + rest @ rest.T
