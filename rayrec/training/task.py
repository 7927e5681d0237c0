"""What the worker loop knows of a task: how to build its model, its loss with named parts, and how it is judged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

COUNTS = frozenset(
    {"rows", "positives", "tokens", "users"}
)  # summary values that say how much was judged, not how well


class AnyBatch(Protocol):
    """What the worker loop asks of a batch: how many rows it has, and a copy on a device."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self: ...


B = TypeVar("B", bound=AnyBatch, contravariant=True)
M = TypeVar("M")  # the model


@dataclass(frozen=True)
class Loss:
    """``total`` () is differentiated; ``parts``: detached scalars for the log, "loss" one of them; ``outputs``: what an
    ``Evaluation`` takes of this batch, detached, or None when training batches are not judged."""

    total: Tensor
    parts: Mapping[str, Tensor]
    outputs: Tensor | None = None


Summary = dict[str, dict[str, float | None]]
"""Metric values by the name of what is judged (the tasks of a log, "text") and of the metric; None where undefined."""

LeftOut = Mapping[str, Mapping[str, tuple[float, ...]]]
"""By what is judged and metric: the values on the judged users or rows less one of G groups, for ``rayrec.metrics.paired``."""

Curves = Mapping[str, tuple[tuple[float, float, float], ...]]
"""Calibration curve by what is judged: (mean predicted, mean observed, rows) of each equal-mass bin."""


class Mergeable(Protocol):
    """Running metrics whose ``state`` tensors of several workers may be summed."""

    def state(self) -> Tensor: ...

    def load_state(self, state: Tensor) -> None: ...


class Evaluation(ABC, Generic[B]):
    """How good a model is, over one pass: takes in batches, is summed over workers by its ``metrics``, and tells the result."""

    metrics: Mergeable

    @abstractmethod
    def update(self, outputs: Tensor, batch: B) -> None:
        """Add one batch's ``predict``."""

    @abstractmethod
    def summarize(self) -> Summary: ...

    def gather(self) -> None:
        """Fetch from all workers what is no sum; ``metrics`` are summed by then."""

    def left_out(self) -> LeftOut:
        """How much the metrics hang on the users, or rows, that were judged; empty where no sums by group were kept."""
        return {}

    def calibration(self) -> Curves:
        """Empty where nothing but an order is predicted."""
        return {}


class Task(Protocol[B, M]):
    """A task ties a model to its batches, its loss and its metrics. One worker loop trains every task.

    methods: what training methods keep from step to step beside the model (running means, counters); an empty module when
    there is nothing. It is saved in checkpoints and never in a bundle; no optimizer sees it, and all workers hold the same.
    curve_metrics: metrics of a summary that are followed over training; the first one is drawn in reports.
    """

    @property
    def methods(self) -> nn.Module: ...

    @property
    def curve_metrics(self) -> tuple[str, ...]: ...

    def build(self) -> M:
        """A freshly initialized model (seed torch first)."""
        ...

    def sizes(self, model: M, batch: B, unlabeled: B | None = None) -> Tensor:
        """(P,) over how many terms (rows, positions, tokens) of these batches each of the loss's P means runs, methods' included.

        The loop takes their mean over all batches of an update, on all workers: what ``loss`` then divides by.
        """
        ...

    def loss(self, model: M, batch: B, unlabeled: B | None = None, joint_sizes: Tensor | None = None) -> Loss:
        """Means over the terms of the whole update, so that averaging over its batches and workers gives the joint batch's loss.

        joint_sizes: (P,) mean ``sizes`` of the update's batches; None = this batch is the whole update.
        """
        ...

    def predict(self, model: M, batch: B) -> Tensor:
        """What the metrics need of the model on this batch (logits, ranks, losses by token); called without gradients, after
        ``evaluation`` began the pass, within which no weight changes."""
        ...

    def evaluation(self, *, by_group: bool = False) -> Evaluation[B]:
        """A new one; by_group: it also keeps sums by group of users or rows, where the task can."""
        ...

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        """The one number that early stopping and sweeps watch."""
        ...

    @property
    def objective_name(self) -> str: ...

    @property
    def objective_mode(self) -> Literal["min", "max"]: ...
