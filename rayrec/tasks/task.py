"""What the worker loop knows of a task: how to build its model, its loss with named parts, and how it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from rayrec.batch import Batch


@dataclass(frozen=True)
class Loss:
    """``total`` () is differentiated; ``parts`` are detached scalars for the log; ``logits`` (B, T) detached."""

    total: Tensor
    parts: Mapping[str, Tensor]
    logits: Tensor


class Evaluation(Protocol):
    """Running metrics of one pass, mergeable: ``state`` tensors of several workers may be summed."""

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None: ...

    def state(self) -> Tensor: ...

    def load_state(self, state: Tensor) -> None: ...


class Task(Protocol):
    """A task ties a model to its batches, its loss and its metrics. One worker loop trains every task.

    methods: what training methods keep from step to step beside the model (running means, counters); an empty module when
    there is nothing. It is saved in checkpoints and never in a bundle; no optimizer sees it, and all workers hold the same.
    """

    methods: nn.Module

    def build(self) -> nn.Module:
        """A freshly initialized model (seed torch first)."""
        ...

    def loss(self, model: nn.Module, batch: Batch, unlabeled: Batch | None = None) -> Loss: ...

    def new_evaluation(self) -> Evaluation: ...

    def summarize(self, evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
        """Metric values by task name."""
        ...

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        """The one number that early stopping and sweeps watch."""
        ...

    @property
    def objective_name(self) -> str: ...

    @property
    def objective_mode(self) -> Literal["min", "max"]: ...
