"""Runs in this very process: what is checked before, how a run goes on, who may train under a name, tracking that is away."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rayrec.data.log import Log, LogError
from rayrec.data.log.streams import LogStream, StreamConfig, StreamPosition, fitting_batch_size
from rayrec.errors import DiskError, DivergedError, UserError
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.files import locked
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.runs.endings import clear_endings, ends_run, has_ended, raise_ending
from rayrec.runs.fitting import fit
from rayrec.training import metric_queue
from rayrec.training.checkpoint import Progress, newest_checkpoint, read_progress
from rayrec.training.experiment import ScalingOptions, train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.metric_queue import MetricQueue, keep_unsent, send_unsent
from rayrec.training.reporters import CheckpointWriter, FolderReporter
from rayrec.training.tracking import Tracker
from rayrec.training.worker import RunOptions, Worker
from rayrec.typed_json import ConfigError, from_plain, to_json, to_plain


@pytest.fixture
def experiment(small_log: Path) -> RankerExperiment:
    return RankerExperiment(
        log=small_log,
        ranking=RankingConfig(architecture=RankerArchitecture(embedding_dim=4, trunk=(8,), tower=())),
        loop=LoopConfig(epochs=1, checkpoint_every_steps=10),
        stream=StreamConfig(batch_size=256),
    )


def test_a_place_for_a_seed_that_no_comparison_fills_is_refused(experiment: RankerExperiment) -> None:
    marked = replace(experiment, log=Path("/logs/seed-{seed}"))
    with pytest.raises(
        ConfigError, match=r"^log: \{seed\} in '/logs/seed-\{seed\}' stands for the seed of a comparison's trial"
    ):
        fit("marked", marked, in_process=True)


def test_what_is_wrong_with_a_runs_name_or_tracking_file_is_told_before_ray_begins(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayrec.runs import cluster

    monkeypatch.setattr(cluster, "begin", lambda: pytest.fail("Ray began"))
    (runs / "swept").mkdir(parents=True)
    (runs / "swept" / "sweep.json").touch()
    with pytest.raises(ConfigError, match="is a sweep or a comparison"):
        fit("swept", experiment)
    (runs / "mlflow.db").write_text("no database at all")
    with pytest.raises(UserError, match=r"mlflow\.db: is no tracking store of MLflow"):
        fit("new", experiment)


class Interrupted(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """The run raises when it writes its checkpoint of that step, before it is whole."""
    from rayrec.training import loop

    write = loop.write_checkpoint

    def writing(folder: Path, state: object, rank: int) -> None:
        if state.progress.step >= step:  # type: ignore[attr-defined]
            raise error
        write(folder, state, rank)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "write_checkpoint", writing)


def test_a_run_in_process_is_tracked_bundled_reported_and_not_trained_twice(
    runs: Path, experiment: RankerExperiment
) -> None:
    finished = fit("here", experiment, in_process=True)
    assert finished.bundle.is_dir()
    assert "<html" in finished.report.read_text()
    stored = Tracker().get(finished.mlflow_run)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["final/test/click/auc"] == finished.progress.evaluations["test"]["click"]["auc"]
    assert "valid/click/auc" in stored.data.metrics
    assert fit("here", experiment, in_process=True).progress == finished.progress
    with pytest.raises(ConfigError, match="exists with another config"):
        fit("here", replace(experiment, loop=LoopConfig(epochs=2)), in_process=True)


def test_a_run_in_process_imports_no_ray(small_log: Path, runs: Path) -> None:
    code = (
        "import sys; from jobs.train import main; sys.argv[1:] = sys.argv[1:]; main(); "
        "print('imported', [m for m in ('ray', 'matplotlib.pyplot') if m in sys.modules])"
    )
    arguments = ["ranker", "--log", str(small_log), "--name", "light", "--in-process", "--loop.epochs", "1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "imported []" in done.stdout


def test_too_few_rows_for_a_batch_are_told_before_anything_is_made(runs: Path, experiment: RankerExperiment) -> None:
    before = sorted(path.name for path in runs.iterdir())
    with pytest.raises(LogError, match="12000 rows, too few for a batch of 9000 rows on each of 2 workers"):
        fit("few", replace(experiment, stream=StreamConfig(batch_size=9000)), ScalingOptions(workers=2))
    assert sorted(path.name for path in runs.iterdir()) == before


def test_a_run_that_never_trained_does_not_hold_its_name(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 0, Interrupted())
        with pytest.raises(Interrupted):
            fit("again", experiment, in_process=True)
    other = replace(experiment, stream=StreamConfig(batch_size=512))
    assert fit("again", other, in_process=True).progress.finished


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_bit_for_bit(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    whole = fit("whole", experiment, in_process=True)
    monkeypatch.setenv("RAYREC_RUNS", str(small_disk / "runs"))
    (small_disk / "runs").mkdir()
    fill = small_disk / "fill"
    from rayrec.training import loop

    write = loop.write_checkpoint

    def filling(folder: Path, state: object, rank: int) -> None:
        if state.progress.step >= 30:  # type: ignore[attr-defined]
            with pytest.raises(OSError, match="No space"):
                fill.write_bytes(bytes(64 * 2**20))
        write(folder, state, rank)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_checkpoint", filling)
        with pytest.raises(DiskError, match="no space is left on its disk"):
            fit("full", experiment, in_process=True)
    newest = newest_checkpoint(small_disk / "runs" / "full" / "train")
    assert newest is not None
    assert read_progress(newest).step == 20
    fill.unlink()
    resumed = fit("full", experiment, in_process=True)
    assert resumed.progress.evaluations == whole.progress.evaluations


def test_the_same_name_twice_at_once_is_refused_while_the_first_lives(runs: Path, experiment: RankerExperiment) -> None:
    (runs / "busy").mkdir()
    with (
        locked(runs / "busy" / ".lock"),
        pytest.raises(UserError, match=r"'busy' is being trained; wait for it.*process"),
    ):
        fit("busy", experiment, in_process=True)
    assert fit("busy", experiment, in_process=True).progress.finished


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_a_run_s_name_is_one_folder_name(runs: Path, experiment: RankerExperiment, name: str) -> None:
    with pytest.raises(ConfigError, match="a run's name is one folder name"):
        fit(name, experiment, in_process=True)


def test_another_number_of_workers_is_refused_at_once_and_by_the_loop_itself(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 30, Interrupted())
        with pytest.raises(Interrupted):
            fit("one", experiment, in_process=True)
    message = r"was trained by 1 worker up to step 20 and can go on with as many only, not 2: set --scaling.workers 1"
    with pytest.raises(ConfigError, match=f"run 'one' {message}"):
        fit("one", experiment, ScalingOptions(workers=2))
    newest = newest_checkpoint(runs / "one" / "train")
    assert newest is not None
    progress = read_progress(newest)
    assert progress.workers == 1
    (newest / "progress.json").write_text(to_json(replace(progress, workers=2)))
    with pytest.raises(ConfigError, match="trained by 2 workers up to step 20"):
        train_here(experiment, FolderReporter(runs / "one" / "train"), worker=Worker())
    (newest / "progress.json").write_text(to_json(replace(progress, workers=0)))  # of a version before
    assert fit("one", experiment, in_process=True).progress.finished


@pytest.mark.parametrize(
    ("rows", "batch"), [(10, 10), (100, 32), (2100, 32), (24_000, 512), (32_561, 512), (164_000, 4096), (10**8, 4096)]
)
def test_a_batch_size_that_is_not_given_fits_the_log(rows: int, batch: int) -> None:
    assert fitting_batch_size(rows) == batch


def test_a_log_of_any_size_trains_without_a_batch_size(small_log: Path) -> None:
    log = Log.open(small_log)
    one = LogStream(log, "train", StreamConfig())
    assert (one.batch_size, one.steps_per_epoch) == (256, 46)
    two = LogStream(log, "train", StreamConfig(), rank=1, world_size=2)
    assert two.batch_size == 128
    whole = [len(batch) for batch in one.epoch_batches()]
    assert whole == [256] * 46
    with LogStream(log, "train", StreamConfig(), start=StreamPosition(0, 45)) as rest:
        assert len(list(rest.epoch_batches())) == 1


def test_a_tracking_server_that_is_not_there_is_one_line_in_seconds(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no run can be begun in the tracking store: http://127.0.0.1:9") as raised:
        fit("away", experiment, in_process=True)
    assert "\n" not in str(raised.value)
    assert not (runs / "away" / "run.json").exists()


def test_tracking_that_goes_away_costs_no_step_and_is_made_up_for(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*arguments: object, **more: object) -> None:
        raise ConnectionError("Max retries exceeded")

    impatient = {**MetricQueue.__init__.__kwdefaults__, "retry_seconds": 0.1, "patience_seconds": 1.0}
    monkeypatch.setattr(MetricQueue.__init__, "__kwdefaults__", impatient)
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log_metrics", away)
        with pytest.raises(UserError, match=r"the model is trained .*; run the same command again to log it there"):
            fit("away", experiment, in_process=True)
    assert capsys.readouterr().err.count("the tracking store does not take metrics") == 1
    assert (runs / "away" / "bundle").is_dir()
    assert (runs / "away" / "unsent_metrics.json").is_file()
    finished = fit("away", experiment, in_process=True)
    stored = Tracker().get(finished.mlflow_run)
    assert {"valid/click/auc", "train/loss", "final/test/click/auc"} <= set(stored.data.metrics)
    assert not (runs / "away" / "unsent_metrics.json").exists()


def test_metrics_wait_for_a_store_that_comes_back_in_order(runs: Path) -> None:
    class Flaky(Tracker):
        failures = 2

        def log_metrics(self, run_id: str, metrics: object, step: int) -> None:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("away")
            super().log_metrics(run_id, metrics, step)  # type: ignore[arg-type]

    tracker = Flaky()
    run = tracker.start("a-run", {"a": 1})
    queue = MetricQueue(runs, tracker, run, retry_seconds=0.01)
    for step in range(5):
        queue.log({"x": float(step), "none": None}, step)
    queue.close()
    history = tracker.client.get_metric_history(run, "x")
    assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in range(5)]
    send_unsent(runs, tracker, run)  # nothing is left


def test_metrics_of_a_short_run_are_on_disk_at_once_and_left_to_whoever_completes_it(runs: Path) -> None:
    class Busy(Tracker):
        def log_metrics(self, run_id: str, metrics: object, step: int) -> None:
            pytest.fail("asked")

    queue = MetricQueue(runs, Busy(), "a-run", quiet_seconds=60)
    queue.log({"x": 1.0, "none": None}, 1)
    assert '"x"' in (runs / "unsent_metrics.json").read_text()  # nothing is lost with the process
    queue.log({"x": 2.0}, 2)
    queue.close()
    tracker = Tracker()
    run = tracker.start("a-run", {"a": 1})
    send_unsent(runs, tracker, run)
    assert [metric.step for metric in tracker.client.get_metric_history(run, "x")] == [1, 2]


def test_a_longer_run_sends_its_first_metrics_itself_and_the_others_behind_them(runs: Path) -> None:
    tracker = Tracker()
    run = tracker.start("a-run", {"a": 1})
    queue = MetricQueue(runs, tracker, run, quiet_seconds=0.2)
    queue.log({"x": 1.0}, 1)
    deadline = time.monotonic() + 20
    while (runs / "unsent_metrics.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [metric.step for metric in tracker.client.get_metric_history(run, "x")] == [1]
    queue.log({"x": 2.0}, 2)
    queue.close()
    assert [metric.step for metric in tracker.client.get_metric_history(run, "x")] == [1, 2]


def test_what_is_kept_while_the_kept_is_being_sent_is_not_lost(runs: Path) -> None:
    sent: list[int] = []

    class Slow(Tracker):
        def log_metrics(self, run_id: str, metrics: object, step: int) -> None:
            sent.append(step)
            if step == 1:
                keep_unsent(runs, ((2, {"x": 2.0}),))

    keep_unsent(runs, ((1, {"x": 1.0}),))
    for _ in range(2):
        send_unsent(runs, Slow(), "a-run")
    assert sent == [1, 2]
    assert not (runs / "unsent_metrics.json").exists()


def test_what_a_store_did_not_take_at_first_is_sent_behind_the_next_that_it_takes(runs: Path) -> None:
    sent: list[int] = []

    class Flaky(Tracker):
        failed = threading.Event()

        def log_metrics(self, run_id: str, metrics: object, step: int) -> None:
            if not self.failed.is_set():
                self.failed.set()
                raise ConnectionError("away")
            sent.append(step)

    tracker = Flaky()
    queue = MetricQueue(runs, tracker, "a-run", quiet_seconds=0.1)
    queue.log({"x": 1.0}, 1)
    assert tracker.failed.wait(20)
    queue.log({"x": 2.0}, 2)
    queue.close()
    assert sent == [2, 1]


def test_a_disk_that_refuses_metrics_ends_no_training(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, steps: object) -> None:
        raise DiskError(f"{folder}: no space is left on its disk")

    sent: list[int] = []

    class Told(Tracker):
        def log_metrics(self, run_id: str, metrics: object, step: int) -> None:
            sent.append(step)

    monkeypatch.setattr(metric_queue, "keep_unsent", refuse)
    queue = MetricQueue(runs, Told(), "a-run", quiet_seconds=0.2)
    queue.log({"x": 1.0}, 1)
    deadline = time.monotonic() + 20
    while not sent and time.monotonic() < deadline:
        time.sleep(0.02)
    queue.close()
    assert sent == [1]


def test_a_store_of_another_mlflow_is_one_line_that_names_the_command(runs: Path, experiment: RankerExperiment) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(runs / "mlflow.db")) as connection, connection:
        connection.execute("update alembic_version set version_num = '0a8213491aaa'")
    with pytest.raises(UserError, match=r"mlflow db upgrade sqlite:////.*mlflow\.db; if a newer one: pip install"):
        fit("old", experiment, in_process=True)


def test_an_error_ends_a_run_when_it_is_the_user_s_or_comes_again_from_the_same_place(tmp_path: Path) -> None:
    def raised(error: Exception) -> Exception:
        try:
            raise error
        except Exception as one:
            return one

    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "progress.json").write_text(to_json(Progress(step=7)))
    assert not ends_run(tmp_path, 0, raised(RuntimeError("lost connection")), None)
    assert not ends_run(tmp_path, 0, raised(RuntimeError("other")), None)
    assert not ends_run(tmp_path, 0, raised(RuntimeError("other")), checkpoint)  # it came further
    raise_ending(tmp_path)
    assert ends_run(tmp_path, 0, raised(RuntimeError("other")), checkpoint)
    assert not ends_run(tmp_path, 1, raised(RuntimeError("cut off")), checkpoint)
    assert has_ended(tmp_path)
    with pytest.raises(RuntimeError, match=r"the same error came twice from step 7:\n(.|\n)*RuntimeError: other"):
        raise_ending(tmp_path)
    clear_endings(tmp_path)
    assert ends_run(tmp_path, 1, raised(LogError("part-00000.parquet: was cut")), None)
    with pytest.raises(UserError, match=r"^part-00000.parquet: was cut$"):
        raise_ending(tmp_path)


def named_by_ray(train: Path, *names: str) -> None:
    """What Ray Train keeps of the checkpoints that it has copied whole."""
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    (train / "checkpoint_manager_snapshot.json").write_text(json.dumps({"checkpoint_results": results}))


def test_a_checkpoint_that_is_not_whole_is_never_gone_on_from(tmp_path: Path) -> None:
    for name, step in (("checkpoint_a", 10), ("checkpoint-000003", 20), ("checkpoint_half_copied", 30)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(to_json(Progress(step=step)))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"
    named_by_ray(tmp_path, "checkpoint_a", "checkpoint_gone")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"
    shutil.rmtree(tmp_path / "checkpoint-000003")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_a"
    assert newest_checkpoint(tmp_path / "none") is None
    (tmp_path / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [{"che')
    with pytest.raises(ConfigError, match=r"checkpoint_manager_snapshot.json: was cut short .*remove it"):
        newest_checkpoint(tmp_path)
    assert json.loads((tmp_path / "checkpoint_a" / "progress.json").read_text())["workers"] == 0


def test_a_run_begun_under_ray_goes_on_in_process_from_where_it_stopped(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit("whole", experiment, in_process=True)
    with monkeypatch.context() as patch:
        stop_at(patch, 30, Interrupted())
        with pytest.raises(Interrupted):
            fit("moved", experiment, in_process=True)
    train = runs / "moved" / "train"
    begun = newest_checkpoint(train)
    assert begun is not None
    begun.rename(train / "checkpoint_2026-01-01_00-00-00.000000")  # as Ray Train names it
    named_by_ray(train, "checkpoint_2026-01-01_00-00-00.000000")
    for other in train.glob("checkpoint-*"):
        shutil.rmtree(other)
    written = []
    report = FolderReporter.report

    def reporting(self: FolderReporter, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        report(self, metrics, write)
        written.append(read_progress(max(self.folder.glob("checkpoint-*"))).step)

    monkeypatch.setattr(FolderReporter, "report", reporting)
    resumed = fit("moved", experiment, in_process=True)
    assert written[0] == 30
    assert resumed.progress.evaluations == whole.progress.evaluations


def test_a_folder_s_latest_checkpoint_is_the_further_of_its_own_and_the_one_to_start_from(tmp_path: Path) -> None:
    def at_step(step: int) -> CheckpointWriter:
        def write(folder: Path) -> None:
            (folder / "progress.json").write_text(to_json(Progress(step=step)))

        return write

    start = tmp_path / "checkpoint_b"
    reporter = FolderReporter(tmp_path, start)
    assert reporter.latest() is None
    reporter.report({}, at_step(20))
    start.mkdir()
    at_step(40)(start)
    assert reporter.latest() == start
    reporter.report({}, at_step(40))
    assert reporter.latest() == tmp_path / "checkpoint-000001"


def test_a_run_may_go_on_with_other_run_options_and_with_no_other_model(
    runs: Path, experiment: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 30, Interrupted())
        with pytest.raises(Interrupted):
            fit("options", experiment, in_process=True)
    with pytest.raises(ConfigError, match="exists with another config"):
        fit("options", replace(experiment, stream=replace(experiment.stream, window_rows=1000)), in_process=True)
    options = RunOptions(threads=1, progress_seconds=1.0, read_ahead=5)
    assert fit("options", experiment, options=options, in_process=True).progress.rows == 46 * 256
    assert '"read_ahead": 5' in (runs / "options" / "run.json").read_text()


def test_what_decides_a_model_says_nothing_of_how_it_is_run_and_is_read_where_it_once_did(
    experiment: RankerExperiment,
) -> None:
    plain = to_plain(experiment)
    run = {"threads", "progress_seconds", "reader", "read_ahead"}
    assert not run & (plain["loop"].keys() | plain["stream"].keys())
    plain["loop"] |= {"threads": 1, "progress_seconds": 5.0}
    plain["stream"] |= {"reader": "ray", "read_ahead": 2}
    assert from_plain(RankerExperiment, plain) == experiment
    with pytest.raises(ConfigError, match=r"loop\.treads"):
        from_plain(RankerExperiment, {**plain, "loop": {**plain["loop"], "treads": 1}})
    with pytest.raises(ConfigError, match=r"ranking\.threads"):
        from_plain(RankerExperiment, {**plain, "ranking": {**plain["ranking"], "threads": 1}})


@pytest.mark.parametrize("method", ["adamw", "galore", "muon"])
def test_a_run_that_diverges_ends_with_one_line(runs: Path, experiment: RankerExperiment, method: str) -> None:
    wild = replace(
        experiment,
        optimizer=OptimizerConfig(optimizer=method, learning_rate=1e30),  # type: ignore[arg-type]
        loop=replace(experiment.loop, gradient_clip=None),
    )
    with pytest.raises(DivergedError, match=r"training has diverged; lower the learning rate"):
        fit("wild", wild, in_process=True)
