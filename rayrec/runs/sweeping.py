"""Sweeps of experiments with Ray Tune: ASHA stops weak trials, Optuna proposes, a killed sweep goes on.

    <runs>/<name>/sweep.json   the sweep's config and its MLflow run: the same name again resumes it
    <runs>/<name>/records/     each trial's experiment and MLflow run
    <runs>/<name>/trials/      Ray Tune's storage: one folder a trial, with checkpoints
    <runs>/<name>/bundle/      the winner
    <runs>/<name>/report/      every trial and the winner's own report

On a small machine each trial runs the worker loop in its own process; with GPUs each trial is a Ray Train run.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import optuna
import ray.tune
from ray.train.torch import TorchTrainer
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from rayrec.errors import UserError
from rayrec.families.table import AnyExperiment
from rayrec.files import make_folder, raise_disk_error, write_text_atomically
from rayrec.registry import runs_folder
from rayrec.reporting import Section
from rayrec.runs.cluster import connect, gpus
from rayrec.runs.endings import clear_endings, raise_ending
from rayrec.runs.ray_train import ray_train_settings, resources_per_worker
from rayrec.runs.ray_worker import worker_loop
from rayrec.runs.run_folder import FinishedRun, RunRecord, log_run, only_one, write_run
from rayrec.runs.seeding import refuse_seed_mark
from rayrec.runs.sweep_report import sweep_sections
from rayrec.runs.sweep_state import KeepAndShow, put_back
from rayrec.runs.sweep_trial import Trial, ranked
from rayrec.training.checkpoint import Progress, read_progress
from rayrec.training.experiment import ScalingOptions, check_streams, finish_here, train_here
from rayrec.training.loop import OBJECTIVE
from rayrec.training.metric_queue import MetricQueue, send_unsent
from rayrec.training.reporters import FolderReporter, RayTuneReporter
from rayrec.training.tracking import Tracker
from rayrec.training.worker import RunOptions, Worker
from rayrec.typed_json import ConfigError, from_json, from_plain, to_json, to_plain

E = TypeVar("E", bound=AnyExperiment)
E_co = TypeVar("E_co", bound=AnyExperiment, covariant=True)


class SweepFailed(UserError):
    """A sweep ended without one trial that was evaluated."""


@dataclass(frozen=True)
class SweepSpace:
    """What is swept.

    families: whose experiments have these fields, by the names of ``rayrec.families.table``.
    parameters: a distribution by the dotted path of a field of the experiment ("optimizer.learning_rate"), or a function of the
    base experiment that gives them.
    settings: fields that the space sets in the base experiment, by path as well ("ranking.perturbation.loss": "scr").
    """

    families: tuple[str, ...]
    parameters: Mapping[str, Domain] | Callable[[Any], Mapping[str, Domain]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, base: AnyExperiment) -> Mapping[str, Domain]:
        """What is swept on top of ``base``. Raises ConfigError when the space is for another family or has nothing to sweep."""
        if base.kind not in self.families:
            raise ConfigError(f"this space is for a {' or a '.join(self.families)}, not for a {base.kind}")
        return self.parameters(base) if callable(self.parameters) else self.parameters


@dataclass(frozen=True)
class SweepConfig(Generic[E_co]):
    """How a sweep runs."""

    base: E_co
    """The experiment whose fields are swept."""
    trials: int = 12
    """How many configs are tried."""
    concurrent: int | None = None
    """Trials at once; None = as many as there are CPUs (or GPUs)."""
    grace_evaluations: int = 1
    """Evaluations that ASHA lets every trial make."""
    reduction: int = 3
    """After them ASHA keeps one trial in so many at each rung."""
    seed: int = 0
    """Of the draws of the space."""
    trial: Literal["auto", "in_process", "ray_train"] = "auto"
    """How: "in_process" runs the loop in the trial's process (small models, CPUs), "ray_train" starts a Ray Train run for
    each trial (GPUs, many workers); "auto" takes the second when the cluster has GPUs."""
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    """Workers of a trial."""
    running: RunOptions = field(default_factory=RunOptions)
    """How each trial is run; a sweep may go on with others."""

    def __post_init__(self) -> None:
        if self.trials < 1 or self.grace_evaluations < 1 or self.reduction < 2:
            raise ConfigError("a sweep needs trials >= 1, grace_evaluations >= 1 and reduction >= 2")


@dataclass(frozen=True)
class SweepRecord:
    """What ``sweep.json`` holds."""

    space: str
    config: SweepConfig[AnyExperiment]
    mlflow_run: str
    tracking_uri: str


@dataclass(frozen=True)
class FinishedSweep:
    """The winner as a finished run, and every trial."""

    winner: FinishedRun
    winner_trial: str
    trials: tuple[Trial, ...]
    objective_name: str
    mode: Literal["min", "max"]
    mlflow_run: str


def apply_parameters(experiment: E, parameters: Mapping[str, Any]) -> E:
    """The experiment with fields replaced by dotted path; a part that is None comes to be, with its defaults, on the way.

    Raises ConfigError for a path or value that does not fit.
    """
    plain = to_plain(experiment)
    for path, value in parameters.items():
        *parents, leaf = path.split(".")
        place = plain
        for part in parents:
            if isinstance(place, dict) and part in place and place[part] is None:
                place[part] = {}
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError(f"{path!r} is no field of an experiment")
        place[leaf] = value
    changed = from_plain(type(experiment), plain, f"the experiment with {', '.join(parameters)}")
    for path in parameters:  # reading drops fields of earlier versions; asked for now, they are mistakes
        place = to_plain(changed)
        for part in path.split("."):
            if part not in place:
                raise ConfigError(f"{path!r} is no field of an experiment")
            place = place[part]
    return changed


Shown = Callable[["FinishedSweep"], None]


def sweep(
    name: str,
    space_name: str,
    space: SweepSpace,
    config: SweepConfig[AnyExperiment],
    show: Shown = lambda finished: None,
) -> FinishedSweep:
    """Run a sweep (or go on with one of this name) and complete its winner: bundle, test metrics, MLflow.

    show: called when all is written, before the tracking store is told. Raises ConfigError and LogError for wrong inputs,
    SweepFailed when no trial was evaluated, UserError when the tracking store is away at the end.
    """
    space.of(config.base)
    refuse_seed_mark(config.base)
    config.base.check()
    config = replace(config, base=apply_parameters(config.base, space.settings))
    _check_space(config.base, space)
    check_streams(config.base, 1 if config.trial == "in_process" else config.scaling.workers)
    with only_one(name):
        folder, record = _open_sweep(name, space_name, config)
        connect()
        if not _in_process(config):
            resources_per_worker(config.scaling)  # refuses once what no trial could have
        return _run_sweep(folder, record, space, show)


def _run_sweep(folder: Path, record: SweepRecord, space: SweepSpace, show: Shown) -> FinishedSweep:
    config, task, name = record.config, record.config.base.task(), folder.name
    try:
        results = _tuner(folder, record, space, task.objective_mode).fit()
    except Exception as raised:
        raise_disk_error(raised, folder / "trials")
        raise
    trials = tuple(_trial(results[i], _most_evaluations(config)) for i in range(len(results)))
    best = next((t for t in ranked(trials, task.objective_mode) if t.objective is not None and t.checkpoint), None)
    if best is None or best.checkpoint is None:
        error = next((trial.error for trial in trials if trial.error is not None), None)
        why = "it was interrupted; run the same command again" if error is None else f"the first error: {error}"
        raise SweepFailed(f"sweep {name!r}: no trial was evaluated; {why}")
    sections = sweep_sections(trials, best.name, task.objective_name, task.objective_mode)
    winner = _complete_winner(folder, best, sections)
    finished = FinishedSweep(winner, best.name, trials, task.objective_name, task.objective_mode, record.mlflow_run)
    show(finished)
    tracker = Tracker(record.tracking_uri, record.mlflow_run)
    with tracker.told(f"the sweep is done (its best model {winner.bundle}, report {winner.report})"):
        for trial in trials:
            _tell_of(trial, folder, tracker)
        _end_forgotten(folder, trials, tracker)
        log_run(winner, tracker)
        tracker.log_folder(record.mlflow_run, winner.report.parent, "report")
        tracker.log_metrics(record.mlflow_run, {OBJECTIVE: best.objective}, 0)
        tracker.tag(record.mlflow_run, {"winner": winner.mlflow_run})
        tracker.finish(record.mlflow_run)
    return finished


def _open_sweep(name: str, space: str, config: SweepConfig[AnyExperiment]) -> tuple[Path, SweepRecord]:
    folder = runs_folder() / name
    file = folder / "sweep.json"
    if file.is_file():
        record = from_json(SweepRecord, file.read_bytes(), str(file))
        if (record.space, replace(record.config, running=config.running)) == (space, config):
            if record.config != config:
                record = replace(record, config=config)
                write_text_atomically(file, to_json(record))
            return folder, record
        if any(folder.glob("trials/*/checkpoint_*")) or any(folder.glob("ray_train/*/train/checkpoint_*")):
            raise ConfigError(
                f"sweep {name!r} exists with another config ({file}); choose another name or remove that folder"
            )
        for left in ("trials", "ray_train", "records"):  # nothing was trained: it does not hold its name
            shutil.rmtree(folder / left, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker()
    record = SweepRecord(
        space, config, tracker.start(name, config, tags={"kind": "sweep", "space": space}), tracker.uri
    )
    write_text_atomically(file, to_json(record))
    return folder, record


def _in_process(config: SweepConfig) -> bool:
    return config.trial == "in_process" or (config.trial == "auto" and gpus() == 0)


def _tuner(folder: Path, record: SweepRecord, space: SweepSpace, mode: Literal["min", "max"]) -> Tuner:
    config = record.config
    in_process = _in_process(config)
    cpus = 1 if in_process else 0.01  # a trial that starts a Ray Train run only waits for its workers
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(
            _trial_in_process if in_process else _trial_under_ray_train, record=to_plain(record), folder=str(folder)
        ),
        {"cpu": cpus},
    )
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints boxes whatever the verbosity
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Their tracebacks: a trial's error and a full disk are shown as a line.
    for part in ("tune_controller", "experiment_state"):
        logging.getLogger(f"ray.tune.execution.{part}").setLevel(logging.CRITICAL)
    storage = folder / "trials"
    if put_back(storage):
        return Tuner.restore(str(storage), trainable=trainable, resume_unfinished=True, resume_errored=True)
    scheduler = ASHAScheduler(
        time_attr="evaluations",
        max_t=_most_evaluations(config),
        grace_period=config.grace_evaluations,
        reduction_factor=config.reduction,
    )
    concurrent = config.concurrent or (None if in_process else max(1, gpus() // config.scaling.workers))
    return Tuner(
        trainable,
        param_space=dict(space.of(record.config.base)),
        tune_config=TuneConfig(
            metric=OBJECTIVE,
            mode=mode,
            num_samples=config.trials,
            max_concurrent_trials=concurrent or 0,
            search_alg=OptunaSearch(seed=config.seed),
            scheduler=scheduler,
            reuse_actors=in_process,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=RunConfig(
            name="trials",
            storage_path=str(folder),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            verbose=0,
            callbacks=[KeepAndShow(config.trials)],
        ),
    )


def _most_evaluations(config: SweepConfig[AnyExperiment]) -> int:
    """ASHA ends a trial there: the last evaluation on the validation split; only the winner needs those of other splits."""
    loop = config.base.loop
    return 10_000 if loop.evaluate_every_steps else loop.epochs


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _trial_in_process(parameters: dict[str, Any], record: Mapping[str, Any], folder: str) -> None:
    # How long Tune waits, before this process takes the next trial, for a trial that it has stopped: the last metrics must reach
    # the tracking store. After its 2 seconds the next trial would be lost, and a sweep of one trial at a time would stand still.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")
    sweep_record, experiment, run_id = _open_trial(parameters, record, Path(folder))
    tracker = Tracker(sweep_record.tracking_uri, sweep_record.mlflow_run)
    metrics = MetricQueue(
        trial_record(Path(folder), ray.tune.get_context().get_trial_id()).with_suffix(""), tracker, run_id
    )
    try:
        worker = Worker(options=sweep_record.config.running.here)
        train_here(experiment, RayTuneReporter(), worker=worker, log_metrics=metrics.log, say=lambda text: None)
    finally:
        metrics.close()


def _trial_under_ray_train(parameters: dict[str, Any], record: Mapping[str, Any], folder: str) -> None:
    sweep_record, experiment, run_id = _open_trial(parameters, record, Path(folder))
    trial_id = ray.tune.get_context().get_trial_id()
    place = make_folder(Path(folder) / "ray_train" / trial_id)
    settings = ray_train_settings(place, sweep_record.config.scaling)
    settings.run_config.callbacks = [TuneReportCallback()]  # type: ignore[list-item]  # brings each report to Tune's scheduler
    run = RunRecord(experiment, run_id, sweep_record.tracking_uri, options=sweep_record.config.running)
    clear_endings(place)
    TorchTrainer(
        worker_loop,
        train_loop_config={"record": to_plain(run), "folder": str(place), "start": None},
        scaling_config=settings.scaling_config,
        run_config=settings.run_config,
    ).fit()
    raise_ending(place)


def _open_trial(
    parameters: Mapping[str, Any], record: Mapping[str, Any], folder: Path
) -> tuple[SweepRecord, AnyExperiment, str]:
    """The trial's experiment and its MLflow child run, which a resumed trial finds again."""
    sweep_record = from_plain(SweepRecord, dict(record), "the sweep's record")
    experiment = apply_parameters(sweep_record.config.base, parameters)
    # Tune judges every report, so each must carry the objective: none between evaluations.
    experiment = replace(experiment, loop=replace(experiment.loop, checkpoint_every_steps=None))
    trial_id = ray.tune.get_context().get_trial_id()
    note = trial_record(folder, trial_id)
    if note.is_file():
        return sweep_record, experiment, from_json(RunRecord, note.read_bytes(), str(note)).mlflow_run
    tracker = Tracker(sweep_record.tracking_uri, sweep_record.mlflow_run)
    run_id = tracker.start(f"{folder.name}-{trial_id}", experiment, parent=sweep_record.mlflow_run)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(note, to_json(RunRecord(experiment, run_id, sweep_record.tracking_uri)))
    return sweep_record, experiment, run_id


def _check_space(base: AnyExperiment, space: SweepSpace) -> None:
    """A path that is no field, or a column that only the swept method needs, is an error here, not in twelve trials."""
    apply_parameters(base, {path: domain.sample() for path, domain in space.of(base).items()}).check()


def _complete_winner(folder: Path, trial: Trial, sections: tuple[Section, ...]) -> FinishedRun:
    """ASHA may have stopped the winner before its last evaluation: finish it from its checkpoint, then bundle it."""
    note = trial_record(folder, trial.name)
    run = from_json(RunRecord, note.read_bytes(), str(note))
    checkpoint = trial.checkpoint
    assert checkpoint is not None  # a winner was evaluated, and each evaluation leaves a checkpoint
    if not read_progress(checkpoint).finished:
        reporter = FolderReporter(folder / "winner")
        finish_here(run.experiment, checkpoint, reporter)
        latest = reporter.latest()
        assert latest is not None  # finish_here has just reported
        checkpoint = latest
    return write_run(folder, run, checkpoint, sections)


def trial_record(folder: Path, trial_id: str) -> Path:
    """Where a sweep keeps a trial's experiment and MLflow run (Tune's own trial folder is a temporary one)."""
    return folder / "records" / f"{trial_id}.json"


def _tell_of(trial: Trial, folder: Path, tracker: Tracker) -> None:
    """What the trial itself could not say to the store, and that it has ended."""
    note = trial_record(folder, trial.name)
    if note.is_file():
        run = from_json(RunRecord, note.read_bytes(), str(note))
        for place in (note.with_suffix(""), folder / "ray_train" / trial.name):  # in process, by Ray Train
            send_unsent(place, tracker, run.mlflow_run)
        tracker.finish(run.mlflow_run, failed=trial.error is not None)


def _end_forgotten(folder: Path, trials: Sequence[Trial], tracker: Tracker) -> None:
    """Trials that began right before their sweep was killed, of which Tune had kept nothing: others were tried in their place."""
    names = {trial.name for trial in trials}
    for note in sorted((folder / "records").glob("*.json")):
        if note.stem not in names:
            tracker.finish(from_json(RunRecord, note.read_bytes(), str(note)).mlflow_run, failed=True)
            shutil.rmtree(note.with_suffix(""), ignore_errors=True)
            note.unlink()


def _trial(result: ray.tune.Result, most_evaluations: int) -> Trial:
    progress: Progress | None = None
    checkpoint = result.checkpoint
    if (
        checkpoint is None and result.metrics and "checkpoint_path" in result.metrics
    ):  # a Ray Train run inside the trial
        checkpoint = ray.tune.Checkpoint.from_directory(result.metrics["checkpoint_path"])
    if checkpoint is not None:
        with checkpoint.as_directory() as saved:
            progress = read_progress(Path(saved))
    return Trial(
        name=Path(result.path).name,
        parameters=dict(result.config or {}),
        objective=None if progress is None else progress.best_objective,
        evaluations=0 if progress is None else progress.passes,
        seconds=0.0 if progress is None else progress.seconds,
        stopped_early=(
            progress is not None
            and not progress.finished
            and progress.passes < most_evaluations
            and result.error is None
        ),
        error=None if result.error is None else str(result.error).strip().splitlines()[-1],
        checkpoint=None if checkpoint is None else Path(checkpoint.path),
    )
