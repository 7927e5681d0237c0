"""A ranker experiment from config to bundle: the one description that training, sweeps and repeats share."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rayrec.bundle import save_bundle
from rayrec.data.log import Log
from rayrec.data.streams import LogStream, StreamConfig, StreamPosition, ZippedStreams
from rayrec.optim import OptimizerConfig
from rayrec.tasks.ranking import RankingConfig, RankingTask
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.loop import LoopConfig, MetricLog, Say, TrainingData, Worker, finish_training, run_training
from rayrec.training.reporters import Reporter
from rayrec.typed_json import ConfigError, to_plain

EVALUATION_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class RankerExperiment:
    """Everything that decides a trained ranker; logged whole, and enough to repeat the run.

    log: folder of the labeled log. unlabeled: folder of an unlabeled log with the same features, streamed beside it at
    ``unlabeled_ratio`` rows per labeled row.
    """

    log: Path
    unlabeled: Path | None = None
    unlabeled_ratio: float = 0.0
    ranking: RankingConfig = field(default_factory=RankingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)

    def __post_init__(self) -> None:
        if self.unlabeled_ratio < 0:
            raise ConfigError(f"unlabeled_ratio must be at least 0, not {self.unlabeled_ratio}")
        if self.unlabeled_ratio > 0 and self.unlabeled is None:
            raise ConfigError("unlabeled_ratio is above 0 but no unlabeled log is given")
        perturbation = self.ranking.perturbation
        if perturbation is not None and perturbation.unlabeled and self.unlabeled_ratio == 0:
            raise ConfigError("ranking.perturbation.unlabeled needs an unlabeled log and unlabeled_ratio above 0")


@dataclass(frozen=True)
class ScalingOptions:
    """How many workers on what. ``device`` auto: GPUs (nccl, bf16) when the cluster has one a worker, else CPUs (gloo).

    cpus_per_worker: None = 1, or half a CPU where workers and the reading tasks would not fit otherwise.
    max_failures: how many times a died worker group is started again from its last checkpoint.
    """

    workers: int = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    cpus_per_worker: float | None = None
    max_failures: int = 3


def absolute_paths(experiment: RankerExperiment) -> RankerExperiment:
    """Workers may run in other folders: paths in a config are absolute once a job has started."""
    unlabeled = experiment.unlabeled
    return replace(
        experiment, log=experiment.log.resolve(), unlabeled=None if unlabeled is None else unlabeled.resolve()
    )


def open_logs(experiment: RankerExperiment) -> tuple[Log, Log | None]:
    """Open and check both logs. Raises LogError or SchemaError that names the file and column that is wrong."""
    log = Log.open(experiment.log)
    for split in ("train", "valid"):
        log.files(split)
    if experiment.unlabeled is None or experiment.unlabeled_ratio == 0:
        return log, None
    unlabeled = Log.open(experiment.unlabeled)
    unlabeled.files("train")
    if unlabeled.schema.features != log.schema.features:
        raise ConfigError(f"{unlabeled.path}: its features are not those of {log.path}; encode both with one schema")
    return log, unlabeled


def training_data(experiment: RankerExperiment, worker: Worker) -> TrainingData:
    """The streams of one worker."""
    log, unlabeled = open_logs(experiment)
    config = experiment.stream

    def open_training(start: StreamPosition, epochs: int) -> ZippedStreams:
        return ZippedStreams.open(
            log,
            unlabeled,
            experiment.unlabeled_ratio,
            config,
            rank=worker.rank,
            world_size=worker.size,
            start=start,
            epochs=epochs,
        )

    def open_evaluation(split: str, epochs: int) -> LogStream:
        evaluation = StreamConfig(
            batch_size=EVALUATION_BATCH_ROWS, shuffle=False, drop_last=False, reader=config.reader
        )
        return LogStream(log, split, evaluation, rank=worker.rank, world_size=worker.size, epochs=epochs)

    return TrainingData(open_training, open_evaluation, log.splits)


def train_here(
    experiment: RankerExperiment,
    reporter: Reporter,
    *,
    worker: Worker | None = None,
    log_metrics: MetricLog = lambda metrics, step: None,
    say: Say = lambda text: print(text, flush=True),
) -> None:
    """Run the worker loop in this very process: inside a Ray Train worker, a Tune trial, or alone."""
    worker = worker or Worker()
    run_training(
        RankingTask(Log.open(experiment.log).schema, experiment.ranking),
        training_data(experiment, worker),
        experiment.loop,
        experiment.optimizer,
        reporter,
        worker=worker,
        log_metrics=log_metrics,
        say=say,
    )


def finish_here(experiment: RankerExperiment, checkpoint: Path, reporter: Reporter) -> None:
    """Complete a run that a sweep stopped early: evaluate its best weights on every split but train."""
    finish_training(
        RankingTask(Log.open(experiment.log).schema, experiment.ranking),
        training_data(replace(experiment, stream=replace(experiment.stream, reader="in_process")), Worker()),
        experiment.loop,
        experiment.optimizer,
        checkpoint,
        reporter,
    )


def bundle_from_checkpoint(experiment: RankerExperiment, checkpoint: Path, folder: Path) -> Path:
    """Turn a finished run's last checkpoint into a bundle."""
    schema = Log.open(experiment.log).schema
    task = RankingTask(schema, experiment.ranking)
    model = task.build()
    model.load_state_dict(best_weights(checkpoint))
    progress = read_progress(checkpoint)
    return save_bundle(
        folder,
        model=model,
        model_config=task.model_config,
        schema=schema,
        metrics=progress.evaluations,
        run_config=to_plain(experiment),
        overwrite=True,
    )
