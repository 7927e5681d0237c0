"""MGDA (Désidéri 2012; Sener and Koltun 2018, equation 3): the shortest convex combination of the gradients.

At the representation it is their MGDA-UB.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rayrec.methods.balancing.simplex import min_norm
from rayrec.methods.balancing.tracked import Tracked


@dataclass(frozen=True)
class Mgda(Tracked):
    """No conflict with any task, and tasks of small gradients rule."""

    method: Literal["mgda"] = "mgda"
    """What names the method in JSON and on command lines."""

    def task_weights(self, gram: Tensor, step: int) -> Tensor:
        return min_norm(gram)
