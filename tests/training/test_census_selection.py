"""UKDSL on real rows whose labels were taken away by a simulated selection, and judged with them."""

from pathlib import Path

import pytest

from studies.census_selection import Command, run


@pytest.fixture
def source(data_root: Path) -> Path:
    folder = data_root / "census_income_kdd"
    if not folder.is_dir():
        pytest.skip(f"no Census-Income at {folder}")
    return folder


@pytest.mark.slow
def test_on_census_income_ukdsl_is_calibrated_on_all_rows_where_the_supervised_student_predicts_too_much(
    source: Path, tmp_path: Path
) -> None:
    (found,) = run(Command(tmp_path / "census", source, seeds=1))
    supervised, taught = found["supervised"]["all test rows"], found["UKDSL"]["all test rows"]
    assert supervised["calibration_ratio"] > 1.5
    assert taught["calibration_ratio"] == pytest.approx(1.0, abs=0.3)
    assert taught["ece"] < supervised["ece"] / 3
    assert taught["log_loss"] < supervised["log_loss"]
    selected = "selected validation rows"
    assert found["supervised"][selected]["calibration_ratio"] > found["UKDSL"][selected]["calibration_ratio"]


@pytest.mark.slow
def test_a_selector_that_is_another_task_than_income_leaves_too_few_who_earn_much(source: Path, tmp_path: Path) -> None:
    (found,) = run(Command(tmp_path / "census", source, seeds=1, epochs=1, selector="never_married"))
    assert found.keys() == {"supervised", "teacher", "self-training", "candidates as negatives", "UKDSL"}
    negatives = found["candidates as negatives"]["all test rows"]
    assert negatives["calibration_ratio"] < 0.5
