"""What each Ray Train worker runs: imported there, without what only the driver needs."""

import logging
import os
from pathlib import Path
from typing import Any

import ray.train
import torch

from rayrec.runs.endings import ends_run, has_ended
from rayrec.runs.run_folder import RunRecord
from rayrec.training.experiment import train_here
from rayrec.training.metric_queue import MetricQueue
from rayrec.training.reporters import RayTrainReporter
from rayrec.training.tracking import Tracker
from rayrec.training.worker import Worker
from rayrec.typed_json import from_plain

QUIET_SECONDS = 10.0  # a shorter run's metrics are sent by the driver, which has imported the store's client already


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
    device = _device()
    worker = Worker(context.get_world_rank(), context.get_world_size(), device, record.options)
    if record.options.threads is None:
        # Ray sets one thread for a fractional CPU. Training is the work here, and beside a GPU indexes are searched on CPUs, so
        # share the machine out evenly.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    metrics = (
        MetricQueue(
            folder, Tracker(record.tracking_uri, record.mlflow_run), record.mlflow_run, quiet_seconds=QUIET_SECONDS
        )
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


def _device() -> torch.device:
    """The GPU that was given to this worker, else its CPUs."""
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()
