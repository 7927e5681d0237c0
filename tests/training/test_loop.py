"""The worker loop: learns, resumes bit for bit, stops early, keeps its best weights."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rayrec.data.log.streams import StreamConfig
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.experiment import ScalingOptions, train_here
from rayrec.training.loop import LoopConfig, learning_rate_factor
from rayrec.training.reporters import CheckpointWriter, FolderReporter
from rayrec.training.worker import RunOptions, Worker
from rayrec.typed_json import ConfigError


class Killed(Exception):
    pass


class KilledAfter(FolderReporter):
    """Dies right after its n-th checkpoint, as a killed worker would."""

    def __init__(self, folder: Path, reports: int) -> None:
        super().__init__(folder)
        self.left = reports

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        super().report(metrics, write)
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture
def experiment(small_log: Path) -> RankerExperiment:
    return RankerExperiment(
        log=small_log,
        ranking=RankingConfig(architecture=RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,), dropout=0.1)),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        loop=LoopConfig(epochs=2, warmup_steps=5, schedule="cosine", checkpoint_every_steps=7, patience=None),
        stream=StreamConfig(batch_size=512, window_rows=2048),
    )


def train(experiment: RankerExperiment, folder: Path):
    reporter = FolderReporter(folder)
    train_here(experiment, reporter, say=lambda text: None)
    latest = reporter.latest()
    assert latest is not None
    return latest, read_progress(latest)


def test_it_learns_a_learnable_log(experiment: RankerExperiment, tmp_path: Path) -> None:
    _, progress = train(replace(experiment, loop=replace(experiment.loop, epochs=4)), tmp_path / "run")
    assert progress.evaluations["test"]["click"]["auc"] > 0.75
    assert progress.evaluations["test"]["click"]["normalized_entropy"] < 0.9
    assert progress.evaluations["test"]["buy"]["rows"] < progress.evaluations["test"]["click"]["rows"]


@pytest.mark.parametrize("units", [True, False])
def test_it_learns_in_bfloat16_and_says_where_that_is_slow(
    experiment: RankerExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units, "avx2": True})
    half = replace(experiment, loop=replace(experiment.loop, epochs=4, precision="bfloat16"))
    reporter, said = FolderReporter(tmp_path / "run"), list[str]()
    train_here(half, reporter, say=said.append)
    latest = reporter.latest()
    assert latest is not None
    assert any("no units for bfloat16" in line for line in said) != units
    assert read_progress(latest).evaluations["test"]["click"]["auc"] > 0.75
    assert all(x.dtype == torch.float32 for x in best_weights(latest).values() if x.is_floating_point())


@pytest.mark.parametrize(
    ("every", "between", "reports"),
    [
        (None, 7, 1),
        (None, 7, 4),
        (None, 7, 5),
        (10, 7, 11),  # after the evaluation of the last steps, 41 to 46
        (10, 23, 6),  # between the last step's checkpoint and its evaluation
    ],
)
def test_a_killed_run_ends_with_the_same_weights_as_an_undisturbed_one(
    experiment: RankerExperiment, tmp_path: Path, every: int | None, between: int, reports: int
) -> None:
    loop = replace(experiment.loop, evaluate_every_steps=every, checkpoint_every_steps=between)
    experiment = replace(experiment, loop=loop)
    undisturbed, progress = train(experiment, tmp_path / "undisturbed")
    with pytest.raises(Killed):
        train_here(experiment, KilledAfter(tmp_path / "killed", reports), say=lambda text: None)
    resumed, resumed_progress = train(experiment, tmp_path / "killed")
    for name, tensor in best_weights(undisturbed).items():
        assert torch.equal(tensor, best_weights(resumed)[name]), name
    assert replace(resumed_progress, seconds=0) == replace(progress, seconds=0)


def test_the_last_steps_are_in_the_curve_where_evaluations_do_not_divide_the_run(
    experiment: RankerExperiment, tmp_path: Path
) -> None:
    loop = LoopConfig(epochs=1, evaluate_every_steps=10, patience=None)
    _, progress = train(replace(experiment, loop=loop), tmp_path / "run")
    assert progress.step == 23
    for split in ("train", "valid"):
        assert sorted({point.step for point in progress.curve if point.split == split}) == [10, 20, 23]


def test_a_finished_run_is_not_trained_again(experiment: RankerExperiment, tmp_path: Path) -> None:
    latest, progress = train(experiment, tmp_path / "run")
    again, same = train(experiment, tmp_path / "run")
    assert (again, same) == (latest, progress)


def test_early_stopping_returns_to_the_best_evaluation(experiment: RankerExperiment, tmp_path: Path) -> None:
    overfitting = replace(
        experiment,
        optimizer=OptimizerConfig(learning_rate=0.1, embedding_learning_rate=1.0),
        loop=LoopConfig(epochs=30, patience=2, evaluate_every_steps=5),
    )
    _, progress = train(overfitting, tmp_path / "run")
    values = [p.value for p in progress.curve if p.split == "valid" and p.metric == "mean_normalized_entropy"]
    assert progress.passes == len(values) < 30 * 23 // 5
    assert progress.best_objective == min(values)
    assert values.index(min(values)) == len(values) - 3  # stopped two evaluations after the best
    final = [task["normalized_entropy"] for task in progress.evaluations["valid"].values()]
    assert sum(final) / len(final) == pytest.approx(progress.best_objective, abs=1e-6)


def test_different_seeds_give_different_models(experiment: RankerExperiment, tmp_path: Path) -> None:
    one, _ = train(experiment, tmp_path / "one")
    other = replace(experiment, loop=replace(experiment.loop, seed=1))
    two, _ = train(other, tmp_path / "two")
    assert any(not torch.equal(t, best_weights(two)[name]) for name, t in best_weights(one).items())


def test_learning_rate_warms_up_then_decays_to_zero() -> None:
    factor = learning_rate_factor(LoopConfig(warmup_steps=10, schedule="linear"), 110)
    assert factor(0) == pytest.approx(0.1)
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(0.5)
    assert factor(110) == 0.0


@pytest.mark.parametrize(
    "field", ["epochs", "accumulate_batches", "evaluate_every_steps", "checkpoint_every_steps", "patience"]
)
def test_counts_below_one_are_refused_by_name(field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be at least 1, not 0"):
        LoopConfig(**{field: 0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_steps": -5},
        {"gradient_clip": 0.0},
        {"gradient_clip": -1.0},
        {"gradient_clip": math.nan},
        {"gradient_clip": math.inf},
        {"min_gain": math.nan},
        {"min_gain": math.inf},
        {"min_gain": -0.1},
    ],
)
def test_settings_that_would_not_train_are_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^{name} must be .*, not "):
        LoopConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus_per_worker": 0.0}, {"max_failures": -2}])
def test_a_scaling_that_cannot_be_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^{name} must be .*, not "):
        ScalingOptions(**wrong)


@pytest.mark.parametrize("reports", [3, 4])
def test_a_run_killed_at_the_end_of_its_patience_does_not_train_on(
    experiment: RankerExperiment, tmp_path: Path, reports: int
) -> None:
    """min_gain is out of reach, so the third evaluation ends training: with the kill before or after the last checkpoint."""
    loop = LoopConfig(epochs=6, patience=2, min_gain=1e9)
    experiment = replace(experiment, loop=loop)
    _, expected = train(experiment, tmp_path / "undisturbed")
    assert expected.passes == 3
    with pytest.raises(Killed):
        train_here(experiment, KilledAfter(tmp_path / "killed", reports), say=lambda text: None)
    _, progress = train(experiment, tmp_path / "killed")
    assert (progress.step, progress.passes, progress.evaluations) == (expected.step, 3, expected.evaluations)


def test_a_diverged_run_ends_with_the_reason(experiment: RankerExperiment, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e30, embedding_learning_rate=1e30)
    loop = LoopConfig(epochs=1, gradient_clip=None)
    with pytest.raises(ValueError, match="training has diverged"):
        train(replace(experiment, optimizer=optimizer, loop=loop), tmp_path)


def test_what_is_shown_of_a_run_tells_no_speed_before_there_is_one(
    experiment: RankerExperiment, tmp_path: Path
) -> None:
    said: list[str] = []
    worker = Worker(options=RunOptions(reader="in_process", progress_seconds=0))
    train_here(experiment, FolderReporter(tmp_path / "run"), worker=worker, say=said.append)
    steps = [line for line in said if line.startswith("epoch ")]
    assert len(steps) > 20
    assert "loss" in steps[0]
    assert "rows/s" not in steps[0]
    assert "left" not in steps[0]
    for line in steps[1:]:
        found = re.fullmatch(r"epoch .*, step .*: loss .*, ([\d,]+) rows/s, at most ([\d,]+) s left", line)
        assert found is not None
        assert float(found[1].replace(",", "")) > 0
    assert steps[-1].endswith("at most 0 s left")
