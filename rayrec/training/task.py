"""What the worker loop knows of a task: how to build its model, its loss with named parts, and how it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeVar, runtime_checkable

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


@dataclass(frozen=True)
class Loss:
    """``total`` () is differentiated; ``parts``: detached scalars for the log, "loss" one of them; ``outputs``: what ``observe``
    takes of this batch, detached, or None when training batches are not judged."""

    total: Tensor
    parts: Mapping[str, Tensor]
    outputs: Tensor | None = None


class Evaluation(Protocol):
    """Running metrics of one pass, mergeable: ``state`` tensors of several workers may be summed."""

    def state(self) -> Tensor: ...

    def load_state(self, state: Tensor) -> None: ...


LeftOut = Mapping[str, Mapping[str, tuple[float, ...]]]
"""By what is judged and metric: the values on the judged users or rows less one of G groups, for ``rayrec.metrics.paired``."""


@runtime_checkable
class JudgedByGroup(Protocol):
    """A task that can tell how much its metrics hang on the users, or rows, that were judged."""

    def grouped_evaluation(self) -> Evaluation:
        """A ``new_evaluation`` that also keeps sums by group."""
        ...

    def left_out(self, evaluation: Evaluation) -> LeftOut: ...


class Task(Protocol[B]):
    """A task ties a model to its batches, its loss and its metrics. One worker loop trains every task.

    methods: what training methods keep from step to step beside the model (running means, counters); an empty module when
    there is nothing. It is saved in checkpoints and never in a bundle; no optimizer sees it, and all workers hold the same.
    curve_metrics: metrics of ``summarize`` that are followed over training; the first one is drawn in reports.
    """

    @property
    def methods(self) -> nn.Module: ...

    @property
    def curve_metrics(self) -> tuple[str, ...]: ...

    def build(self) -> nn.Module:
        """A freshly initialized model (seed torch first)."""
        ...

    def sizes(self, model: nn.Module, batch: B, unlabeled: B | None = None) -> Tensor:
        """(P,) over how many terms (rows, positions, tokens) of these batches each of the loss's P means runs, methods' included.

        The loop takes their mean over all batches of an update, on all workers: what ``loss`` then divides by.
        """
        ...

    def loss(self, model: nn.Module, batch: B, unlabeled: B | None = None, joint_sizes: Tensor | None = None) -> Loss:
        """Means over the terms of the whole update, so that averaging over its batches and workers gives the joint batch's loss.

        joint_sizes: (P,) mean ``sizes`` of the update's batches; None = this batch is the whole update.
        """
        ...

    def predict(self, model: nn.Module, batch: B) -> Tensor:
        """What the metrics need of the model on this batch (logits, ranks, losses by token); called without gradients."""
        ...

    def observe(self, evaluation: Evaluation, outputs: Tensor, batch: B) -> None:
        """Add one batch's ``predict`` to running metrics."""
        ...

    def new_evaluation(self) -> Evaluation: ...

    def summarize(self, evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
        """Metric values by the name of what is judged (the tasks of a log, "text"); None where undefined."""
        ...

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        """The one number that early stopping and sweeps watch."""
        ...

    @property
    def objective_name(self) -> str: ...

    @property
    def objective_mode(self) -> Literal["min", "max"]: ...
