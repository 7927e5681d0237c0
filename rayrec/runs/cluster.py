"""Ray for a job: the cluster it was submitted to, or an own one on this machine."""

import logging
import os

import ray

# A report waits for a poll of the controller (2 s by default). Prints reach the driver as they are. Nothing is preempted on an
# own machine, and its dashboard is off, which the watcher would report every second.
_TRAIN_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
_OWN_CLUSTER_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def connect(*, num_cpus: int | None = None) -> None:
    """Join the cluster of ``$RAY_ADDRESS`` (set in submitted jobs), else start a private one here. Idempotent.

    A private Ray listens without dashboard, takes 300 MB of shared memory for blocks on their way, and ends with the process.
    Workers log errors only; what they print (progress) is shown.
    """
    if ray.is_initialized():
        return
    own = not os.environ.get("RAY_ADDRESS")
    settings = _TRAIN_SETTINGS | (_OWN_CLUSTER_SETTINGS if own else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    logs = ray.LoggingConfig(log_level="ERROR")
    if not own:
        ray.init(log_to_driver=True, runtime_env={"env_vars": settings}, logging_config=logs)
        return
    ray.init(
        address="local",
        num_cpus=num_cpus or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=True,
        logging_level=logging.WARNING,
        logging_config=logs,
    )


def gpus() -> int:
    """Whole GPUs of the connected cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
