"""Sweeps: every trial is tracked, the best one wins and is completed, and a killed sweep goes on."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune

from rayrec.data.log.streams import StreamConfig
from rayrec.errors import UserError
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.balancing.cagrad import Cagrad
from rayrec.models.ranker import RankerArchitecture
from rayrec.runs.sweep_trial import Trial, ranked
from rayrec.runs.sweeping import FinishedSweep, SweepConfig, SweepSpace, apply_parameters, sweep
from rayrec.training.loop import LoopConfig
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(small_log: Path) -> RankerExperiment:
    return RankerExperiment(
        log=small_log,
        ranking=RankingConfig(architecture=RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,))),
        loop=LoopConfig(epochs=2, threads=1),
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
    finished = sweep("away", "ranker", space, config)
    assert {t.name: t.objective for t in finished.trials} == {t.name: t.objective for t in shown[0].trials}
    tracker = Tracker()
    run = tracker.get(finished.mlflow_run)
    assert (run.info.status, run.data.tags["winner"]) == ("FINISHED", finished.winner.mlflow_run)
    assert "final/test/click/auc" in tracker.get(finished.winner.mlflow_run).data.metrics


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
