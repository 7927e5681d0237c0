"""One experiment to a finished run: all that can be known is checked first, then it is trained by Ray Train or right here."""

from contextlib import suppress
from pathlib import Path

from rayrec.families.table import AnyExperiment
from rayrec.runs.run_folder import FinishedRun, RunRecord, complete_run, find_run, make_run, only_one
from rayrec.runs.seeding import refuse_seed_mark
from rayrec.training.checkpoint import newest_checkpoint, read_progress
from rayrec.training.experiment import ScalingOptions, check_streams, train_here
from rayrec.training.loop import check_workers
from rayrec.training.metric_queue import MetricQueue, send_unsent
from rayrec.training.reporters import FolderReporter
from rayrec.training.tracking import Tracker
from rayrec.training.worker import RunOptions, Worker
from rayrec.typed_json import ConfigError


def fit(
    name: str,
    experiment: AnyExperiment,
    scaling: ScalingOptions | None = None,
    options: RunOptions | None = None,
    *,
    in_process: bool = False,
) -> FinishedRun:
    """Train (or go on with a run of this name), then write bundle and report and log both to MLflow.

    in_process: one worker in this very process, on CPU, without Ray. Raises UserErrors for whatever the user can put right,
    before anything is started; but what the tracking store says when it is first asked comes when Ray, which begins beside that,
    has begun.
    """
    scaling = scaling or ScalingOptions()
    if in_process and scaling.workers != 1:
        raise ConfigError(f"a run in process has one worker, not {scaling.workers}")
    refuse_seed_mark(experiment)
    experiment.check()
    check_streams(experiment, scaling.workers)
    with only_one(name) as folder:
        found, tracker = find_run(name, experiment, options), Tracker()
        if not in_process and not _is_trained(folder / "train"):
            from rayrec.runs.cluster import begin  # seconds of imports

            begin()  # beside the imports of the tracking store
        record = found or make_run(name, experiment, options, tracker)
        checkpoint = newest_checkpoint(folder / "train")
        progress = None if checkpoint is None else read_progress(checkpoint)
        if progress is not None:
            check_workers(progress, scaling.workers, f"run {name!r}")
        try:
            if progress is None or not progress.finished:
                if in_process:
                    _train_in_process(folder, record, start=checkpoint)
                else:
                    from rayrec.runs.ray_train import train_under_ray  # seconds of imports

                    train_under_ray(folder, record, scaling, start=checkpoint)
        except BaseException:
            with suppress(Exception):  # the store may be away; what went wrong is told by what is raised
                tracker = Tracker(record.tracking_uri, record.mlflow_run)
                tracker.finish(record.mlflow_run, failed=True)
                send_unsent(folder, tracker, record.mlflow_run)
            raise
        last = newest_checkpoint(folder / "train")
        if last is None:
            raise RuntimeError(f"{folder}: training ended without a checkpoint")
        return complete_run(folder, record, last)


def _is_trained(folder: Path) -> bool:
    checkpoint = newest_checkpoint(folder)
    return checkpoint is not None and read_progress(checkpoint).finished


def _train_in_process(folder: Path, record: RunRecord, *, start: Path | None) -> None:
    metrics = MetricQueue(folder, Tracker(record.tracking_uri, record.mlflow_run), record.mlflow_run)
    try:
        worker = Worker(options=record.options.here)
        train_here(record.experiment, FolderReporter(folder / "train", start), worker=worker, log_metrics=metrics.log)
    finally:
        metrics.close()
