"""From served decisions and their feedback to a new version in force, or a refusal: join, train, compare, gate, promote.

<runs>/NAME-loop/loop.json     what the loop began with
<runs>/NAME-loop/joined/       the logs that it trains on and judges by
<runs>/NAME-loop/result.json   the verdict
<runs>/NAME/                   the training run
"""

import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rayrec.data.log import Log
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import EVALUATION_BATCH_ROWS, RankerExperiment
from rayrec.families.ranker.scoring import features_of
from rayrec.families.table import read_experiment
from rayrec.files import locked, make_folder, write_text_atomically
from rayrec.kept_options import other_options
from rayrec.registry import SERVING_ALIAS, runs_folder
from rayrec.runs.fitting import fit
from rayrec.runs.run_folder import FinishedRun
from rayrec.traffic.decisions import USER
from rayrec.traffic.gate import GateConfig, Verdict, judge, log_losses
from rayrec.traffic.joining import JoinConfig, JoinedLogs, join
from rayrec.training.experiment import ScalingOptions
from rayrec.training.tracking import Tracker
from rayrec.training.worker import RunOptions
from rayrec.typed_json import ConfigError, from_json, from_plain, to_json, to_plain


@dataclass(frozen=True)
class CloseTheLoop:
    """Train on what was served, and promote the new version if it is good enough."""

    decisions: Path
    """Folder of the log of decisions."""
    feedback: Path
    """Folder of the feedback."""
    in_force: str
    """The ranker that serves, by an alias: models:/NAME@ALIAS; promotion moves this alias."""
    name: str
    """Of the training run; NAME-loop beside it holds the joined logs and the verdict. Running it again goes on."""
    experiment: Path | None = None
    """A file of a ranker's experiment as JSON; its logs are replaced by the joined ones. None = that of the version in force."""
    task: str | None = None
    """By whose labels the versions are compared; None = the first that the version in force predicts."""
    join: JoinConfig = field(default_factory=JoinConfig)
    """How decisions and feedback become logs."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What the new version must show."""
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    """How many workers train on what."""
    running: RunOptions = field(default_factory=RunOptions)
    """How it is run, which changes no model: a loop may go on with others of these."""
    in_process: bool = False
    """One worker in this very process, on CPU, without Ray."""


@dataclass(frozen=True)
class LoopRecord:
    """What a loop began with. in_force: the version that its alias meant. now_ms: when it began; windows that had closed by then
    count."""

    command: CloseTheLoop
    in_force: str
    now_ms: int


@dataclass(frozen=True)
class LoopResult:
    """version: of the new model in the registry, where it was promoted."""

    verdict: Verdict
    mlflow_run: str
    version: str | None


def close_the_loop(command: CloseTheLoop, now_ms: int | None = None) -> LoopResult:
    """All that is left to do; prints each step, and the verdict last. now_ms: None = by the clock."""
    alias_of(command.in_force)
    folder = make_folder(runs_folder() / f"{command.name}-loop")
    with locked(folder / ".lock", busy=f"{command.name!r} is being run"):
        record = _begin(command, folder, now_ms)
        result = folder / "result.json"
        if result.is_file():
            done = from_json(LoopResult, result.read_bytes(), str(result))
        else:
            done = _close(command, record, folder)
            write_text_atomically(result, to_json(done))
        live = "" if done.version is None else f"; {command.in_force} is version {done.version} (was {record.in_force})"
        print(f"{done.verdict.line}{live}")
        return done


def _begin(command: CloseTheLoop, folder: Path, now_ms: int | None) -> LoopRecord:
    """What this loop began with, earlier or now."""
    command = replace(command, decisions=command.decisions.resolve(), feedback=command.feedback.resolve())
    file = folder / "loop.json"
    if file.is_file():
        record = from_json(LoopRecord, file.read_bytes(), str(file))
        begun = replace(record.command, scaling=command.scaling, running=command.running, in_process=command.in_process)
        if begun != command:
            other = "; ".join(other_options(to_plain(begun), to_plain(command)))
            raise ConfigError(f"{file}: this loop was begun with other options, {other}: choose another name")
        return record
    version = Tracker().version_of(command.in_force)[1]
    record = LoopRecord(command, version, round(time.time() * 1000) if now_ms is None else now_ms)
    write_text_atomically(file, to_json(record))
    return record


def _close(command: CloseTheLoop, record: LoopRecord, folder: Path) -> LoopResult:
    name, _ = alias_of(command.in_force)
    in_force = Tracker().resolve(f"models:/{name}/{record.in_force}").path
    logs = JoinedLogs(folder / "joined")
    if not logs.folder.is_dir():
        logs = join(command.decisions, command.feedback, logs.folder, command.join, record.now_ms)
    print(f"joined: {logs.folder} ({', '.join(f'{k} {v}' for k, v in asdict(logs.summary).items())})", flush=True)
    experiment = experiment_on(logs, in_force, command.experiment)
    finished = fit(command.name, experiment, command.scaling, command.running, in_process=command.in_process)
    return gate_and_promote(finished, command.in_force, record.in_force, logs.labeled, command.task, command.gate)


def gate_and_promote(
    finished: FinishedRun, in_force: str, version: str, log: Log, task: str | None, gate: GateConfig
) -> LoopResult:
    """Compare a trained run with ``version`` of models:/NAME@ALIAS ``in_force``, log the verdict in MLflow, and move the alias to
    it if the gate lets it; what a killed one had done already is not done twice.

    Raises ConfigError when the alias has moved since: what was compared is not in force any more.
    """
    tracker, (name, alias) = Tracker(), alias_of(in_force)
    old = tracker.resolve(f"models:/{name}/{version}").path
    verdict = compare(finished.bundle, old, log, task, gate)
    with tracker.told(f"the verdict is {verdict.line}"):
        numbers = {"difference": verdict.difference, "low": verdict.low, "high": verdict.high, "new": verdict.new}
        tracker.log_metrics(finished.mlflow_run, {f"gate/{k}": v for k, v in numbers.items()}, 0)
        tracker.tag(finished.mlflow_run, {"verdict": verdict.line, "in_force": f"models:/{name}/{version}"})
    if not verdict.promote:
        return LoopResult(verdict, finished.mlflow_run, None)
    found, registered = tracker.version_of(in_force)[1], tracker.version_made_of(finished.mlflow_run, name)
    if found not in (version, registered):
        raise ConfigError(
            f"{in_force} is version {found} by now, but the new one was compared with version {version}: nothing is promoted; "
            "begin again under another name"
        )
    if registered is None:
        registered = tracker.register(finished.mlflow_run, name, alias=None).version
    tracker.point_alias(name, alias, registered)
    return LoopResult(verdict, finished.mlflow_run, registered)


def experiment_on(logs: JoinedLogs, in_force: Path, file: Path | None) -> RankerExperiment:
    """The experiment of the version in force, or that of a file, on the joined logs.

    Features that it ignored are not in them, and what it took from columns of its own logs cannot be had: a
    teacher's scores. Raises ConfigError for such, and for an experiment of another family.
    """
    if file is None:
        config = load_bundle(in_force).metadata.run_config
        experiment = from_plain(RankerExperiment, dict(config), f"{in_force}: run_config")
    else:
        found = read_experiment(file.read_bytes(), str(file))
        if not isinstance(found, RankerExperiment):
            raise ConfigError(f"{file}: is no ranker's experiment")
        experiment = found
    known = {feature.name for feature in logs.labeled.schema.features}
    tasks = experiment.tasks
    return replace(
        experiment,
        log=logs.folder / "labeled",
        unlabeled=None if experiment.unlabeled is None else logs.folder / "unlabeled",
        ignored_features=tuple(name for name in experiment.ignored_features if name in known),
        tasks=None if tasks is None else tuple(name for name in tasks if name in logs.labeled.schema.task_names),
    ).absolute()


def compare(new: Path, old: Path, log: Log, task: str | None, gate: GateConfig) -> Verdict:
    """Two bundles on the rows of the log's test split that have a label of the task and a user."""
    task = load_bundle(old).schema.task_names[0] if task is None else task
    losses, labels = zip(*(_losses(bundle, log, task) for bundle in (new, old)), strict=True)
    users = pq.read_table(list(log.files("test")), columns=[USER]).column(USER)
    counted = ~np.isnan(labels[0]) & users.is_valid().to_numpy()
    if not counted.any():
        raise ConfigError(
            f"{log.path}: no row of the test split has a label of {task!r} and a user; there is nothing to compare by"
        )
    who = users.fill_null(0).to_numpy()
    return judge(losses[0][counted], losses[1][counted], who[counted], gate)


def _losses(folder: Path, log: Log, task: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) log losses and labels of a split's rows in file order; both NaN without a label."""
    bundle = load_bundle(folder)
    if task not in bundle.schema.task_names:
        raise ConfigError(f"{folder}: does not predict {task!r}, but {', '.join(bundle.schema.task_names)}")
    place = bundle.schema.task_names.index(task)
    view = Log(log.path, replace(features_of(bundle.schema, log.schema, log.path), tasks=bundle.schema.tasks))
    config = StreamConfig(EVALUATION_BATCH_ROWS, shuffle=False, drop_last=False)
    with closing(LogStream(view, "test", config)) as stream, torch.no_grad():
        found = [(bundle.model(b)[:, place].double(), b.labels[:, place].double()) for b in stream.epoch_batches()]
    logits, labels = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return log_losses(logits, labels), labels


def alias_of(reference: str) -> tuple[str, str]:
    """Name and alias of models:/NAME@ALIAS."""
    name, at, alias = reference.removeprefix("models:/").partition("@")
    if not (reference.startswith("models:/") and name and at and alias):
        raise ConfigError(
            f"in_force must be models:/NAME@ALIAS (such as models:/ranker@{SERVING_ALIAS}), not {reference!r}"
        )
    return name, alias
