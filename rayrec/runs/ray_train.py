"""An experiment under Ray Train: 1..n workers, restarted from checkpoints unless the same error would come again."""

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import BackendConfig, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rayrec.errors import UserError
from rayrec.runs.cluster import connect, gpus, joined_cluster
from rayrec.runs.endings import clear_endings, raise_ending
from rayrec.runs.ray_controller import LoneController, OwnWorkers, PlainController
from rayrec.runs.ray_worker import worker_loop
from rayrec.runs.run_folder import RunRecord
from rayrec.training.experiment import ScalingOptions
from rayrec.typed_json import to_plain

ABORT_SECONDS = 20.0  # for workers to end after Ctrl-C


@dataclass(frozen=True)
class RayTrainSettings:
    """Ray Train's view of where and on what a run happens."""

    scaling_config: ScalingConfig
    run_config: RunConfig


def ray_train_settings(folder: Path, scaling: ScalingOptions) -> RayTrainSettings:
    """Raises what ``resources_per_worker`` raises."""
    resources = resources_per_worker(scaling)
    return RayTrainSettings(
        ScalingConfig(num_workers=scaling.workers, use_gpu=resources["GPU"] > 0, resources_per_worker=dict(resources)),
        RunConfig(
            name="train",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # Its warnings are tracebacks of what it tries again by itself on a busy machine; mypy does not see Train V2.
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
        ),
    )


def resources_per_worker(scaling: ScalingOptions) -> Mapping[str, float]:
    """CPUs and GPUs: a GPU (and nccl) when the cluster has one a worker; leaves CPUs for the tasks that read the log.

    Raises UserError for more than an own Ray will ever have, which Ray Train would wait for."""
    use_gpu = scaling.device == "gpu" or (scaling.device == "auto" and gpus() >= scaling.workers)
    cpus = scaling.cpus_per_worker
    if cpus is None:
        available = ray.cluster_resources().get("CPU", 1.0)
        cpus = 1.0 if available >= 2 * scaling.workers + 1 else min(0.5, available / (2 * scaling.workers))
    if not joined_cluster():
        for kind, each in (("CPU", cpus), ("GPU", int(use_gpu))):
            there = ray.cluster_resources().get(kind, 0.0)
            if scaling.workers * each > there:
                raise UserError(
                    f"scaling: {scaling.workers} workers with {each:g} {kind}s each ask for {scaling.workers * each:g}, and this "
                    f"machine has {there:g}"
                )
    return {"CPU": cpus, "GPU": int(use_gpu)}


def train_under_ray(folder: Path, record: RunRecord, scaling: ScalingOptions, *, start: Path | None) -> None:
    """Train to the end in a Ray Train worker group; ``start``: the newest checkpoint, for a run that was begun in process.

    Raises UserError for what no further attempt can change, RuntimeError for an error that came again at the same place.
    """
    clear_endings(folder)
    connect()
    settings = ray_train_settings(folder, scaling)
    trainer = Trainer(
        worker_loop,
        train_loop_config={
            "record": to_plain(record),
            "folder": str(folder),
            "start": None if start is None else str(start),
        },
        settings=settings,
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


class Trainer(DataParallelTrainer):
    """As Ray Train's for torch. One worker on CPUs has no one to talk to: without a process group, its controller needs no torch.

    Without two actors that cost seconds and do nothing here: one hands out datasets that a trainer was given, and this one is
    given none; the other, on an own cluster only, removes the workers' places should the controller die: such a cluster ends with
    this process, and beside other Rays it prints a traceback. Ctrl-C ends the workers and raises KeyboardInterrupt."""

    def __init__(
        self, loop: Callable[[dict[str, Any]], None], *, train_loop_config: dict[str, Any], settings: RayTrainSettings
    ) -> None:
        scaling = settings.scaling_config
        super().__init__(
            loop,
            train_loop_config=train_loop_config,
            backend_config=BackendConfig()
            if scaling.num_workers == 1 and not scaling.use_gpu
            else _torch_backend(gpu=bool(scaling.use_gpu)),
            scaling_config=scaling,
            run_config=settings.run_config,
        )

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()
        unwanted = ("DatasetsCallback",) if joined_cluster() else ("DatasetsCallback", "PlacementGroupCleanerCallback")
        return [callback for callback in made if type(callback).__name__ not in unwanted]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if joined_cluster():
            rays: Any = (
                data_parallel_trainer  # its controller gets Ray Train's environment; there is no option for its class
            )
            theirs, rays.TrainController = rays.TrainController, LoneController
            try:
                return super()._initialize_and_run_controller(**settings)
            finally:
                rays.TrainController = theirs
        settings["scaling_policy"] = OwnWorkers(settings["scaling_policy"].scaling_config)
        controller: Any = ray.remote(num_cpus=0)(PlainController).remote(**settings)
        if threading.current_thread() is threading.main_thread():
            self._register_sigint_handler(controller)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

    def _register_sigint_handler(self, controller: Any) -> None:
        def interrupt(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
            with suppress(Exception):
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)


def _torch_backend(*, gpu: bool) -> BackendConfig:
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if gpu else "gloo")
