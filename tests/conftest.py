"""Shared fixtures: one local Ray for the whole session, and the folder of public data (RAYREC_DATA)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start: two of pytest fill two cores
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import settings

from rayrec.data.log import LogWriter
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    SequenceFeature,
    TaskLabel,
)
from rayrec.local_store import prepare
from rayrec.runs.ray_settings import ONE_MACHINE_SETTINGS

settings.register_profile("busy machine", deadline=None)  # an example's time says nothing where other work runs
settings.load_profile("busy machine")
ROOT = Path(__file__).parent
torch.set_num_threads(1)  # of this process: sums come out alike, and tests share their machine


LONG = ("test_killed_run.py", "test_ray_job_submission.py")  # minutes in one file, on a Ray of its own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that ``pytest -n 2 --dist loadfile --no-loadscope-reorder`` ends with short files: each
    goes whole, with its module's fixtures, to the process that is free. Each process has a Ray of its own."""
    on_ray = {item.path for item in items if "ray_session" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path.name not in LONG, item.path not in on_ray))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of 4 logical CPUs, shared by all tests that need one."""
    import ray

    from rayrec.runs.own_ray import few_processes
    from serve_apps.service.front import prepare_front

    prepare_front()
    for name, value in ONE_MACHINE_SETTINGS.items():
        os.environ.setdefault(name, value)
    how = {"include_dashboard": False, "object_store_memory": 300_000_000, "log_to_driver": False}
    with few_processes():  # as an own Ray of a job
        ray.init(address="local", num_cpus=4, **how)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of public data sets; tests that need an absent file skip."""
    root = Path(os.environ.get("RAYREC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no public data at {root} (set RAYREC_DATA)")
    return root


def write_small_log(folder: Path, *, rows: int = 12_000, seed: int = 0, labeled: bool = True) -> Path:
    """A log with two tasks whose true logits are known to be learnable: two dense, two categorical, one sequence feature."""
    generator = np.random.default_rng(seed)
    effects = np.random.default_rng(7).normal(size=(2, 21))
    schema = LogSchema(
        name="small",
        features=(
            DenseFeature("age", statistics=DenseStatistics(0.0, 1.0, 0.1)),
            DenseFeature("price", transform="log1p", statistics=DenseStatistics(1.0, 0.6, 0.0)),
            CategoricalFeature("user", encoding="hash", buckets=50),
            CategoricalFeature("item", vocabulary=tuple(f"item-{i}" for i in range(20))),
            SequenceFeature("history", max_length=5, shares="item"),
        ),
        tasks=(TaskLabel("click"), TaskLabel("buy", observed_when="click")),
    )
    with LogWriter(folder, schema, rows_per_file=4_000) as writer:
        for split, share in (("train", 1.0), ("valid", 0.25), ("test", 0.25)):
            n = int(rows * share)
            age, price = generator.normal(size=n), generator.exponential(2.0, size=n)
            user, item = generator.integers(1, 51, n), generator.integers(1, 21, n)
            history = generator.integers(1, 21, size=(n, 5))
            logit = age + effects[0][item] + effects[0][history].mean(1) - 0.5
            click = (generator.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32)
            buy = (generator.random(n) < 1 / (1 + np.exp(-effects[1][item] - 0.3 * price))).astype(np.float32)
            buy[click == 0] = np.nan
            empty = np.full(n, np.nan, dtype=np.float32)
            writer.write(
                split,
                pa.table(
                    {
                        "age": pa.array(age, pa.float32(), mask=generator.random(n) < 0.1),
                        "price": pa.array(price, pa.float32()),
                        "user": pa.array(user, pa.int32()),
                        "item": pa.array(item, pa.int32()),
                        "history": pa.array(list(history), pa.list_(pa.int32())),
                        "click": pa.array(click if labeled else empty, from_pandas=True),
                        "buy": pa.array(buy if labeled else empty, from_pandas=True),
                    }
                ),
            )
        writer.finish({"importer": "test"})
    return folder


def with_quantiles(schema: LogSchema) -> LogSchema:
    """The schema with 0, 1/64, ..., 1 as the quantiles of every number; ``write_small_log`` leaves them out, as old logs do."""
    features = tuple(
        replace(f, statistics=replace(f.statistics, quantiles=tuple(i / 64 for i in range(65))))
        if isinstance(f, DenseFeature) and f.statistics is not None
        else f
        for f in schema.features
    )
    return schema.with_features(features)


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12,000 training rows, 3,000 each for validation and test."""
    return write_small_log(tmp_path_factory.mktemp("logs") / "small")


@pytest.fixture(scope="session")
def empty_mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables: making them takes seconds, a copy none."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare(file)
    return file


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow_store: Path) -> Path:
    """An own runs folder with an own MLflow store."""
    monkeypatch.setenv("RAYREC_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_mlflow_store, tmp_path / "runs" / "mlflow.db")
    return tmp_path / "runs"


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An own disk of 16 MB, or as many as a test gives by ``parametrize("small_disk", [1], indirect=True)``; skips where
    mounting is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={getattr(request, 'param', 16)}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
