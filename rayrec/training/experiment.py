"""What an experiment is to training: one frozen config that knows its task, its streams and its bundle.

Each family of models has one; ``rayrec.families.table`` lists them. Training under Ray Train, sweeps and repeats know this
contract only.
"""

import math
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from rayrec.data.log.streams import StreamPosition
from rayrec.optim import OptimizerConfig
from rayrec.training.loop import LoopConfig, MetricLog, Say, finish_training, run_training
from rayrec.training.reporters import Reporter
from rayrec.training.task import Task
from rayrec.training.worker import TrainingData, Worker
from rayrec.typed_json import ConfigError


class Experiment(Protocol):
    """Everything that decides a trained model: a frozen dataclass, logged whole, and enough to repeat the run.

    kind: names the family in JSON; declared last as ``field(default=..., init=False)``, so that it is no command line option.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def kind(self) -> str: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def loop(self) -> LoopConfig: ...

    def absolute(self) -> Self:
        """The same with absolute paths: workers may run in other folders."""
        ...

    def check(self) -> None:
        """Open and check all inputs. Raises ValueErrors that name the file, column or field that is wrong."""
        ...

    def fingerprint(self) -> str:
        """Of all data that it reads, not of where that lies: a run goes on with the data that it was begun on, or not at all."""
        ...

    def task(self) -> Task[Any, Any]: ...

    def data(self, worker: Worker) -> TrainingData[Any]:
        """The streams of one worker."""
        ...

    def save_bundle(self, checkpoint: Path, folder: Path) -> Path:
        """Turn a finished run's last checkpoint into a bundle, replacing ``folder``; returns it."""
        ...


@dataclass(frozen=True)
class ScalingOptions:
    """How many workers on what."""

    workers: int = 1
    """Processes that share each step."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """GPUs (nccl, bf16) or CPUs (gloo); auto = GPUs when the cluster has one a worker."""
    cpus_per_worker: float | None = None
    """None = 1, or half a CPU where workers and the reading tasks would not fit otherwise."""
    max_failures: int = 3
    """How many times a died worker group is started again from its last checkpoint; -1 = without limit."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, not {self.workers}")
        if self.cpus_per_worker is not None and not 0 < self.cpus_per_worker < math.inf:
            raise ConfigError(f"cpus_per_worker must be finite and above 0, or None, not {self.cpus_per_worker}")
        if self.max_failures < -1:
            raise ConfigError(f"max_failures must be at least 0, or -1 for no limit, not {self.max_failures}")


def train_here(
    experiment: Experiment,
    reporter: Reporter,
    *,
    worker: Worker | None = None,
    log_metrics: MetricLog = lambda metrics, step: None,
    say: Say = lambda text: print(text, flush=True),
) -> None:
    """Run the worker loop in this very process: inside a Ray Train worker, a Tune trial, or alone."""
    worker = worker or Worker()
    run_training(
        experiment.task(),
        experiment.data(worker),
        experiment.loop,
        experiment.optimizer,
        reporter,
        worker=worker,
        log_metrics=log_metrics,
        say=say,
    )


def check_streams(experiment: Experiment, workers: int) -> None:
    """Open the training and validation streams as the workers will, and read nothing: too few rows for a batch are told here.

    Raises UserErrors.
    """
    data = experiment.data(Worker(workers - 1, workers))
    data.open_training(StreamPosition(), experiment.loop.epochs).close()
    data.open_evaluation("valid", 1).close()


def finish_here(experiment: Experiment, checkpoint: Path, reporter: Reporter) -> None:
    """Complete a run that a sweep stopped early: evaluate its best weights on every split but train."""
    data = experiment.data(Worker())
    finish_training(experiment.task(), data, experiment.loop, experiment.optimizer, checkpoint, reporter)
