"""UKDSL on fresh worlds: both weights of one training, a teacher chosen by impressions alone, and tables of what was found."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rayrec.data.simulation import WorldConfig
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from studies.funnel_study import ArmResult, FunnelStudyConfig, Judgement
from studies.wrong_teachers import (
    SUPERVISED,
    TEACHERS,
    WEIGHTS,
    Found,
    Weights,
    WrongTeachers,
    _World,
    arms_table,
    chosen_teacher,
    run,
    teachers_table,
)

TINY = FunnelStudyConfig(
    candidates=12_000,
    epochs=2,
    batch_size=64,
    learning_rate=0.1,
    world=WorldConfig(users=200, ads=100, campaigns=20, advertisers=10, base_click_probability=0.05),
)
TWO = (replace(TEACHERS[0], epochs=1), TEACHERS[3])


def found(name: str, weights: Weights, validation: float, ece: float) -> Found:
    judged = Judgement(100, 1.0, ece, 0.2, 0.9, ())
    return Found(name, weights, validation, ArmResult(judged, judged, 1.0, 1.0))


def test_a_study_judges_every_model_with_its_best_and_its_last_weights_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = WrongTeachers(tmp_path, ("network",), (7,), 1.0, TINY)
    assert run(replace(command, stop_after=0.0), TWO) == {"network": []}
    (world,) = run(command, TWO)["network"]
    names = [SUPERVISED, "candidates as negatives", "teacher: linear, crosses", "teacher: dot products",
             "UKDSL: linear, crosses", "UKDSL: dot products"]  # fmt: skip
    assert sorted((one.name, one.weights) for one in world) == sorted((n, w) for n in names for w in WEIGHTS)
    assert all(one.result.candidates.rows == 2_400 for one in world)
    printed = capsys.readouterr().out
    assert "network truth, 1 worlds" in printed
    assert not (tmp_path / "network-7" / "world").exists()
    assert run(command, TWO)["network"] == [world]  # nothing is trained again
    by_name = {(one.name, one.weights): one for one in world}
    assert all(by_name[name, "best"].validation <= by_name[name, "last"].validation for name in names)


def test_the_last_weights_are_those_of_a_run_that_keeps_its_last(tmp_path: Path) -> None:
    command = WrongTeachers(tmp_path, ("linear",), (3,), 1.0, TINY)
    world = _World(command, "linear", 3)
    dict(world.missing(TWO))["teacher: dot products"]()
    log = world._logs().labeled
    plain = world.command.study.student(log, world.seed)
    keeps = replace(
        plain,
        ranking=replace(plain.ranking, architecture=TWO[1].architecture),
        optimizer=replace(plain.optimizer, learning_rate=TWO[1].learning_rate),
        loop=LoopConfig(epochs=TWO[1].epochs, seed=3, schedule="linear", patience=None, keep="last"),
    )
    reporter = FolderReporter(tmp_path / "again")
    train_here(keeps, reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    wanted = load_file(checkpoint / "model.safetensors")
    (file,) = (tmp_path / "linear-3" / "teacher-dot-products.last.bundle").glob("*.safetensors")
    kept = load_file(file)
    assert wanted.keys() == kept.keys()
    assert all(wanted[name].equal(kept[name]) for name in wanted)


def test_the_teacher_is_chosen_by_validation_impressions_whatever_the_truth_says() -> None:
    eces = {
        SUPERVISED: 0.06,
        "candidates as negatives": 0.04,
        "UKDSL: linear, crosses": 0.002,
        "UKDSL: dot products": 0.03,
    }
    world = [
        found("teacher: linear, crosses", "last", 0.95, 0.001),
        found("teacher: dot products", "best", 0.80, 0.1),
        found("teacher: dot products", "last", 0.90, 0.1),
        *(found(name, weights, 0.9, ece) for name, ece in eces.items() for weights in WEIGHTS),
    ]
    assert chosen_teacher(world, TWO) == "dot products"
    rows = arms_table([world, world], TWO).rows
    assert rows[-1][:2] == ("last", "UKDSL, chosen teacher")
    assert rows[-1][4].startswith("2.00")  # of its student: 0.06 / 0.03
    by_teacher = {row[0]: row for row in teachers_table([world, world], TWO).rows}
    assert [by_teacher[name][1] for name in ("linear, crosses", "dot products")] == ["0", "2"]
    assert by_teacher["linear, crosses"][-1].startswith("30.00")
