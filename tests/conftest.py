"""Shared fixtures: one local Ray for the whole session, and the folder of public data (RAYREC_DATA)."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of 4 logical CPUs, shared by all tests that need one."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of public data sets; tests that need an absent file skip."""
    root = Path(os.environ.get("RAYREC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no public data at {root} (set RAYREC_DATA)")
    return root
