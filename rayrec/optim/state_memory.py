"""Bytes of parameters, gradients and optimizer state, by parameter group: predicted from shapes, or counted in a live optimizer.

The prediction needs no memory: model and optimizer may lie on the meta device.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rayrec.optim.apollo import Apollo
from rayrec.optim.apollo_groups import matrix_rank, matrix_shape
from rayrec.optim.galore import Galore
from rayrec.optim.optimizer_chain import OptimizerChain
from rayrec.optim.rowwise_adagrad import RowwiseAdagrad

_STEP_BYTES = 4  # a () float32 tensor a parameter


@dataclass(frozen=True)
class GroupMemory:
    """One parameter group. kind: what updates it ("adamw", "apollo", "galore", "muon", "rowwise_adagrad").

    numbers: parameters counted one by one. gradient_bytes: dense gradients; those of sparse tables depend on the batch and count
    0. state_bytes: every tensor that the optimizer keeps for the group and writes to a checkpoint.
    """

    kind: str
    tensors: int
    numbers: int
    parameter_bytes: int
    gradient_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class TrainingMemory:
    """All groups. projection_bytes: random projections that APOLLO holds while it runs, shared by all matrices of a size and
    drawn again from seeds: in no checkpoint."""

    groups: tuple[GroupMemory, ...]
    projection_bytes: int

    @property
    def parameter_bytes(self) -> int:
        return sum(group.parameter_bytes for group in self.groups)

    @property
    def gradient_bytes(self) -> int:
        return sum(group.gradient_bytes for group in self.groups)

    @property
    def state_bytes(self) -> int:
        return sum(group.state_bytes for group in self.groups)

    @property
    def total_bytes(self) -> int:
        """Parameters, gradients, state and projections; without activations."""
        return self.parameter_bytes + self.gradient_bytes + self.state_bytes + self.projection_bytes


def predicted_memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingMemory:
    """What training ``model`` with ``optimizer`` keeps, from shapes and settings alone.

    Raises TypeError for an optimizer of another kind than ``rayrec.optim.build_optimizer`` makes.
    """
    sparse = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
    groups = []
    projections: dict[tuple[object, ...], int] = {}
    for part, group in _groups(optimizer):
        kind = _kind(part, group)
        state = sum(_state_bytes(part, kind, group, parameter) for parameter in group["params"])
        if kind == "apollo":
            for parameter in group["params"]:
                _, rows, columns = matrix_shape(parameter.shape, group["batch_dims"])
                rank, smaller = matrix_rank(group["rank"], rows, columns), min(rows, columns)
                projections[(group["seed"], rank, smaller, parameter.dtype)] = rank * smaller * parameter.itemsize
        groups.append(_memory(kind, group["params"], sparse, state))
    return TrainingMemory(tuple(groups), sum(projections.values()))


def measured_memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingMemory:
    """What lies in memory now: the gradients that are there, and every tensor of the optimizer's state."""
    groups = []
    for part, group in _groups(optimizer):
        state = sum(
            value.nbytes
            for parameter in group["params"]
            for value in part.state.get(parameter, {}).values()
            if isinstance(value, Tensor)
        )
        memory = _memory(_kind(part, group), group["params"], set(), state)
        gradients = sum(_gradient_bytes(parameter.grad) for parameter in group["params"])
        groups.append(
            GroupMemory(memory.kind, memory.tensors, memory.numbers, memory.parameter_bytes, gradients, state)
        )
    projections = sum(part.projections.bytes for part in _parts(optimizer) if isinstance(part, Apollo))
    return TrainingMemory(tuple(groups), projections)


def step_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step with made-up gradients, so that the optimizer has all its state; sparse tables get the gradient of one row."""
    sparse = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in sparse:
            row = torch.zeros(1, 1, dtype=torch.int64, device=parameter.device)
            parameter.grad = torch.sparse_coo_tensor(row, torch.ones_like(parameter[:1]).detach(), parameter.shape)
        else:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def _parts(optimizer: torch.optim.Optimizer) -> Iterable[torch.optim.Optimizer]:
    return optimizer.parts if isinstance(optimizer, OptimizerChain) else (optimizer,)


def _groups(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any]]]:
    for part in _parts(optimizer):
        for group in part.param_groups:
            yield part, group


_KINDS: Mapping[type[torch.optim.Optimizer], str] = {
    torch.optim.AdamW: "adamw",
    Galore: "galore",
    torch.optim.Muon: "muon",
    RowwiseAdagrad: "rowwise_adagrad",
}


def _kind(part: torch.optim.Optimizer, group: dict[str, Any]) -> str:
    if isinstance(part, Apollo):
        return str(group["kind"])
    for kind, name in _KINDS.items():
        if isinstance(part, kind):
            return name
    raise TypeError(f"the state of {type(part).__name__} is not known")


def _state_bytes(part: torch.optim.Optimizer, kind: str, group: dict[str, Any], parameter: Tensor) -> int:
    if kind == "rowwise_adagrad":
        return 4 * len(parameter)
    dtype = part.state_dtype if isinstance(part, Apollo) else None
    size = (dtype or parameter.dtype).itemsize
    if kind == "muon":
        return parameter.nbytes
    if kind == "adamw":
        return 2 * parameter.numel() * size + _STEP_BYTES
    matrices, rows, columns = matrix_shape(parameter.shape, group["batch_dims"])
    rank, smaller, larger = matrix_rank(group["rank"], rows, columns), min(rows, columns), max(rows, columns)
    numbers = 2 * rank * larger + (rank * smaller if kind == "galore" else 1)  # GaLore's projection, APOLLO's norm
    return matrices * numbers * size + _STEP_BYTES


def _memory(kind: str, parameters: list[Tensor], sparse: set[int], state: int) -> GroupMemory:
    return GroupMemory(
        kind,
        len(parameters),
        sum(p.numel() for p in parameters),
        sum(p.nbytes for p in parameters),
        sum(p.nbytes for p in parameters if id(p) not in sparse),
        state,
    )


def _gradient_bytes(gradient: Tensor | None) -> int:
    if gradient is None:
        return 0
    if gradient.is_sparse:
        return gradient._values().nbytes + gradient._indices().nbytes
    return gradient.nbytes
