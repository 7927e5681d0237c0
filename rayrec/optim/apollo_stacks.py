"""Where APOLLO's state lives: the moments of all parameters of one shape in one stack, and who of them steps together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rayrec.optim.apollo_groups import matrix_rank, matrix_shape
from rayrec.optim.apollo_update import late_step

STACK_LIMIT = 1 << 16  # elements: the gradients of larger matrices are not copied into stacks
CHUNK_LIMIT = 1 << 21  # elements of gradient worked on at once: 8 MiB in float32, about what the caches keep


class StepCounts:
    """The steps that each of some parameters on one device has made: one tensor for arithmetic, and integers on the host.

    ``state[p]["step"]`` of each parameter is a () float32 view of the tensor, so that a state dict holds it.
    """

    def __init__(self, params: list[Tensor], states: dict[Tensor, Any]) -> None:
        """Goes on from the steps that ``states`` holds, which are then read on the host, once."""
        self.params = params
        self.made = [int(states[p]["step"]) if "step" in states[p] else 0 for p in params]
        counts = torch.zeros(()) if not any(self.made) else torch.tensor(self.made, dtype=torch.float32)
        self.counts = counts.to(params[0].device).expand(len(params)).contiguous()  # (len(params),)
        self.views = list(self.counts.unbind())
        for parameter, view in zip(params, self.views, strict=True):
            states[parameter]["step"] = view

    def current(self, states: dict[Tensor, Any]) -> bool:
        """Whether ``states`` still refers to these counts: someone may have replaced the tensors."""
        return all(states[p].get("step") is view for p, view in zip(self.params, self.views, strict=True))

    def advance(self, members: Sequence[int]) -> None:
        """One more step for these parameters."""
        if len(members) == len(self.made):
            self.counts.add_(1.0)
        elif members:
            torch._foreach_add_([self.views[i] for i in members], 1.0)
        for i in members:
            self.made[i] += 1


@dataclass
class MatrixStack:
    """Parameters of one shape, whose moments live in one stack; ``state`` of each parameter holds views of it."""

    params: list[Tensor]
    steps: StepCounts
    matrices: int  # a parameter
    rows: int
    columns: int
    rank: int
    stacked: bool  # small enough for gradients to be copied into one stack
    scales_shape: tuple[int, ...]
    exp_avg: Tensor  # (k, rows, rank) when tall, else (k, rank, columns); k = len(params) * matrices
    exp_avg_sq: Tensor
    norms: Tensor  # (k,) norm of the last limited update, infinite before the first
    views: list[Tensor]
    late: Tensor | None
    _places: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @property
    def tall(self) -> bool:
        return self.rows >= self.columns

    @property
    def chunk(self) -> int:
        """Parameters worked on at once."""
        return max(1, CHUNK_LIMIT // (self.matrices * self.rows * self.columns))

    @staticmethod
    def make(
        params: list[Tensor], group: dict[str, Any], dtype: torch.dtype, states: dict[Tensor, Any]
    ) -> "MatrixStack":
        """A stack with what ``states`` holds already, or fresh moments; afterwards ``states`` refers to the stack."""
        shape, batch_dims, device = tuple(params[0].shape), group["batch_dims"], params[0].device
        matrices, rows, columns = matrix_shape(shape, batch_dims)
        rank = matrix_rank(group["rank"], rows, columns)
        tall = rows >= columns
        low = (rows, rank) if tall else (rank, columns)
        total = len(params) * matrices
        exp_avg = torch.zeros(total, *low, dtype=dtype, device=device)
        exp_avg_sq = torch.zeros_like(exp_avg)
        norms = torch.full((total,), math.inf, dtype=dtype, device=device)
        own, rest = shape[:batch_dims], shape[batch_dims + 1 :]
        views = [list(t.view(len(params), *own, *t.shape[1:]).unbind()) for t in (exp_avg, exp_avg_sq, norms)]
        for i, parameter in enumerate(params):
            state = states[parameter]
            for key, stack in zip(("exp_avg", "exp_avg_sq", "update_norm"), views, strict=True):
                if key in state:
                    if state[key].shape != stack[i].shape:
                        expected = f"{tuple(stack[i].shape)} for a {shape} parameter at rank {rank}"
                        raise ValueError(f"{key} in the state has shape {tuple(state[key].shape)}, not {expected}")
                    stack[i].copy_(state[key])
                state[key] = stack[i]
        if group["scale_type"] == "tensor":
            scales_shape = (*own, 1, *(1 for _ in rest))
        elif tall:
            scales_shape = (*own, rows, *(1 for _ in rest))
        else:
            scales_shape = (*own, 1, *rest)
        stacked = rows * columns <= STACK_LIMIT
        return MatrixStack(
            params, StepCounts(params, states), matrices, rows, columns, rank, stacked, scales_shape, exp_avg,
            exp_avg_sq, norms, views[0], late_step(device),
        )  # fmt: skip

    def current(self, states: dict[Tensor, Any]) -> bool:
        """Whether ``states`` still refers to this stack: someone may have replaced the tensors."""
        return all(states[p].get("exp_avg") is view for p, view in zip(self.params, self.views, strict=True))

    def members_by_period(self, projection_period: int) -> dict[int, list[int]]:
        """Indices of the parameters with a gradient, by the projection period of their next step."""
        members: dict[int, list[int]] = {}
        for i, (parameter, made) in enumerate(zip(self.params, self.steps.made, strict=True)):
            if parameter.grad is not None:
                members.setdefault(made // projection_period, []).append(i)
        return members

    def place(self, members: Sequence[int]) -> slice | Tensor:
        """Where the matrices of those parameters are in the stack: a slice (views) when they are neighbours."""
        first, last = members[0], members[-1]
        if last - first + 1 == len(members):
            return slice(first * self.matrices, (last + 1) * self.matrices)
        if tuple(members) not in self._places:
            if len(self._places) > 64:
                self._places.clear()
            index = torch.tensor(members)[:, None] * self.matrices + torch.arange(self.matrices)
            self._places[tuple(members)] = index.flatten().to(self.norms.device)
        return self._places[tuple(members)]
