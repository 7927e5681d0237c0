"""Several optimizers as one: each steps its own parameters."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch

from rayrec.optim.eager import EagerOptimizer


class OptimizerChain(EagerOptimizer):
    """``param_groups`` are those of all parts in order, so schedules and clipping see one optimizer. State dict: one a part."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._link()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Evaluate ``closure`` once when given, then step every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError when the state is of another number of optimizers."""
        states = state_dict["parts"]
        if len(states) != len(self.parts):
            raise ValueError(f"state of {len(states)} optimizers, this chain has {len(self.parts)}")
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
        self._link()  # loading replaced the parts' group dictionaries

    def _link(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]
