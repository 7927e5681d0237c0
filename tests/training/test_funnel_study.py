"""Simulation B: its judgement by hand-made numbers, and a whole tiny study that is stopped and goes on."""

from pathlib import Path

import numpy as np
import pytest

from rayrec.data.simulation import WorldConfig
from rayrec.typed_json import ConfigError
from studies.funnel_study import FunnelStudyConfig, arms, judge, read_results, run_study
from studies.miscalibration import Miscalibration, run

TINY = FunnelStudyConfig(
    candidates=12_000,
    ratios=(1.0, 2.0),
    epochs=1,
    teacher_epochs=1,
    batch_size=64,
    world=WorldConfig(users=200, ads=100, campaigns=20, advertisers=10, base_click_probability=0.05),
)


def test_the_true_probabilities_themselves_are_judged_perfect() -> None:
    true = np.random.default_rng(0).beta(1, 20, 5_000)
    judgement = judge(true, true, true)
    assert judgement.predicted_over_true == pytest.approx(1.0)
    assert judgement.ece == pytest.approx(0.0, abs=1e-12)
    assert judgement.normalized_entropy < 1
    assert [p for p, _ in judgement.deciles] == sorted(p for p, _ in judgement.deciles)


def test_predicting_twice_the_truth_has_the_mean_truth_as_calibration_error() -> None:
    true = np.random.default_rng(0).uniform(0, 0.3, 10_000)
    judgement = judge(2 * true, true, true)
    assert judgement.predicted_over_true == pytest.approx(2.0)
    assert judgement.ece == pytest.approx(true.mean())
    assert judgement.log_loss > judge(true, true, true).log_loss


def test_a_stopped_study_goes_on_with_what_is_missing_and_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    assert not run_study(TINY, tmp_path / "lab" / "world", [0], stop_after=0.0, say=said.append)
    assert said == ["stopped before seed 0: world simulated; run again to go on"]
    report = run(Miscalibration(tmp_path / "lab", seeds=1, requests=200, study=TINY))
    results = read_results(TINY, tmp_path / "lab" / "world")
    assert set(results) == {arm.name for arm in arms(TINY)}
    assert all(result[0].candidates.rows == 2_400 for result in results.values())
    page = report.read_text()
    assert "UKDSL, ratio 2" in page
    assert "candidates as negatives, ratio 1" in page
    assert not (tmp_path / "lab" / "world" / "seed-0" / "world").exists()
    with pytest.raises(ConfigError, match="results here were made with candidates 12000, now"):
        run(Miscalibration(tmp_path / "lab", seeds=1, requests=200))


@pytest.mark.slow
def test_simulation_b_ukdsl_brings_calibration_error_on_all_candidates_down_threefold(tmp_path: Path) -> None:
    """At a third of the study's size, the largest ratio; and the auxiliary head keeps what impressions show."""
    config = FunnelStudyConfig(candidates=320_000)
    run_study(
        config, tmp_path, [100], only=("supervised only", "UKDSL, ratio 16", "UKDSL with auxiliary head, ratio 4")
    )
    results = {arm: found[100] for arm, found in read_results(config, tmp_path).items() if found}
    supervised, taught = results["supervised only"], results["UKDSL, ratio 16"]
    assert supervised.candidates.predicted_over_true > 1.5
    assert taught.candidates.ece < supervised.candidates.ece / 3
    assert taught.candidates.log_loss < supervised.candidates.log_loss
    assert taught.value > supervised.value
    auxiliary = results["UKDSL with auxiliary head, ratio 4"]
    assert auxiliary.impressions.normalized_entropy < 1.001 * supervised.impressions.normalized_entropy
