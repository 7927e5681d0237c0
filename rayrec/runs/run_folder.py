"""A run's folder: what it was asked for, its checkpoints, its bundle and report. No Ray here.

<run>/run.json      the experiment and its MLflow run id: running the same name again goes on where it stopped
<run>/train/        checkpoints, of Ray Train or of a run in process: either goes on from the other's
<run>/bundle/       the trained model
<run>/report/       report.html and its plots
<run>/.lock         held while a process trains here
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rayrec.families.table import AnyExperiment
from rayrec.files import locked, make_folder, write_text_atomically
from rayrec.registry import runs_folder
from rayrec.training.checkpoint import Progress, newest_checkpoint, read_progress
from rayrec.training.metric_queue import send_unsent
from rayrec.training.tracking import Tracker
from rayrec.training.worker import RunOptions
from rayrec.typed_json import ConfigError, from_json, to_json

if TYPE_CHECKING:
    from rayrec.reporting import Section


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` holds. data: fingerprint of what the experiment reads; None = begun before there were fingerprints.

    options: how it is run, as it was told last.
    """

    experiment: AnyExperiment
    mlflow_run: str
    tracking_uri: str
    data: str | None = None
    options: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class FinishedRun:
    """A trained model: its folder, its MLflow run, and how it came out."""

    folder: Path
    mlflow_run: str
    progress: Progress

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def report(self) -> Path:
        return self.folder / "report" / "report.html"


@contextmanager
def only_one(name: str) -> Iterator[Path]:
    """The folder of that name, for this process alone. Raises ConfigError while another trains under the name."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise ConfigError(f"a run's name is one folder name, not {name!r}")
    folder = make_folder(runs_folder() / name)
    with locked(folder / ".lock", busy=f"{name!r} is being trained; wait for it, or choose another name"):
        yield folder


def find_run(name: str, experiment: AnyExperiment, options: RunOptions | None = None) -> RunRecord | None:
    """The run's record, if there is one for this experiment; imports no tracking store. A run that never trained does not hold
    its name.

    Raises ConfigError when the name stands for another experiment.
    """
    folder = runs_folder() / name
    record_file, options = folder / "run.json", options or RunOptions()
    if record_file.is_file():
        record = from_json(RunRecord, record_file.read_bytes(), str(record_file))
        trained = newest_checkpoint(folder / "train") is not None or (folder / "bundle").exists()
        same_config = record.experiment == experiment
        same_data = record.data in (None, experiment.fingerprint())
        if same_config and not same_data and trained:
            raise ConfigError(
                f"run {name!r} was begun on other data than what lies there now ({record_file}); choose another name, or "
                "remove that folder"
            )
        if same_config and same_data:
            if record.options != options:
                record = replace(record, options=options)
                write_text_atomically(record_file, to_json(record))
            return record
        if trained:
            raise ConfigError(
                f"run {name!r} exists with another config ({record_file}); choose another name, or remove that folder"
            )
        shutil.rmtree(folder / "train", ignore_errors=True)
    elif any((folder / other).exists() for other in ("sweep.json", "comparison.json")):
        raise ConfigError(f"{folder}: is a sweep or a comparison; choose another name")
    return None


def make_run(name: str, experiment: AnyExperiment, options: RunOptions | None, tracker: Tracker) -> RunRecord:
    """Open the run in the tracking store and write its record. Raises UserErrors of the store and the disk."""
    folder, options = make_folder(runs_folder() / name), options or RunOptions()
    started = tracker.start(name, experiment, tags={"run_options": to_json(options, indent=None)})
    record = RunRecord(experiment, started, tracker.uri, experiment.fingerprint(), options)
    write_text_atomically(folder / "run.json", to_json(record))
    return record


def complete_run(folder: Path, record: RunRecord, checkpoint: Path) -> FinishedRun:
    """From a finished run's last checkpoint to bundle, report and metrics, all in MLflow as well.

    Raises UserError when all is written here but the tracking store is away.
    """
    run = write_run(folder, record, checkpoint)
    tracker = Tracker(record.tracking_uri, record.mlflow_run)
    with tracker.told(f"the model is trained ({run.bundle}, report {run.report})"):
        send_unsent(folder, tracker, run.mlflow_run)
        log_run(run, tracker)
    return run


def write_run(folder: Path, record: RunRecord, checkpoint: Path, sections: "Sequence[Section]" = ()) -> FinishedRun:
    """Bundle and report (``sections`` first) of a finished run's last checkpoint."""
    from rayrec.reporting import write_page  # matplotlib takes a second to import
    from rayrec.runs.run_report import run_sections

    progress = read_progress(checkpoint)
    record.experiment.save_bundle(checkpoint, folder / "bundle")
    write_page(folder / "report", f"rayrec: {folder.name}", (*sections, *run_sections(progress, record.experiment)))
    return FinishedRun(folder, record.mlflow_run, progress)


def log_run(run: FinishedRun, tracker: Tracker) -> None:
    """Final metrics, bundle and report. Raises what the store's client raises."""
    final = {
        f"final/{split}/{task}/{metric}": value
        for split, tasks in run.progress.evaluations.items()
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
    }
    tracker.log_metrics(run.mlflow_run, final, run.progress.step)
    tracker.log_folder(run.mlflow_run, run.bundle, "bundle")
    tracker.log_folder(run.mlflow_run, run.report.parent, "report")
    tracker.finish(run.mlflow_run)
