"""The MLflow file of a runs folder: jobs that begin together, one that is killed, a folder that is moved or copied."""

import multiprocessing as mp
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rayrec.errors import UserError
from rayrec.files import locked
from rayrec.local_store import StoreError, find_store, prepare
from rayrec.registry import RegistryError, resolve_model
from rayrec.training.tracking import Tracker


@pytest.fixture
def trained(runs: Path) -> tuple[Path, str]:
    """A runs folder with one registered model, and its run."""
    bundle = runs.parent / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    tracker = Tracker()
    run = tracker.start("first", {"a": 1})
    tracker.log_folder(run, bundle, "bundle")
    tracker.register(run, "m")
    return runs, run


def _begin(name: str, barrier: Any, found: Any) -> None:
    barrier.wait()
    try:
        found.put((name, Tracker().start(name, {"a": 1})))
    except BaseException as error:
        found.put((name, error))


def test_two_jobs_may_begin_at_once_on_a_new_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    context = mp.get_context("spawn")
    barrier, found = context.Barrier(2), context.Queue()
    jobs = [context.Process(target=_begin, args=(f"job{i}", barrier, found)) for i in range(2)]
    for job in jobs:
        job.start()
    started = dict(found.get(timeout=120) for _ in jobs)
    for job in jobs:
        job.join()
    assert all(isinstance(run, str) for run in started.values()), started
    assert {Tracker().get(run).info.run_name for run in started.values()} == {"job0", "job1"}


def test_a_job_that_is_killed_while_tables_are_made_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "mlflow.db"
    context = mp.get_context("spawn")
    victim = context.Process(target=prepare, args=(file,))
    victim.start()
    deadline = time.monotonic() + 120
    while not list(file.parent.glob(".mlflow.db.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert not file.exists()
    prepare(file)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("select name from experiments where name = 'rayrec'").fetchall() == [("rayrec",)]
    assert not list(file.parent.glob(".mlflow.db.*"))


def test_a_store_whose_writer_was_killed_in_the_middle_is_read_and_written_again(runs: Path) -> None:
    """The journal that it leaves must be undone before anyone reads, which a connection that may only read cannot do."""
    file = runs / "mlflow.db"
    Tracker().start("before", {"a": 1})
    writer = (
        "import os, signal, sqlite3, sys\n"
        "store = sqlite3.connect(sys.argv[1])\n"
        "store.execute('pragma cache_size = 1')\n"
        "store.execute('begin immediate')\n"
        "store.execute('create table filler (x)')\n"
        "store.executemany('insert into filler values (?)', [('x' * 1000,)] * 2000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", writer, str(file)], check=False)
    assert file.with_name("mlflow.db-journal").stat().st_size > 0
    with (
        closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        reader.execute("select count(*) from runs")
    Tracker().start("after", {"a": 2})
    with closing(sqlite3.connect(file)) as store:
        assert store.execute("select count(*) from runs").fetchone() == (2,)
        assert store.execute("select 1 from sqlite_master where name = 'filler'").fetchall() == []


def test_a_store_spoiled_before_is_made_anew_unless_it_holds_runs(runs: Path) -> None:
    file = runs / "mlflow.db"

    def spoil() -> None:
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("create table _alembic_tmp_metrics (x int)")

    spoil()
    run = Tracker().start("a-run", {"a": 1})
    assert Tracker().get(run).info.run_name == "a-run"
    spoil()
    with pytest.raises(StoreError, match=r"mlflow\.db: a job was killed while it changed the tables; put back a copy"):
        Tracker()


def test_a_moved_runs_folder_is_used_where_it_lies_now(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, run = trained
    recorded = Tracker().uri
    new = old.parent / "moved_100_here"
    old.rename(new)
    monkeypatch.setenv("RAYREC_RUNS", str(new))
    assert resolve_model("models:/m@serving").path.is_relative_to(new)
    assert '"a": 1' in Tracker().config_text(run)
    Tracker(recorded).log_metrics(run, {"x": 1.0}, 1)
    assert Tracker().get(run).data.metrics == {"x": 1.0}
    later = Tracker().get(Tracker().start("later", {"a": 2})).info.artifact_uri
    assert later.startswith(f"file://{new}/mlartifacts/")
    assert not old.exists()


def test_a_copy_never_writes_into_the_original(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    old, run = trained
    recorded = Tracker().uri
    new = old.parent / "copy"
    shutil.copytree(old, new)
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    monkeypatch.setenv("RAYREC_RUNS", str(new))
    assert resolve_model("models:/m@serving").path.is_relative_to(new)
    Tracker().start("second", {"a": 2})
    Tracker(recorded, run).log_metrics(run, {"x": 1.0}, 1)
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before
    assert Tracker().get(run).data.metrics == {"x": 1.0}


def test_a_tracking_file_put_back_from_a_copy_is_noticed_by_an_open_client(trained: tuple[Path, str]) -> None:
    runs, run = trained
    tracker = Tracker()
    tracker.register(run, "m")
    assert tracker.version_of("models:/m@serving") == ("m", "2")
    shutil.copy(runs / "mlflow.db", runs / "copy.db")
    (runs / "mlflow.db").unlink()
    with pytest.raises(RegistryError, match="there is no tracking store"):
        tracker.version_of("models:/m@serving")
    assert not (runs / "mlflow.db").exists()
    (runs / "copy.db").rename(runs / "mlflow.db")
    Tracker().point_alias("m", "serving", "1")
    assert tracker.version_of("models:/m@serving") == ("m", "1")


def test_other_stores_are_left_as_they_are_named(runs: Path, tmp_path: Path) -> None:
    for uri in ("http://localhost:5000", f"sqlite:///{tmp_path}/other.db", f"sqlite:///{runs}/mlflow.db"):
        assert find_store(uri) == uri


@pytest.mark.parametrize("name", ["what?", "50%", "a#b"])
def test_a_runs_folder_that_no_address_can_name_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("RAYREC_RUNS", str(tmp_path / name))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(StoreError, match="a runs folder's path must not hold"):
        Tracker()


def test_a_lock_is_refused_while_its_holder_lives_and_free_when_it_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from rayrec.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(UserError, match=f"run 'a' is being trained .process {holder.pid} on"),
        locked(tmp_path / "lock", busy="run 'a' is being trained"),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock", busy="run 'a' is being trained"):
        pass
