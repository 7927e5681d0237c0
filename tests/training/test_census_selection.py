"""UKDSL on real rows whose labels were taken away by a simulated selection, and judged with them."""

from pathlib import Path

import pytest

from studies.census_selection import Command, run


@pytest.mark.slow
def test_on_census_income_ukdsl_is_calibrated_on_all_rows_where_the_supervised_student_predicts_too_much(
    data_root: Path, tmp_path: Path
) -> None:
    source = data_root / "census_income_kdd"
    if not source.is_dir():
        pytest.skip(f"no Census-Income at {source}")
    report = run(Command(tmp_path / "census", source, seeds=1))
    everyone, selected = report["all test rows"], report["selected validation rows"]
    assert everyone["supervised"]["calibration_ratio"][0] > 1.5
    assert everyone["UKDSL"]["calibration_ratio"][0] == pytest.approx(1.0, abs=0.3)
    assert everyone["UKDSL"]["ece"][0] < everyone["supervised"]["ece"][0] / 3
    assert everyone["UKDSL"]["log_loss"][0] < everyone["supervised"]["log_loss"][0]
    assert selected["supervised"]["calibration_ratio"][0] > selected["UKDSL"]["calibration_ratio"][0]
