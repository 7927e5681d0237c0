"""Sweeps: every trial is tracked, the best one wins and is completed, and a killed sweep goes on."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from rayrec.data.log.streams import StreamConfig
from rayrec.errors import DiskError, UserError
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.balancing.cagrad import Cagrad
from rayrec.models.ranker import RankerArchitecture
from rayrec.runs import sweeping
from rayrec.runs.run_folder import RunRecord
from rayrec.runs.sweep_state import KeepAndShow, keep, put_back
from rayrec.runs.sweep_trial import Trial, ranked
from rayrec.runs.sweeping import FinishedSweep, SweepConfig, SweepSpace, apply_parameters, sweep, trial_record
from rayrec.training.experiment import ScalingOptions
from rayrec.training.loop import LoopConfig
from rayrec.training.metric_queue import keep_unsent
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError, to_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(small_log: Path) -> RankerExperiment:
    return RankerExperiment(
        log=small_log,
        ranking=RankingConfig(architecture=RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,))),
        loop=LoopConfig(epochs=2),
        stream=StreamConfig(batch_size=512),
    )


def test_a_sweep_tracks_every_trial_and_completes_the_best(
    ray_session: None, runs: Path, base: RankerExperiment
) -> None:
    space = SweepSpace(
        ("ranker",), {"optimizer.learning_rate": tune.choice([1e-6, 1e-2]), "loop.seed": tune.choice([0, 1])}
    )
    finished = sweep("small-sweep", "ranker", space, SweepConfig(base, trials=4, concurrent=1))
    objectives = [trial.objective for trial in finished.trials]
    assert len(objectives) == 4
    assert None not in objectives
    best = next(trial for trial in finished.trials if trial.name == finished.winner_trial)
    assert best.objective == min(o for o in objectives if o is not None)
    winner = load_bundle(finished.winner.bundle)
    assert winner.metadata.run_config["optimizer"]["learning_rate"] == best.parameters["optimizer.learning_rate"]
    assert winner.metadata.metrics["test"]["click"]["auc"] is not None
    assert "Sweep" in finished.winner.report.read_text()
    tracker = Tracker()
    experiment_id = tracker.get(finished.mlflow_run).info.experiment_id
    children = tracker.client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{finished.mlflow_run}'")
    assert len(children) == 4
    assert {child.info.status for child in children} == {"FINISHED"}


def test_a_store_that_is_away_at_the_end_of_a_sweep_is_one_line_and_told_of_all_by_the_same_command(
    ray_session: None, runs: Path, base: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object, **more: object) -> None:
        raise ConnectionError("Max retries exceeded")

    space = SweepSpace(("ranker",), {"loop.seed": tune.choice([0, 1])})
    config = SweepConfig(replace(base, loop=replace(base.loop, epochs=1)), trials=2, concurrent=1)
    shown: list[FinishedSweep] = []
    with monkeypatch.context() as patch:
        for name in ("log_metrics", "log_folder", "finish"):
            patch.setattr(Tracker, name, away)
        with pytest.raises(UserError, match=r"^the sweep is done .*; run the same command again") as raised:
            sweep("away", "ranker", space, config, shown.append)
    assert "\n" not in str(raised.value)
    assert len(shown[0].trials) == 2
    assert shown[0].winner.report.is_file()
    tracker = Tracker()
    forgotten = tracker.start(
        "away-forgotten", config.base
    )  # begun right before a kill, so that Tune knows nothing of it
    note = trial_record(runs / "away", "forgotten")
    note.write_text(to_json(RunRecord(config.base, forgotten, tracker.uri)))
    finished = sweep("away", "ranker", space, config)
    assert {t.name: t.objective for t in finished.trials} == {t.name: t.objective for t in shown[0].trials}
    assert {path.stem for path in note.parent.glob("*.json")} == {t.name for t in finished.trials}
    assert tracker.get(forgotten).info.status == "FAILED"
    run = tracker.get(finished.mlflow_run)
    assert (run.info.status, run.data.tags["winner"]) == ("FINISHED", finished.winner.mlflow_run)
    assert "final/test/click/auc" in tracker.get(finished.winner.mlflow_run).data.metrics


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_a_sweep_with_one_line_and_it_goes_on_when_there_is_room(
    ray_session: None,
    runs: Path,
    base: RankerExperiment,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAYREC_RUNS", str(small_disk / "runs"))
    fill, complete = small_disk / "fill", KeepAndShow.on_trial_complete

    def filling(self: KeepAndShow, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        complete(self, iteration, trials, trial, **info)
        with pytest.raises(OSError, match="No space"):
            fill.write_bytes(bytes(64 * 2**20))

    space = SweepSpace(("ranker",), {"optimizer.learning_rate": tune.loguniform(1e-3, 1e-2)})
    config = SweepConfig(replace(base, loop=replace(base.loop, epochs=1)), trials=3, concurrent=1)
    with monkeypatch.context() as patch:
        patch.setattr(KeepAndShow, "on_trial_complete", filling)
        with pytest.raises(DiskError, match=rf"^{small_disk}/runs/full.*: no space is left on its disk$"):
            sweep("full", "ranker", space, config)
    shown = capfd.readouterr()
    (first,) = [line for line in shown.out.splitlines() if line.startswith("trial 1 of 3")]
    assert "Traceback" not in shown.out + shown.err
    fill.unlink()
    for file in (small_disk / "runs" / "full" / "trials").glob("*-*.*"):
        if file.is_file():
            file.write_bytes(
                file.read_bytes()[:100]
            )  # what a full disk leaves of Tune's own files, when it is hit just then
    finished = sweep("full", "ranker", space, config)
    objectives = {trial.name: trial.objective for trial in finished.trials}
    assert len(objectives) == 3
    assert None not in objectives.values()
    known = [name for name in objectives if name in first]
    assert [f"{objectives[name]:.5f}" in first for name in known] == [True]  # it was not trained again to another end
    assert finished.winner.bundle.is_dir()


def test_a_trial_that_a_disk_refuses_ends_the_sweep_and_any_other_error_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = SimpleNamespace(
        experiment_fs_path=str(tmp_path / "mine" / "trials"), experiment_driver_staging_path=str(tmp_path / "staging")
    )
    trial = SimpleNamespace(
        storage=storage, trial_id="0a", error_file=str(tmp_path / "error.txt"), last_result={"evaluations": 2}
    )
    shown = KeepAndShow(3)
    (tmp_path / "error.txt").write_text("Traceback\n  File x\nValueError: wrong\n")
    shown.on_trial_error(1, [trial], trial)
    shown.on_step_end(1, [trial])
    assert capsys.readouterr().out == "trial 1 of 3 (0a): failed: ValueError: wrong, 2 evaluations\n"
    (tmp_path / "error.txt").write_text("Traceback\n  File x\nOSError: [Errno 28] No space left on device\n")
    shown.on_trial_error(
        2, [trial], trial
    )  # raises nothing: Tune would take it for one more error of the trial, and wait
    with pytest.raises(DiskError, match=rf"^{tmp_path}/mine: no space is left on its disk$"):
        shown.on_step_end(2, [trial])


def test_what_a_sweep_goes_on_from_is_one_set_as_tune_last_wrote_it(tmp_path: Path) -> None:
    written, storage = tmp_path / "staging", tmp_path / "sweep" / "trials"
    written.mkdir()
    storage.mkdir(parents=True)
    (storage / "tuner.pkl").write_bytes(b"tuner")
    assert keep(written, storage, {}) == {}  # before Tune has written its state for the first time
    assert not put_back(storage)
    assert list(storage.iterdir()) == []  # nothing to go on from, so nothing is left to stumble over
    (storage / "tuner.pkl").write_bytes(b"tuner")
    for name in ("experiment_state-2026-01-01_10-00-00.json", "searcher-state-2026-01-01_10-00-00.pkl"):
        (written / name).write_text("first session")
        (written / name.replace("10-00", "11-00")).write_text("second session")
    seen = keep(written, storage, {})
    (storage / "experiment_state-2026-01-01_11-00-00.json").write_text("second ses")  # Tune's own copy, cut short
    assert put_back(storage)
    assert {file.name: file.read_text() for file in storage.iterdir()} == {
        "tuner.pkl": "tuner",
        "experiment_state-2026-01-01_11-00-00.json": "second session",
        "searcher-state-2026-01-01_11-00-00.pkl": "second session",
    }
    kept = (storage.parent / "kept_state").stat().st_ino
    assert keep(written, storage, seen) == seen
    assert (storage.parent / "kept_state").stat().st_ino == kept  # nothing changed, nothing copied


def test_trials_without_the_state_of_their_sweep_are_not_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "trials" / "0a" / "checkpoint_000000").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"trials holds trials, but what the sweep goes on from .*kept_state\) is not there"
    ):
        put_back(tmp_path / "trials")
    assert (tmp_path / "trials" / "0a" / "checkpoint_000000").is_dir()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(runs: Path, small_log: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "jobs.sweep", "ranker", "--name", "killed", "--base.log", str(small_log), "--trials", "6",
        "--base.loop.epochs", "2", "--base.stream.batch-size", "256", "--concurrent", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    output = tmp_path / "output.txt"
    with output.open("w") as stream:
        driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "trial 2 of 6" not in output.read_text():
            assert driver.poll() is None, output.read_text()[-2000:]
            assert time.monotonic() < deadline, output.read_text()[-2000:]
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    before = len(list((runs / "killed" / "records").iterdir()))
    assert 2 <= before < 6
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(list((runs / "killed" / "records").iterdir())) == 6  # the finished trials were not tried again
    load_bundle(runs / "killed" / "bundle")


def test_more_workers_than_there_can_be_end_a_sweep_before_any_trial_unless_trials_run_in_process(
    ray_session: None, runs: Path, base: RankerExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def run_sweep(*given: object) -> None:
        raise Reached

    monkeypatch.setattr("rayrec.runs.sweeping._run_sweep", run_sweep)
    space = SweepSpace(("ranker",), {"optimizer.learning_rate": tune.choice([1e-2])})
    config = SweepConfig(base, trials=1, trial="ray_train", scaling=ScalingOptions(workers=2, cpus_per_worker=40))
    with pytest.raises(UserError, match="scaling: 2 workers with 40 CPUs each ask for 80"):
        sweep("too-many", "ranker", space, config)
    with pytest.raises(Reached):  # on CPUs trials run in process, whatever workers of Ray Train would ask for
        sweep("in-process", "ranker", space, replace(config, trial="auto"))


def test_a_path_that_is_no_field_is_refused_before_any_trial(base: RankerExperiment) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rat: "):
        apply_parameters(base, {"optimizer.learning_rat": 0.1})
    with pytest.raises(ConfigError, match="dropout"):
        apply_parameters(base, {"ranking.architecture.dropout": "much"})


def test_swept_values_reach_nested_fields_and_task_weights(base: RankerExperiment) -> None:
    swept = apply_parameters(base, {"optimizer.learning_rate": 0.1, "ranking.task_weights.buy": 0.5})
    assert swept.optimizer.learning_rate == 0.1
    assert swept.ranking.task_weights == {"buy": 0.5}
    assert replace(swept, optimizer=base.optimizer, ranking=base.ranking) == base


def test_a_part_that_is_not_set_comes_to_be_with_its_defaults(base: RankerExperiment) -> None:
    swept = apply_parameters(base, {"ranking.balancing.method": "cagrad", "ranking.balancing.conflict_aversion": 0.3})
    assert swept.ranking.balancing == Cagrad(conflict_aversion=0.3)
    with pytest.raises(ConfigError, match=r"balancing\.conflict"):
        apply_parameters(base, {"ranking.balancing.conflict": 0.3})


def test_trials_are_ranked_by_the_objective_with_failed_ones_last() -> None:
    def trial(name: str, objective: float | None) -> Trial:
        return Trial(name, {}, objective, 1, 0.0, False, None, None)

    trials = [trial("failed", None), trial("low", 0.1), trial("high", 0.9)]
    assert [t.name for t in ranked(trials, "min")] == ["low", "high", "failed"]
    assert [t.name for t in ranked(trials, "max")] == ["high", "low", "failed"]


@pytest.mark.parametrize("place", ["records", "ray_train"])
def test_metrics_that_a_trial_left_are_sent_from_wherever_it_ran(
    tmp_path: Path, base: RankerExperiment, place: str
) -> None:
    told: list[Any] = []

    class Store:
        def log_metrics(self, run_id: str, metrics: object, step: int) -> None:
            told.append((run_id, metrics, step))

        def finish(self, run_id: str, *, failed: bool) -> None:
            told.append(run_id)

    note = sweeping.trial_record(tmp_path, "one")
    note.parent.mkdir()
    note.write_text(to_json(RunRecord(base, "child", "uri")))
    keep_unsent(tmp_path / place / "one", ((7, {"x": 1.0}),))
    trial: Any = type("Trial", (), {"name": "one", "error": None})
    sweeping._tell_of(trial, tmp_path, Store())  # type: ignore[arg-type]
    assert told == [("child", {"x": 1.0}, 7), "child"]
