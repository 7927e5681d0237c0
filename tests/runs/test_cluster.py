"""How an own Ray is started: where it keeps its sockets, how its workers rank."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rayrec.errors import UserError
from rayrec.runs import cluster


def test_a_temporary_folder_with_a_long_name_gives_way_to_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert cluster._short_temporary_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert cluster._short_temporary_folder() == "/tmp/ray"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{long}: is too long .* set RAY_TMPDIR"):
        cluster._short_temporary_folder()


@pytest.mark.parametrize(("address", "niceness"), [("", "0"), ("127.0.0.1:6379", None)])
def test_workers_of_an_own_ray_rank_as_the_job_and_those_of_a_cluster_as_it_says(
    monkeypatch: pytest.MonkeyPatch, address: str, niceness: str | None
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **how: started.append({**how, "environ": dict(os.environ)}))
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": address})
    os.environ.pop("RAY_worker_niceness", None)
    cluster.connect()
    (how,) = started
    assert how["environ"].get("RAY_worker_niceness") == niceness
    assert "RAY_worker_niceness" not in how.get("runtime_env", {}).get("env_vars", {})


def test_what_was_begun_is_there_when_connect_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = [], threading.Event()

    def init(**how: Any) -> None:
        go_on.wait(10)
        started.append(threading.current_thread())

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": ""})
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    cluster.begin()
    assert not started
    go_on.set()
    cluster.connect()
    cluster.connect()
    (thread,) = started
    assert thread is not threading.current_thread()
    assert thread.is_alive()  # Ray's processes end with it


def test_what_could_not_be_begun_is_raised_by_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**how: Any) -> None:
        raise UserError("no room")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": ""})
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    cluster.begin()
    with pytest.raises(UserError, match="no room"):
        cluster.connect()


@pytest.mark.parametrize(("cores", "preloads"), [(2, True), (64, False)])
def test_processes_that_stand_by_import_train_on_machines_of_few_cores_alone(
    monkeypatch: pytest.MonkeyPatch, cores: int, preloads: bool
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(cluster.ray, "init", lambda **how: started.append(dict(os.environ)))
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], "RAY_ADDRESS": ""})
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    cluster.begin()
    cluster.connect()
    assert ("RAY_preload_python_modules" in started[0]) is preloads
