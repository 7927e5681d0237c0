"""A ranker experiment from config to bundle; see ``rayrec.training.experiment``."""

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rayrec.batch import Batch
from rayrec.bundle import read_metadata, write_bundle
from rayrec.data.log import Log
from rayrec.data.log.schema import LogSchema, encoded_alike
from rayrec.data.log.streams import LogStream, StreamConfig, StreamPosition, ZippedStreams
from rayrec.families.ranker.bundle import load_bundle, ranker_parts
from rayrec.families.ranker.scoring import CalibrationConfig, Scorer, features_of
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.families.ranker.teaching import TaughtStreams
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.loop import LoopConfig
from rayrec.training.worker import TrainingData, Worker
from rayrec.typed_json import ConfigError, to_plain

EVALUATION_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class TeacherConfig:
    """A trained bundle that scores batches while the student trains, instead of columns written by ``jobs.score_log``."""

    bundle: Path
    """Folder of the trained ranker that teaches."""
    calibration: CalibrationConfig | None = None
    """Recalibrate its scores first; None = as they are."""


@dataclass(frozen=True)
class RankerExperiment:
    """Everything that decides a trained ranker; logged whole, and enough to repeat the run."""

    log: Path
    """Folder of the labeled log."""
    unlabeled: Path | None = None
    """Folder of an unlabeled log with the same features, streamed beside the labeled one; None = none."""
    unlabeled_ratio: float = 0.0
    """Unlabeled rows per labeled row."""
    ignored_features: tuple[str, ...] = ()
    """Features of the logs that the model does not see (a student that sees less than its teacher)."""
    tasks: tuple[str, ...] | None = None
    """Those of the log's tasks that are learned; None = all. One alone is a single-task model."""
    teacher: TeacherConfig | None = None
    """Where distillation takes its scores from; None = from columns of the logs."""
    ranking: RankingConfig = field(default_factory=RankingConfig)
    """The model, its losses and the methods that train it."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """What turns gradients into steps."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How long and how carefully it trains."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How rows become batches."""
    kind: Literal["ranker"] = field(default="ranker", init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.unlabeled_ratio < math.inf:
            raise ConfigError(f"unlabeled_ratio must be finite and at least 0, not {self.unlabeled_ratio}")
        if self.unlabeled_ratio > 0 and self.unlabeled is None:
            raise ConfigError("unlabeled_ratio is above 0 but no unlabeled log is given")
        perturbation, distillation = self.ranking.perturbation, self.ranking.distillation
        if perturbation is not None and perturbation.unlabeled and self.unlabeled_ratio == 0:
            raise ConfigError("ranking.perturbation.unlabeled needs an unlabeled log and unlabeled_ratio above 0")
        if self.teacher is not None and (distillation is None or distillation.target != "teacher"):
            raise ConfigError("a teacher is given, but ranking.distillation does not ask for its scores")

    def absolute(self) -> "RankerExperiment":
        teacher = self.teacher
        if teacher is not None:
            fitted = teacher.calibration
            teacher = TeacherConfig(
                teacher.bundle.resolve(), None if fitted is None else replace(fitted, log=fitted.log.resolve())
            )
        unlabeled = None if self.unlabeled is None else self.unlabeled.resolve()
        return replace(self, log=self.log.resolve(), unlabeled=unlabeled, teacher=teacher)

    def check(self) -> None:
        logs = open_logs(self)
        if texts := self.view(Log.open(self.log)).schema.texts:
            names = ", ".join(text.name for text in texts)
            print(f"note: {self.log}: a ranker does not read text: {names}; requests may leave it out", file=sys.stderr)
        if self.taught:
            assert self.teacher is not None
            _check_teacher(self, load_bundle(self.teacher.bundle).schema, logs)

    def fingerprint(self) -> str:
        logs = (self.log,) if self.unlabeled is None else (self.log, self.unlabeled)
        parts = [Log.open(log).fingerprint for log in logs]
        if self.teacher is not None:
            parts += read_metadata(self.teacher.bundle, "ranker", ()).sha256.values()
        return "-".join(part[:16] for part in parts)

    def task(self) -> RankingTask:
        """Distillation that no row takes part in is left out: the run is plain training, bit for bit."""
        ranking = self.ranking
        if ranking.distillation is not None and not ranking.distillation.acts(self.unlabeled_ratio):
            ranking = replace(ranking, distillation=None)
        return RankingTask(self.view(Log.open(self.log)).schema, ranking)

    def view(self, log: Log, *, but: LogSchema | None = None) -> Log:
        """The log without the ignored features (except those of the schema ``but``) and with the chosen tasks only. Raises
        ConfigError for features or tasks that it lacks."""
        log = _without(log, self.ignored_features, but=but)
        return log if self.tasks is None else _with_tasks(log, self.tasks)

    @property
    def taught(self) -> bool:
        """Whether a teacher scores batches in the training loop."""
        distillation = self.ranking.distillation
        return self.teacher is not None and distillation is not None and distillation.acts(self.unlabeled_ratio)

    def data(self, worker: Worker) -> TrainingData[Batch]:
        return training_data(self, worker)

    def save_bundle(self, checkpoint: Path, folder: Path) -> Path:
        task = self.task()
        model = task.build()
        model.load_state_dict(best_weights(checkpoint))
        parts = ranker_parts(model, task.model_config, task.schema)
        return write_bundle(
            folder, parts, metrics=read_progress(checkpoint).evaluations, run_config=to_plain(self), overwrite=True
        )


def open_logs(experiment: RankerExperiment) -> tuple[Log, Log | None]:
    """Open and check both logs, with all their features. Raises LogError, SchemaError or ConfigError that names the file and
    column that is wrong."""
    log = Log.open(experiment.log)
    for split in ("train", "valid"):
        log.files(split)
    task = experiment.task()
    _check_columns(log, task.labeled_extras(taught=experiment.taught), task)
    if experiment.unlabeled is None or experiment.unlabeled_ratio == 0:
        return log, None
    unlabeled = Log.open(experiment.unlabeled)
    unlabeled.files("train")
    theirs, ours = unlabeled.schema.features, log.schema.features
    if len(theirs) != len(ours) or not all(map(encoded_alike, theirs, ours)):
        raise ConfigError(f"{unlabeled.path}: its features are not those of {log.path}; encode both with one schema")
    _check_columns(unlabeled, task.unlabeled_extras(taught=experiment.taught), task)
    return log, unlabeled


def training_data(experiment: RankerExperiment, worker: Worker) -> TrainingData[Batch]:
    """The streams of one worker."""
    log, unlabeled = open_logs(experiment)
    task, config = experiment.task(), experiment.stream
    student = experiment.view(log)
    scorer: Scorer | None = None
    if experiment.taught:
        assert experiment.teacher is not None
        scorer = Scorer.load(experiment.teacher.bundle, experiment.teacher.calibration, worker.device)
        _check_teacher(experiment, scorer.bundle.schema, (log, unlabeled))

    def open_training(start: StreamPosition, epochs: int) -> ZippedStreams:
        but = None if scorer is None else scorer.bundle.schema
        labeled = experiment.view(log, but=but)
        streams = ZippedStreams.open(
            labeled,
            None if unlabeled is None else _without(unlabeled, experiment.ignored_features, but=but),
            experiment.unlabeled_ratio,
            config,
            rank=worker.rank,
            world_size=worker.size,
            start=start,
            epochs=epochs,
            extras=task.labeled_extras(taught=experiment.taught),
            unlabeled_extras=task.unlabeled_extras(taught=experiment.taught),
            reading=worker.reading,
        )
        if scorer is None:
            return streams
        assert task.distillation is not None  # a teacher is refused without
        return TaughtStreams(
            streams.labeled,
            streams.unlabeled,
            experiment.unlabeled_ratio,
            teacher=scorer,
            columns=dict(zip(task.distillation.distilled, task.distillation.teacher_columns, strict=True)),
            read=labeled.schema,
            student=student.schema,
            device=worker.device,
            labeled_too=task.distillation.config.labeled_weight > 0,
        )

    def open_evaluation(split: str, epochs: int) -> LogStream:
        evaluation = StreamConfig(batch_size=EVALUATION_BATCH_ROWS, shuffle=False, drop_last=False)
        return LogStream(
            student,
            split,
            evaluation,
            rank=worker.rank,
            world_size=worker.size,
            epochs=epochs,
            extras=task.evaluation_extras,
            reading=worker.reading,
        )

    return TrainingData(open_training, open_evaluation, log.splits)


def _without(log: Log, ignored: tuple[str, ...], *, but: LogSchema | None = None) -> Log:
    """The log without the ignored features, except those of the schema ``but``. Raises ConfigError for one that it lacks."""
    unknown = sorted(set(ignored) - {feature.name for feature in log.schema.features})
    if unknown:
        raise ConfigError(f"{log.path}: ignored_features names no feature: {', '.join(unknown)}")
    kept = set() if but is None else {feature.name for feature in but.features}
    features = tuple(f for f in log.schema.features if f.name not in ignored or f.name in kept)
    return Log(log.path, log.schema.with_features(features))


def _with_tasks(log: Log, names: tuple[str, ...]) -> Log:
    """The log with some of its tasks, in its order. Raises ConfigError for none, for one that it lacks, and for one whose label
    is observed only where that of a task left out is 1."""
    unknown = sorted(set(names) - set(log.schema.task_names))
    if unknown or not names:
        raise ConfigError(
            f"{log.path}: tasks names no task: {', '.join(unknown) or 'it is empty'}; tasks: {', '.join(log.schema.task_names)}"
        )
    tasks = tuple(task for task in log.schema.tasks if task.name in names)
    for task in tasks:
        if task.observed_when is not None and task.observed_when not in names:
            raise ConfigError(f"{log.path}: task {task.name} is observed where {task.observed_when} is 1: choose both")
    return Log(log.path, replace(log.schema, tasks=tasks))


def _check_columns(log: Log, columns: tuple[str, ...], task: RankingTask) -> None:
    """Raises ConfigError naming columns that methods of the task need and the log does not carry along."""
    absent = [name for name in columns if name not in log.schema.extras]
    if absent:
        scores = [] if task.distillation is None else [c for c in absent if c in task.distillation.teacher_columns]
        hint = f"; write the teacher's scores ({', '.join(scores)}) with python -m jobs.score_log" if scores else ""
        there = ", ".join(log.schema.extras) or "none"
        raise ConfigError(f"{log.path}: has no column {', '.join(absent)} (extras of its schema: {there}){hint}")


def _check_teacher(experiment: RankerExperiment, teacher: LogSchema, logs: tuple[Log, Log | None]) -> None:
    distillation = experiment.task().distillation
    missing = sorted(set(() if distillation is None else distillation.distilled) - set(teacher.task_names))
    if missing:
        raise ConfigError(f"the teacher has no task {', '.join(missing)}; its tasks: {', '.join(teacher.task_names)}")
    for log in logs:
        if log is not None:
            features_of(teacher, log.schema, log.path)
