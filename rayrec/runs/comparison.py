"""Several experiments ("arms") trained over several seeds each: a trial is one arm with one seed, a Ray task.

    <runs>/<name>/comparison.json                the MLflow run, and the arms as last asked for
    <runs>/<name>/trials/<arm>/<seed>/trial.json   the trial's experiment and its MLflow run
    <runs>/<name>/trials/<arm>/<seed>/result.json  its metrics and curves, once it is trained
    <runs>/<name>/trials/<arm>/<seed>/further.json  how its model came out otherwise (see rayrec.runs.further)
    <runs>/<name>/report/                        page, plots and results.csv

A trial that was killed goes on from its checkpoint, one that is done is never trained again: the same name with more arms or
seeds trains only what is new.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from rayrec.errors import UserError
from rayrec.families.table import AnyExperiment
from rayrec.files import write_text_atomically
from rayrec.registry import runs_folder
from rayrec.runs.cluster import connect, gpus
from rayrec.runs.further import FurtherEvaluation, bundle_folder, check_further, judge_further, read_further
from rayrec.runs.run_folder import RunRecord, only_one
from rayrec.runs.seeding import SEED, with_seed
from rayrec.training.checkpoint import Progress, read_progress
from rayrec.training.experiment import check_streams, train_here
from rayrec.training.judging import Judged
from rayrec.training.metric_queue import has_unsent, keep_unsent, send_unsent
from rayrec.training.reporters import FolderReporter
from rayrec.training.tracking import Tracker
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError, from_json, from_plain, to_json, to_plain

_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Comparison:
    """What is compared. ``arms``: experiments by name; ``baseline``: the arm that the others are measured against.

    seeds: of every arm, the same ones, so that differences are paired. Every field called ``seed`` in an experiment is set to it,
    and ``{seed}`` in a text or path stands for it: data drawn anew for each seed.
    joined: arms that are reported as one, by its name: models of different tasks.
    """

    arms: Mapping[str, AnyExperiment]
    baseline: str
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def trial(self, arm: str, seed: int | None = None) -> AnyExperiment:
        """The experiment of one trial; seed None = the first one."""
        return with_seed(self.arms[arm], self.seeds[0] if seed is None else seed)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The arms of which each reported arm is made, itself or those joined in it, in the arms' order."""
        owners = {arm: name for name, arms in self.joined.items() for arm in arms}
        return {name: self.joined.get(name, (name,)) for name in (owners.get(arm, arm) for arm in self.arms)}

    def __post_init__(self) -> None:
        for arm in self.arms:
            if not _ARM.fullmatch(arm):
                raise ConfigError(f"arm {arm!r}: a name is letters, digits, dots, plus, minus and underscores")
        if len(self.arms) < 2:
            raise ConfigError(f"a comparison needs at least two arms, not {', '.join(self.arms) or 'none'}")
        if self.baseline not in self.parts:
            raise ConfigError(f"baseline {self.baseline!r} is none of the arms: {', '.join(self.parts)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds are different numbers from 0 on, not {list(self.seeds)}")


@dataclass(frozen=True)
class TrialOptions:
    """How trials run."""

    concurrent: int | None = None
    """Trials at once; None = as many as there are CPUs for (or GPUs: one a trial where the cluster has any)."""
    cpus: float = 1.0
    """Of each trial."""
    start_until: float | None = None
    """Seconds after which no further trial is started: the same command goes on later."""
    keep_checkpoints: bool = False
    """Keep each trial's last checkpoint, from which a bundle can be made."""
    in_process: bool = False
    """Train one trial after the other in this very process, without Ray."""
    progress_seconds: float = 20.0
    """Time between two lines of progress."""


@dataclass(frozen=True, order=True)
class TrialKey:
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class ComparisonRecord:
    """What ``comparison.json`` holds."""

    comparison: Comparison
    mlflow_run: str
    tracking_uri: str


def kept_comparison(name: str) -> Comparison:
    """As last asked for. Raises ConfigError when there is none of this name."""
    file = runs_folder() / name / "comparison.json"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; make the comparison with jobs.compare")
    return from_json(ComparisonRecord, file.read_bytes(), str(file)).comparison


@dataclass(frozen=True)
class ComparisonState:
    """Where a comparison stands: results of trials that are done, what is left, and errors of those that failed just now.

    wanted: what else is asked of each trained model; further: how those that are done came out in each way.
    untrained: what the arms are shown beside, by name: popularity, say, judged on the same data.
    """

    folder: Path
    record: ComparisonRecord
    done: Mapping[TrialKey, Progress]
    left: tuple[TrialKey, ...]
    failed: Mapping[TrialKey, str] = field(default_factory=dict)
    wanted: FurtherEvaluation | None = None
    further: Mapping[TrialKey, Mapping[str, Judged]] = field(default_factory=dict)
    untrained: Mapping[str, Judged] = field(default_factory=dict)


def open_comparison(name: str, comparison: Comparison, wanted: FurtherEvaluation | None = None) -> ComparisonState:
    """Make the comparison's folder, or find it again with what is done. wanted: what else is asked of each trained model.

    Raises ConfigError when a trial of that arm and seed is there with another experiment, or without the bundle that ``wanted``
    needs, or when an arm's model could not be judged as wanted, and ValueErrors of wrong inputs.
    """
    folder = runs_folder() / name
    for arm, experiment in comparison.arms.items():
        for seed in comparison.seeds if SEED in to_json(experiment) else comparison.seeds[:1]:
            try:
                comparison.trial(arm, seed).check()
                check_streams(comparison.trial(arm, seed), 1)
            except ValueError as error:
                raise ConfigError(f"arm {arm}: {error}") from error
        check_further(wanted, arm, comparison.trial(arm))
        for seed in comparison.seeds:
            _check_trial(folder, TrialKey(arm, seed), comparison.trial(arm, seed), wanted)
    file = folder / "comparison.json"
    if file.is_file():
        record = replace(from_json(ComparisonRecord, file.read_bytes(), str(file)), comparison=comparison)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        tracker = Tracker()
        plan = {"baseline": comparison.baseline, "arms": list(comparison.arms), "seeds": list(comparison.seeds)}
        record = ComparisonRecord(comparison, tracker.start(name, plan, tags={"kind": "comparison"}), tracker.uri)
    write_text_atomically(file, to_json(record))
    return _state(folder, record, wanted)


def run_trials(
    state: ComparisonState, options: TrialOptions, say: Callable[[str], None] = lambda text: print(text, flush=True)
) -> ComparisonState:
    """Train what is left, as many trials at once as there is room for. A failed trial does not stop the others."""
    if not state.left:
        return state
    with only_one(state.folder.name):
        return _run_here(state, options, say) if options.in_process else _run_by_ray(state, options, say)


def _run_by_ray(state: ComparisonState, options: TrialOptions, say: Callable[[str], None]) -> ComparisonState:
    connect()
    accelerated = gpus() > 0
    room = int(gpus()) if accelerated else int(ray.cluster_resources().get("CPU", 1) // options.cpus)
    room = max(1, min(room, options.concurrent or room))
    task = ray.remote(num_cpus=options.cpus, num_gpus=1 if accelerated else 0, max_retries=3)(_train_in_task)
    waiting = list(state.left)
    running: dict[Any, TrialKey] = {}
    failed: dict[TrialKey, str] = {}
    started = shown = time.monotonic()
    finished = 0
    while waiting or running:
        late = options.start_until is not None and time.monotonic() - started > options.start_until
        if late and not running:
            break
        while waiting and len(running) < room and not late:
            key = waiting.pop(0)
            asked = to_plain(_asked(state, key))
            running[task.remote(asked, str(state.folder), key.arm, key.seed, options, state.wanted)] = key
        ready, _ = ray.wait(list(running), timeout=1.0)
        for reference in ready:
            key = running.pop(reference)
            finished += 1
            try:
                outcome = ray.get(reference)
            except RayError as error:
                failed[key] = str(error).strip().splitlines()[-1]
                outcome = f"failed: {failed[key]}"
            say(_finished_line(key, outcome, finished, len(waiting) + len(running), time.monotonic() - started))
            shown = time.monotonic()
        if time.monotonic() - shown > options.progress_seconds:
            shown = time.monotonic()
            say("training " + ", ".join(f"{key} ({_position(state.folder, key)})" for key in running.values()))
    return replace(_state(state.folder, state.record, state.wanted), failed=failed, untrained=state.untrained)


def _run_here(state: ComparisonState, options: TrialOptions, say: Callable[[str], None]) -> ComparisonState:
    failed: dict[TrialKey, str] = {}
    started = time.monotonic()
    for place, key in enumerate(state.left):
        if options.start_until is not None and time.monotonic() - started > options.start_until:
            break
        try:
            outcome = _train_trial(_asked(state, key), state.folder, key, options, state.wanted, Worker())
        except Exception as error:  # whatever is wrong with one trial, the others go on
            failed[key] = f"{type(error).__name__}: {error}"
            outcome = f"failed: {failed[key]}"
        say(_finished_line(key, outcome, place + 1, len(state.left) - place - 1, time.monotonic() - started))
    return replace(_state(state.folder, state.record, state.wanted), failed=failed, untrained=state.untrained)


def _asked(state: ComparisonState, key: TrialKey) -> RunRecord:
    """The trial's experiment, with the comparison's MLflow run for its own to hang on."""
    record = state.record
    return RunRecord(record.comparison.trial(key.arm, key.seed), record.mlflow_run, record.tracking_uri)


def _finished_line(key: TrialKey, outcome: str, finished: int, left: int, seconds: float) -> str:
    eta = f", about {seconds / finished * left / 60:.1f} min" if left else ""
    return f"{key}: {outcome}; {left} left{eta}"


def describe_left(state: ComparisonState) -> str:
    """One line: how many trials are done, and which are left."""
    seeds: dict[str, list[str]] = {}
    for key in state.left:
        seeds.setdefault(key.arm, []).append(str(key.seed))
    total = len(state.done) + len(state.left)
    rest = "; ".join(f"{arm} {' '.join(numbers)}" for arm, numbers in seeds.items())
    return f"{total} trials: {len(state.done)} done, {len(state.left)} left" + (f" ({rest})" if rest else "")


def trial_folder(folder: Path, key: TrialKey) -> Path:
    return folder / "trials" / key.arm / str(key.seed)


def _state(folder: Path, record: ComparisonRecord, wanted: FurtherEvaluation | None) -> ComparisonState:
    done, further, left = {}, {}, []
    for seed in record.comparison.seeds:  # seed by seed, so that a comparison that was cut short is balanced
        for arm in record.comparison.arms:
            key = TrialKey(arm, seed)
            place = trial_folder(folder, key)
            result = place / "result.json"
            known = {} if wanted is None else read_further(place, wanted)
            if result.is_file() and known is not None:
                done[key], further[key] = from_json(Progress, result.read_bytes(), str(result)), known
            else:
                left.append(key)
    return ComparisonState(folder, record, done, tuple(left), wanted=wanted, further=further)


def _check_trial(folder: Path, key: TrialKey, experiment: AnyExperiment, wanted: FurtherEvaluation | None) -> None:
    note = trial_folder(folder, key) / "trial.json"
    if note.is_file() and from_json(RunRecord, note.read_bytes(), str(note)).experiment != experiment:
        raise ConfigError(
            f"{key} was trained with another experiment ({note}): give the arm another name, or remove {note.parent.parent}"
        )
    trained, kept = (note.parent / "result.json").is_file(), bundle_folder(note.parent).is_dir()
    if wanted is not None and trained and not kept and read_further(note.parent, wanted) is None:
        raise ConfigError(
            f"{key} is trained, but its model was not kept to be judged further: give the comparison another name, or remove "
            f"{note.parent}"
        )


def _position(folder: Path, key: TrialKey) -> str:
    newest = FolderReporter(trial_folder(folder, key) / "checkpoints").latest()
    if newest is None:
        return "before its first evaluation"
    try:
        return f"step {read_progress(newest).step:,}"
    except (OSError, ConfigError):  # just being replaced by the next one
        return "evaluating"


def _train_in_task(
    record: Any, folder: str, arm: str, seed: int, options: TrialOptions, wanted: FurtherEvaluation | None
) -> str:
    """``_train_trial`` in a Ray worker."""
    worker = Worker(device=torch.device("cuda")) if ray.get_gpu_ids() else Worker()
    return _train_trial(from_plain(RunRecord, record), Path(folder), TrialKey(arm, seed), options, wanted, worker)


def _train_trial(
    record: RunRecord,
    folder: Path,
    key: TrialKey,
    options: TrialOptions,
    wanted: FurtherEvaluation | None,
    worker: Worker,
) -> str:
    """One trial, trained unless it is, and judged further; returns a line on how it came out.

    record: its experiment and the comparison's MLflow run.
    """
    place, label = trial_folder(folder, key), f"{folder.name}-{key.arm}-{key.seed}"
    run = _open_trial(place, record, label)
    result = place / "result.json"
    if result.is_file():
        progress = from_json(Progress, result.read_bytes(), str(result))
    else:
        progress = _train(run, place, options, wanted is not None, worker)
    if wanted is not None:
        known = read_further(place, wanted) is not None
        found = judge_further(place, wanted)
        if not known:
            _keep_numbers(place, _further_numbers(found), progress.step)
    with suppress(Exception):  # of a store that is away; sent with the report, or by the next command
        tell_of_trial(place, label, record.mlflow_run, Tracker(record.tracking_uri, record.mlflow_run))
    name = run.experiment.task().objective_name
    return f"{name} {progress.best_objective:.5f} at step {progress.best_step:,}, {progress.seconds:.0f} s"


def _train(run: RunRecord, place: Path, options: TrialOptions, keep_bundle: bool, worker: Worker) -> Progress:
    tracker = Tracker(run.tracking_uri, run.mlflow_run)
    torch.set_num_threads(max(1, int(options.cpus)))
    reporter = FolderReporter(place / "checkpoints")
    try:
        train_here(run.experiment, reporter, worker=worker, say=lambda text: None)
    except Exception:
        with suppress(Exception):  # the store may be away; what went wrong is told by what is raised
            tracker.finish(run.mlflow_run, failed=True)
        raise
    latest = reporter.latest()
    assert latest is not None  # training ends with a checkpoint
    progress = read_progress(latest)
    final = {
        f"final/{split}/{task}/{metric}": value
        for split, tasks in progress.evaluations.items()
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
    }
    if keep_bundle:
        run.experiment.save_bundle(latest, bundle_folder(place))
    _keep_numbers(place, final, progress.step)
    write_text_atomically(place / "result.json", to_json(progress))
    if not options.keep_checkpoints:
        shutil.rmtree(reporter.folder)
    return progress


def _keep_numbers(place: Path, numbers: Mapping[str, float | None], step: int) -> None:
    """Until the tracking store has taken them."""
    keep_unsent(place, [(step, {name: value for name, value in numbers.items() if value is not None})])


def tell_of_trials(state: ComparisonState, tracker: Tracker) -> None:
    """What trials that are done could not say to the store. Raises what its client raises."""
    for key in state.done:
        place = trial_folder(state.folder, key)
        if has_unsent(place):
            tell_of_trial(place, f"{state.folder.name}-{key.arm}-{key.seed}", state.record.mlflow_run, tracker)


def tell_of_trial(place: Path, name: str, parent: str, tracker: Tracker) -> None:
    """Its numbers and its end, in the run that it has, or that it gets now."""
    note = place / "trial.json"
    record = from_json(RunRecord, note.read_bytes(), str(note))
    if not record.mlflow_run:
        record = replace(record, mlflow_run=tracker.start(name, record.experiment, parent=parent))
        write_text_atomically(note, to_json(record))
    send_unsent(place, tracker, record.mlflow_run)
    tracker.finish(record.mlflow_run)


def _further_numbers(found: Mapping[str, Judged]) -> dict[str, float | None]:
    return {
        "/".join(filter(None, ("further", way, judged.split, task, metric))): value
        for way, judged in found.items()
        for task, metrics in judged.metrics.items()
        for metric, value in metrics.items()
    }


def _open_trial(place: Path, record: RunRecord, name: str) -> RunRecord:
    """The trial's record with an MLflow child run of the comparison's, which a trial that goes on finds again.

    None is begun, mlflow_run "", while the tracking store is away: training does not wait for it.
    """
    note = place / "trial.json"
    if note.is_file():
        return from_json(RunRecord, note.read_bytes(), str(note))
    place.mkdir(parents=True, exist_ok=True)
    run_id = ""
    with suppress(UserError):  # told at the end, when the numbers are sent
        run_id = Tracker(record.tracking_uri, record.mlflow_run).start(
            name, record.experiment, parent=record.mlflow_run
        )
    record = replace(record, mlflow_run=run_id)
    write_text_atomically(note, to_json(record))
    return record
