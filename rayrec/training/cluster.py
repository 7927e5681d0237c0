"""Ray for a job: the cluster it was submitted to, or an own one on this machine."""

import logging
import os

import ray


def connect(*, num_cpus: int | None = None) -> None:
    """Join the cluster of ``$RAY_ADDRESS`` (set in submitted jobs), else start a private one here. Idempotent.

    A private Ray listens without dashboard, takes 300 MB of shared memory for blocks on their way, and ends with the process.
    """
    if ray.is_initialized():
        return
    quiet = {"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True, runtime_env=quiet)
        return
    os.environ.setdefault(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"
    )  # each report waits for a poll; the default is 2 s
    ray.init(
        address="local",
        num_cpus=num_cpus or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=True,
        logging_level=logging.WARNING,
    )


def gpus() -> int:
    """Whole GPUs of the connected cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
