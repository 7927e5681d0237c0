"""How an own Ray is started: where it keeps its sockets, how its workers rank."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from ray._private import node, utils
from ray._private.parameter import RayParams

from rayrec.errors import UserError
from rayrec.runs import cluster
from rayrec.runs.own_ray import OwnNode, few_processes
from rayrec.runs.ray_settings import ONE_MACHINE_SETTINGS


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


@pytest.mark.parametrize(("address", "niceness", "freed_after"), [("", "0", "50"), ("127.0.0.1:6379", None, None)])
def test_workers_of_an_own_ray_rank_as_the_job_and_those_of_a_cluster_as_it_says(
    monkeypatch: pytest.MonkeyPatch, address: str, niceness: str | None, freed_after: str | None
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **how: started.append({**how, "environ": dict(os.environ)}))
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": address})
    for name in ONE_MACHINE_SETTINGS:
        os.environ.pop(name, None)
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"
    cluster.connect()
    (how,) = started
    assert how["environ"].get("RAY_worker_niceness") == niceness
    assert how["environ"].get("RAY_free_objects_period_milliseconds") == freed_after
    assert how["environ"]["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "1"  # the user's own
    assert not ONE_MACHINE_SETTINGS.keys() & how.get("runtime_env", {}).get("env_vars", {}).keys()


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


def test_ray_finds_its_settings_in_the_environment_before_its_thread_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thread:
        def __init__(self, **how: Any) -> None:
            pass

        def start(self) -> None:
            assert {"RAY_worker_niceness", "RAY_TRAIN_ENABLE_PRINT_PATCH"} <= os.environ.keys()

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], "RAY_ADDRESS": ""})
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setattr("atexit.register", lambda function: None)
    monkeypatch.setattr(cluster, "_beginning", None)
    monkeypatch.setattr("threading.Thread", Thread)
    cluster.begin()
    assert cluster._beginning is not None


def test_a_cluster_that_others_own_is_joined_when_it_is_needed_and_never_waited_for_at_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **how: pytest.fail("joined"))
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": "192.0.2.7:6379"})
    monkeypatch.setattr("atexit.register", lambda function: pytest.fail("waits"))
    cluster.begin()
    assert cluster._beginning is None


def test_whoever_connects_after_ctrl_c_waits_for_the_ray_that_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class Beginning(cluster.Future[None]):
        def result(self, timeout: float | None = None) -> None:
            if not self.done():
                raise KeyboardInterrupt

    beginning = Beginning()
    monkeypatch.setattr(cluster, "_beginning", beginning)
    monkeypatch.setattr(cluster.ray, "is_initialized", beginning.done)
    monkeypatch.setattr(cluster.ray, "init", lambda **how: pytest.fail("a second Ray"))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cluster.connect()
    beginning.set_result(None)
    cluster.connect()
    assert cluster._beginning is None


@pytest.mark.parametrize(
    ("asked", "told"), [(None, ""), (4, ""), (8, "Ray runs already, with 4 CPUs; the 8 asked for")]
)
def test_cpus_that_a_running_ray_lacks_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: int | None, told: str
) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 4.0})
    cluster.connect(num_cpus=asked)
    shown = capsys.readouterr().err
    assert shown.startswith(told)
    assert bool(shown) is bool(told)


@pytest.mark.parametrize(("kind", "started"), [(node.Node, ["monitor", "dashboard"]), (OwnNode, [])])
def test_an_own_ray_has_no_monitor_and_no_dashboard_process(
    monkeypatch: pytest.MonkeyPatch, kind: Any, started: list[str]
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(node.Node, "__init__", lambda self, ray_params, **how: setattr(self, "_ray_params", ray_params))
    for name in ("start_gcs_server", "_write_cluster_info_to_kv"):
        monkeypatch.setattr(node.Node, name, lambda self: None)
    monkeypatch.setattr(node.Node, "get_gcs_client", lambda self: "there")
    monkeypatch.setattr(node.Node, "start_monitor", lambda self: begun.append("monitor"))
    monkeypatch.setattr(node.Node, "start_api_server", lambda self, **how: begun.append("dashboard"))
    asks = utils.get_dashboard_dependency_error
    with few_processes():
        assert node.Node is OwnNode
        assert utils.get_dashboard_dependency_error() is None
    assert node.Node is not OwnNode
    assert utils.get_dashboard_dependency_error is asks
    head = kind(RayParams(include_dashboard=False))
    head._gcs_address = head._gcs_client = None
    head._logs_dir = ""
    head.start_head_processes()
    assert begun == started
