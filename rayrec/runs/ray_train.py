"""An experiment under Ray Train: 1..n workers, restarted from checkpoints unless the same error would come again."""

import logging
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from rayrec.runs.cluster import connect, gpus, joined_cluster
from rayrec.runs.endings import clear_endings, ends_run, has_ended, raise_ending
from rayrec.runs.run_folder import RunRecord
from rayrec.training.experiment import ScalingOptions, train_here
from rayrec.training.metric_queue import MetricQueue
from rayrec.training.reporters import RayTrainReporter
from rayrec.training.tracking import Tracker
from rayrec.training.worker import Worker
from rayrec.typed_json import from_plain, to_plain

ABORT_SECONDS = 20.0  # for workers to end after Ctrl-C


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
            # Its warnings are tracebacks of what it tries again by itself on a busy machine; mypy does not see Train V2.
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
        ),
    )


def train_under_ray(folder: Path, record: RunRecord, scaling: ScalingOptions, *, start: Path | None) -> None:
    """Train to the end in a Ray Train worker group; ``start``: the newest checkpoint, for a run that was begun in process.

    Raises UserError for what no further attempt can change, RuntimeError for an error that came again at the same place.
    """
    clear_endings(folder)
    connect()
    settings = ray_train_settings(folder, scaling)
    trainer = _Trainer(
        worker_loop,
        train_loop_config={
            "record": to_plain(record),
            "folder": str(folder),
            "start": None if start is None else str(start),
        },
        scaling_config=settings.scaling_config,
        run_config=settings.run_config,
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        raise_ending(folder)
    if result.error is not None:
        raise result.error


class _Trainer(TorchTrainer):
    """Without two actors that cost seconds and do nothing here: one hands out datasets that a trainer was given, and this one is
    given none; the other, on an own cluster only, removes the workers' places should the controller die: such a cluster ends with
    this process, and beside other Rays it prints a traceback. Ctrl-C ends the workers and raises KeyboardInterrupt."""

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # of Train V2, which mypy does not see
        unwanted = ("DatasetsCallback",) if joined_cluster() else ("DatasetsCallback", "PlacementGroupCleanerCallback")
        return [callback for callback in made if type(callback).__name__ not in unwanted]

    def _register_sigint_handler(self, controller: Any) -> None:
        def interrupt(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
            with suppress(Exception):
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)


def worker_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs; ``config`` holds the run's record as plain JSON, its folder and where to begin."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised, and told once
    # Ray Train tells of each report by a logger that is named after its own file.
    files = [n for n in logging.root.manager.loggerDict if n.endswith("ray/train/v2/_internal/execution/context.py")]
    for name in ("ray.train", *files):
        logging.getLogger(name).setLevel(logging.WARNING)
    record = from_plain(RunRecord, config["record"], "the run's record")
    folder = Path(config["folder"])
    if has_ended(folder):
        return
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    worker = Worker(context.get_world_rank(), context.get_world_size(), device, record.options)
    if record.options.threads is None and device.type == "cpu":
        # Ray sets one thread for a fractional CPU; on CPUs training is the work, so share the machine out evenly.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    metrics = (
        MetricQueue(folder, Tracker(record.tracking_uri, record.mlflow_run), record.mlflow_run)
        if worker.rank == 0
        else None
    )
    reporter = RayTrainReporter(None if config["start"] is None else Path(config["start"]))
    try:
        train_here(
            record.experiment,
            reporter,
            worker=worker,
            log_metrics=(lambda values, step: None) if metrics is None else metrics.log,
        )
    except Exception as error:
        if not ends_run(folder, worker.rank, error, reporter.latest()) or worker.size > 1:
            raise  # Ray Train starts the workers again, from the last checkpoint
    finally:
        if metrics is not None:
            metrics.close()
