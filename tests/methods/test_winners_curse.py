"""UKDSL's simulation A, and the linear check of why it works: each test names the "must hold" of the spec that it shows."""

from dataclasses import replace

import pytest
import torch

from studies.selection_bias import LinearWorld, fit_logistic, linear_check, predict_logistic
from studies.winners_curse import (
    SelectedMeans,
    Selection,
    expected_means,
    simulated_means,
    two_stage_means,
    unbiased_means,
)


@pytest.mark.parametrize(
    "selection", [Selection(50, 2, 0.3), Selection(50, 2, 1.0), Selection(200, 20, 0.5), Selection(9, 9, 0.7)]
)
def test_simulation_a_matches_the_order_statistics_integral_within_monte_carlo_error(selection: Selection) -> None:
    expected, simulated = expected_means(selection), simulated_means(selection, 20_000, seed=1)
    assert simulated.ratio == pytest.approx(expected.ratio, abs=4 * simulated.standard_error)
    assert simulated.true == pytest.approx(expected.true, rel=0.02)


def test_the_integral_over_the_best_of_all_is_the_known_mean_of_the_largest_of_two_normals() -> None:
    """N = 2, k = 1, small spread: sigmoid is linear there, and the largest of two standard normals has mean 1 / sqrt(pi)."""
    tiny = Selection(2, 1, noise=0.0, spread=1e-4, mean=0.0)
    assert (expected_means(tiny).predicted - 0.5) / (0.25 * 1e-4) == pytest.approx(torch.pi**-0.5, rel=1e-6)


def test_simulation_a_over_prediction_rises_with_noise() -> None:
    ratios = [expected_means(Selection(50, 2, noise)).ratio for noise in (0.0, 0.2, 0.4, 0.8, 1.6)]
    assert ratios[0] == pytest.approx(1.0, abs=1e-9)
    assert ratios == sorted(ratios)
    assert ratios[-1] > 2


def test_simulation_a_over_prediction_rises_with_candidates_per_place() -> None:
    ratios = [expected_means(Selection(candidates, 2, 0.5)).ratio for candidates in (2, 4, 16, 64)]
    assert ratios == sorted(ratios)
    assert ratios[-1] - 1 > 2 * (ratios[0] - 1)


def test_simulation_a_a_model_unbiased_at_every_candidate_over_predicts_what_it_selects() -> None:
    ratios = [unbiased_means(50, 2, concentration, 3_000).ratio for concentration in (1e5, 300.0, 30.0)]
    everything = unbiased_means(50, 50, 30.0, 3_000)
    assert everything.ratio == pytest.approx(1.0, abs=4 * everything.standard_error)
    assert ratios == sorted(ratios)
    assert ratios[-1] > 1.2


def test_simulation_a_two_stages_in_a_row_compound_the_over_prediction() -> None:
    first = Selection(200, 20, noise=0.5)
    alone, after = (two_stage_means(first, 2, 0.5, 10_000, select=select) for select in (False, True))
    assert alone.ratio > 1.1
    assert after.ratio - alone.ratio > 4 * (alone.standard_error**2 + after.standard_error**2) ** 0.5


def test_predicting_the_mean_given_the_score_is_not_biased_by_selecting_on_that_score() -> None:
    posterior: SelectedMeans = simulated_means(Selection(50, 2, 1.0), 20_000, posterior=True)
    assert posterior.ratio == pytest.approx(1.0, abs=4 * posterior.standard_error)


@pytest.fixture(scope="module")
def outcomes():
    worlds = [LinearWorld(requests=2_000, seed=seed) for seed in range(3)]
    checks = [linear_check(world) for world in worlds]
    return {name: [check[name] for check in checks] for name in checks[0]}


def mean(outcomes, name: str, field: str) -> float:
    values = [getattr(outcome, field) for outcome in outcomes[name]]
    return sum(values) / len(values)


def test_linear_check_the_teacher_is_right_on_all_candidates_though_fitted_to_impressions(outcomes) -> None:
    assert mean(outcomes, "teacher", "ratio_on_candidates") == pytest.approx(1.0, abs=0.08)
    assert mean(outcomes, "teacher", "ece") < 0.01


def test_linear_check_the_supervised_student_is_right_on_impressions_and_far_too_high_on_candidates(outcomes) -> None:
    assert mean(outcomes, "supervised", "ratio_on_impressions") == pytest.approx(1.0, abs=0.05)
    assert mean(outcomes, "supervised", "ratio_on_candidates") > 1.8


def test_linear_check_ukdsl_brings_calibration_error_on_candidates_down_at_least_threefold(outcomes) -> None:
    assert mean(outcomes, "UKDSL, joint", "ece") < mean(outcomes, "supervised", "ece") / 3
    assert mean(outcomes, "UKDSL, unlabeled rows only", "ece") < mean(outcomes, "UKDSL, joint", "ece") / 2
    assert mean(outcomes, "UKDSL, unlabeled rows only", "ratio_on_candidates") == pytest.approx(1.0, abs=0.08)


def test_linear_check_negatives_under_predict_and_ukdsls_price_is_paid_on_impressions(outcomes) -> None:
    assert mean(outcomes, "candidates as negatives", "ratio_on_candidates") < 0.6
    joint, alone = (
        mean(outcomes, f"UKDSL, {name}", "ratio_on_impressions") for name in ("joint", "unlabeled rows only")
    )
    assert alone < joint < 0.9


def test_logistic_fit_to_soft_targets_finds_the_weights_that_made_them() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    theta = torch.tensor([0.5, -1.0, 2.0, -0.7], dtype=torch.float64)
    torch.testing.assert_close(fit_logistic(x, predict_logistic(theta, x)), theta)


def test_a_selection_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates = 5"):
        replace(Selection(50, 2, 0.1), candidates=5, shown=6)
