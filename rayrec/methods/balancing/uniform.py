"""The plain sum of losses under balancing's name: what the others are compared with."""

from dataclasses import dataclass
from typing import Literal

from rayrec.methods.balancing.balancer import Balancer, Balancing


@dataclass(frozen=True)
class Uniform(Balancing):
    """Every task counts alike: plain training."""

    method: Literal["uniform"] = "uniform"
    """What names the method in JSON and on command lines."""

    def balancer(self, tasks: int, width: int) -> Balancer:
        return Balancer(tasks)
