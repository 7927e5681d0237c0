"""Fixed factors of the tasks' gradients in the trunk; towers get their plain gradients, unlike with ``task_weights``."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayrec.methods.balancing.tracked import Tracked, TrackedBalancer


@dataclass(frozen=True)
class Fixed(Tracked):
    """Settings of fixed weights."""

    method: Literal["fixed"] = "fixed"
    """What names the method in JSON and on command lines."""
    shares: tuple[float, ...] = ()
    """One number >= 0 a task, in schema order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shares or any(not 0 <= share < math.inf for share in self.shares):
            raise ValueError(f"shares: method fixed needs one finite number >= 0 a task, not {self.shares}")

    def balancer(self, tasks: int, width: int) -> TrackedBalancer:
        if len(self.shares) != tasks:
            raise ValueError(f"shares has {len(self.shares)} numbers, but there are {tasks} tasks")
        return super().balancer(tasks, width)

    def weights(self, gram: Tensor, present: Tensor, last: Tensor, step: Tensor) -> Tensor:
        return torch.tensor(self.shares).to(last)
