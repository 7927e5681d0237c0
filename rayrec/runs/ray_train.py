"""An experiment under Ray Train: 1..n workers, restarted from checkpoints, tracked, bundled and reported.

<run>/run.json      the experiment and its MLflow run id: running the same name again goes on where it stopped
<run>/train/        Ray Train's storage: checkpoints
<run>/bundle/       the trained model
<run>/report/       report.html and its plots
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from rayrec.families.table import AnyExperiment
from rayrec.files import write_text_atomically
from rayrec.registry import runs_folder
from rayrec.reporting import Section, write_page
from rayrec.runs.cluster import connect, gpus
from rayrec.runs.run_report import run_sections
from rayrec.training.checkpoint import Progress, read_progress
from rayrec.training.experiment import ScalingOptions, train_here
from rayrec.training.loop import Worker
from rayrec.training.reporters import RayTrainReporter
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError, from_json, from_plain, to_json, to_plain


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` holds."""

    experiment: AnyExperiment
    mlflow_run: str
    tracking_uri: str


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


def open_run(name: str, experiment: AnyExperiment, *, parent: str | None = None) -> tuple[Path, RunRecord]:
    """Make the run's folder, or find it again. Raises ConfigError when the name stands for another experiment."""
    folder = runs_folder() / name
    record_file = folder / "run.json"
    if record_file.is_file():
        record = from_json(RunRecord, record_file.read_bytes(), str(record_file))
        if record.experiment != experiment:
            raise ConfigError(
                f"run {name!r} exists with another config ({record_file}); choose another name, or remove that folder"
            )
        return folder, record
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker()
    record = RunRecord(experiment, tracker.start(name, experiment, parent=parent), tracker.uri)
    write_text_atomically(record_file, to_json(record))
    return folder, record


def fit(name: str, experiment: AnyExperiment, scaling: ScalingOptions | None = None) -> FinishedRun:
    """Train under Ray Train (or go on with a run of this name), then write bundle and report and log both to MLflow."""
    scaling = scaling or ScalingOptions()
    experiment.check()  # a broken input is an error here, before anything is started
    folder, record = open_run(name, experiment)
    tracker = Tracker(record.tracking_uri, record.mlflow_run)
    connect()
    try:
        return complete_run(folder, record, _train(folder, record, scaling))
    except BaseException:
        tracker.finish(record.mlflow_run, failed=True)
        raise


def complete_run(folder: Path, record: RunRecord, checkpoint: Path, sections: Sequence[Section] = ()) -> FinishedRun:
    """From a finished run's last checkpoint to bundle, report (``sections`` first) and metrics, all in MLflow as well."""
    tracker = Tracker(record.tracking_uri, record.mlflow_run)
    progress = read_progress(checkpoint)
    bundle = record.experiment.save_bundle(checkpoint, folder / "bundle")
    final = {
        f"final/{split}/{task}/{metric}": value
        for split, tasks in progress.evaluations.items()
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
    }
    tracker.log_metrics(record.mlflow_run, final, progress.step)
    page = write_page(
        folder / "report", f"rayrec: {folder.name}", (*sections, *run_sections(progress, record.experiment))
    )
    tracker.log_folder(record.mlflow_run, bundle, "bundle")
    tracker.log_folder(record.mlflow_run, page.parent, "report")
    tracker.finish(record.mlflow_run)
    return FinishedRun(folder, record.mlflow_run, progress)


@dataclass(frozen=True)
class RayTrainSettings:
    """Ray Train's view of where and on what a run happens."""

    scaling_config: ScalingConfig
    run_config: RunConfig


def ray_train_settings(folder: Path, scaling: ScalingOptions) -> RayTrainSettings:
    """GPUs and nccl when the cluster has one a worker, else CPUs; leaves CPUs for the tasks that read the log."""
    use_gpu = scaling.device == "gpu" or (scaling.device == "auto" and gpus() >= scaling.workers)
    cpus = scaling.cpus_per_worker
    if cpus is None:
        available = ray.cluster_resources().get("CPU", 1.0)
        cpus = 1.0 if available >= 2 * scaling.workers + 1 else min(0.5, available / (2 * scaling.workers))
    return RayTrainSettings(
        ScalingConfig(
            num_workers=scaling.workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus, "GPU": int(use_gpu)}
        ),
        RunConfig(
            name="train",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # of Train V2, which mypy does not see
        ),
    )


def _train(folder: Path, record: RunRecord, scaling: ScalingOptions) -> Path:
    settings = ray_train_settings(folder, scaling)
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config={"record": to_plain(record)},
        scaling_config=settings.scaling_config,
        run_config=settings.run_config,
    )
    result = trainer.fit()
    if result.error is not None:
        raise result.error
    if result.checkpoint is None:
        raise RuntimeError(f"{folder}: training ended without a checkpoint")
    return Path(result.checkpoint.to_directory())


def worker_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs; ``config`` holds the run's record as plain JSON."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    record = from_plain(RunRecord, config["record"], "the run's record")
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    worker = Worker(context.get_world_rank(), context.get_world_size(), device)
    if record.experiment.loop.threads is None and device.type == "cpu":
        # Ray sets one thread for a fractional CPU; on CPUs training is the work, so share the machine out evenly.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    tracker = Tracker(record.tracking_uri, record.mlflow_run) if worker.rank == 0 else None

    def log_metrics(metrics: Mapping[str, float | None], step: int) -> None:
        if tracker is not None:
            tracker.log_metrics(record.mlflow_run, metrics, step)

    train_here(
        record.experiment,
        RayTrainReporter(),
        worker=worker,
        log_metrics=log_metrics,
    )
