"""A ranker experiment from config to bundle; see ``rayrec.training.experiment``."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rayrec.batch import Batch
from rayrec.bundle import save_bundle
from rayrec.data.log import Log
from rayrec.data.streams import LogStream, StreamConfig, StreamPosition, ZippedStreams
from rayrec.optim import OptimizerConfig
from rayrec.tasks.ranking import RankingConfig, RankingTask
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.loop import LoopConfig, TrainingData, Worker
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
    kind: Literal["ranker"] = field(default="ranker", init=False)

    def __post_init__(self) -> None:
        if self.unlabeled_ratio < 0:
            raise ConfigError(f"unlabeled_ratio must be at least 0, not {self.unlabeled_ratio}")
        if self.unlabeled_ratio > 0 and self.unlabeled is None:
            raise ConfigError("unlabeled_ratio is above 0 but no unlabeled log is given")
        perturbation = self.ranking.perturbation
        if perturbation is not None and perturbation.unlabeled and self.unlabeled_ratio == 0:
            raise ConfigError("ranking.perturbation.unlabeled needs an unlabeled log and unlabeled_ratio above 0")

    def absolute(self) -> "RankerExperiment":
        unlabeled = self.unlabeled
        return replace(self, log=self.log.resolve(), unlabeled=None if unlabeled is None else unlabeled.resolve())

    def read_in_process(self) -> "RankerExperiment":
        return replace(self, stream=replace(self.stream, reader="in_process"))

    def check(self) -> None:
        open_logs(self)

    def task(self) -> RankingTask:
        return RankingTask(Log.open(self.log).schema, self.ranking)

    def data(self, worker: Worker) -> TrainingData[Batch]:
        return training_data(self, worker)

    def save_bundle(self, checkpoint: Path, folder: Path) -> Path:
        task = self.task()
        model = task.build()
        model.load_state_dict(best_weights(checkpoint))
        return save_bundle(
            folder,
            model=model,
            model_config=task.model_config,
            schema=task.schema,
            metrics=read_progress(checkpoint).evaluations,
            run_config=to_plain(self),
            overwrite=True,
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


def training_data(experiment: RankerExperiment, worker: Worker) -> TrainingData[Batch]:
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
