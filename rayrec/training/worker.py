"""What a training process is given: which worker it is, how it runs, and how it opens its streams."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Protocol, TypeVar

import torch

from rayrec.data.log.streams import Reading, StreamPosition
from rayrec.training.task import AnyBatch

B = TypeVar("B", bound=AnyBatch)
B_co = TypeVar("B_co", bound=AnyBatch, covariant=True)


@dataclass(frozen=True)
class RunOptions:
    """How a run is run, not what model comes out: it may go on with others of them."""

    threads: int | None = None
    """Intra-op CPU threads of a worker; None = its share of the machine's CPUs under Ray, torch's setting elsewhere."""
    progress_seconds: float = 5.0
    """At least so long between two lines of progress."""
    reader: Literal["ray", "in_process"] = "ray"
    """Who brings the rows of logs: Ray Data tasks, or a thread of each training process."""
    read_ahead: int = 2
    """Row groups (65,536 rows each in imported logs) that the in-process reader stays ahead."""
    compile_update: bool = False
    """Compile the update of APOLLO, APOLLO-Mini and row-wise Adagrad, for shorter steps: on CPUs kernels that g++ (or CXX) builds
    in a second or two; on GPUs, and where parameters are not float32, torch.compile of the first two, half a minute. Where there
    is no compiler a line says so and the run goes on uncompiled."""
    keep_freed_memory: bool = True
    """Memory that a training process on CPUs frees stays with it until its run ends, which spares a step the page faults of its
    large blocks (with glibc; see ``rayrec.freed_memory``). Evaluations outside of training, and processes that read for Ray
    Data, always do so."""

    def __post_init__(self) -> None:
        for name in ("threads", "read_ahead"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    @property
    def here(self) -> "RunOptions":
        """The same without Ray."""
        return replace(self, reader="in_process")


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this is, its device, and how it runs."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    options: RunOptions = field(default_factory=lambda: RunOptions(reader="in_process"))

    @property
    def reading(self) -> Reading:
        """How its streams of logs read."""
        return Reading(self.options.reader, self.options.read_ahead)


class TrainingStream(Protocol[B_co]):
    """Training batches, each beside a batch of unlabeled rows or None; ``rayrec.data.log.streams.ZippedStreams`` is one.

    ``position`` is the place behind the batch yielded last; ``epoch_batches`` yields the rest of the current epoch.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def position(self) -> StreamPosition: ...

    def epoch_batches(self) -> Iterator[tuple[B_co, B_co | None]]: ...

    def close(self) -> None: ...


class EvaluationStream(Protocol[B_co]):
    """Each ``epoch_batches()`` is one pass over a split."""

    def epoch_batches(self) -> Iterator[B_co]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrainingData(Generic[B]):
    """How this worker opens its streams: training from a position for so many epochs, or so many passes over a split."""

    open_training: Callable[[StreamPosition, int], TrainingStream[B]]
    open_evaluation: Callable[[str, int], EvaluationStream[B]]
    splits: tuple[str, ...]
