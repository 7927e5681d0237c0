"""What every balancer is: a frozen config that makes a module between trunk and towers; by itself, the plain sum of losses."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_ONCE_KEPT = ("norms", "gram", "seen", "first_losses")  # buffers that every balancer had, whether it used them or not


@dataclass(frozen=True)
class Balancing(ABC):
    """Config of a balancing method. Each has a field ``method``, a constant that names it in JSON and on command
    lines."""

    @abstractmethod
    def balancer(self, tasks: int, width: int) -> "Balancer":
        """Its running state for T tasks over a representation of ``width`` D. ValueError when the config does not fit them."""

    def _check_at_least_0(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {getattr(self, name)}")


class Balancer(nn.Module):
    """The running state of a balancing method for T tasks; see the package for its use. This one leaves the losses as they are.

    Its buffers are part of training, not of the model: they belong into checkpoints and not into bundles, so it is no submodule
    of the model. Under torch.distributed all workers hold the same state: what it is made of is averaged over workers, on the
    assumption that each worker's losses are scaled so that the mean of the workers' gradients is the joint gradient.

    Buffers: ``weights`` (T,) of the last step, ``steps`` ().
    """

    weights: Tensor
    steps: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.register_buffer("weights", torch.full((tasks,), 1.0 / tasks))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def shares(self) -> Tensor:
        """(T,) the weights of the last step, for the log: of the losses where the method weighs them, else of the gradients."""
        return self.weights.clone()

    def branch(self, h: Tensor) -> Tensor:
        """What the towers see of the representation h (B, D): h itself, or one view for each task's tower, (T, B, D)."""
        return h

    def total(self, losses: Tensor, h: Tensor, inputs: Tensor, parameters: Iterable[nn.Parameter] = ()) -> Tensor:
        """What to differentiate: () of the losses (T,) that were computed from ``inputs = branch(h)``. Once a step.

        parameters: for level "parameters", the model's (those that h does not depend on are left alone).
        """
        return losses.sum()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        kept = {
            name: value
            for name, value in state_dict.items()
            if name.removeprefix(prefix) not in _ONCE_KEPT or hasattr(self, name.removeprefix(prefix))
        }
        super()._load_from_state_dict(kept, prefix, *rest)


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def averaged(tensor: Tensor) -> Tensor:
    """The mean over workers, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor
