"""Paired comparisons: closed forms, and how often the interval holds the truth."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from rayrec.metrics.paired import holm, mean_estimate, paired_difference

CASES = 1500  # of each simulation: its share of misses has a standard deviation of .6 points


def left_out(rows: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """(S, G) means of rows (S, n) without each group; row i is in group i mod G."""
    group = np.arange(rows.shape[1]) % groups
    return np.stack([rows[:, group != g].mean(1) for g in range(groups)], axis=1)


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_the_count() -> None:
    estimate = mean_estimate([1.0, 2.0, 3.0, 6.0])
    assert (estimate.mean, estimate.count, estimate.group_error) == (3.0, 4, None)
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert mean_estimate([2.0]).standard_error is None


def test_what_seeds_have_in_common_cancels_in_the_paired_difference() -> None:
    seeds = np.array([0.0, 10.0, -5.0, 3.0])
    difference = paired_difference(seeds + np.array([0.1, 0.2, 0.1, 0.2]), seeds)
    assert difference.mean == pytest.approx(0.15)
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3) / 2)
    assert 0.05 < difference.low < difference.mean < difference.high < 0.25
    assert difference.below == 0


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_interval_and_p_value_over_seeds_are_those_of_the_paired_t_test(count: int) -> None:
    generator = np.random.default_rng(count)
    values, baseline = generator.normal(0.3, 1.0, size=(2, count))
    difference = paired_difference(values.tolist(), baseline.tolist(), level=0.9)
    expected = stats.ttest_rel(values, baseline)
    interval = expected.confidence_interval(0.9)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.p_value == pytest.approx(expected.pvalue)


def test_errors_over_groups_of_one_row_are_the_standard_error_of_the_rows_mean() -> None:
    rows = np.random.default_rng(0).normal(size=(1, 50))
    expected = rows.std(ddof=1) / math.sqrt(50)
    assert mean_estimate([rows.mean()], left_out(rows, 50)).group_error == pytest.approx(expected)
    difference = paired_difference([rows.mean()], [0.0], left_out(rows, 50), np.zeros((1, 50)))
    assert (difference.standard_error, difference.group_error) == (None, pytest.approx(expected))
    assert difference.high - difference.mean == pytest.approx(stats.t.ppf(0.975, 49) * expected)


def test_groups_that_never_differ_leave_the_interval_over_seeds_and_seeds_that_never_differ_that_over_groups() -> None:
    values, rows = [0.1, 0.3, 0.2], np.random.default_rng(1).normal(size=(1, 60))
    plain = paired_difference(values, [0.0] * 3)
    equal = paired_difference(values, [0.0] * 3, np.tile(values, (4, 1)).T, np.zeros((3, 4)))
    assert (equal.low, equal.high, equal.p_value) == pytest.approx((plain.low, plain.high, plain.p_value))
    alone = paired_difference([rows.mean()], [0.0], left_out(rows, 60), np.zeros((1, 60)))
    thrice = paired_difference([rows.mean()] * 3, [0.0] * 3, np.tile(left_out(rows, 60), (3, 1)), np.zeros((3, 60)))
    assert (thrice.low, thrice.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_over_seeds_holds_the_truth_in_95_of_100_cases(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    found = [paired_difference(row, [0.0] * seeds) for row in generator.normal(size=(CASES, seeds)).tolist()]
    assert sum(d.low <= 0 <= d.high for d in found) / CASES == pytest.approx(0.95, abs=0.02)
    assert sum(d.p_value is not None and d.p_value <= 0.05 for d in found) / CASES < 0.07


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize(("of_seeds", "of_users", "of_both"), [(1.0, 1.0, 0.0), (0.5, 0.5, 1.0), (0.0, 1.0, 1.0)])
def test_the_interval_over_seeds_and_users_holds_the_truth_in_95_of_100_cases(
    seeds: int, of_seeds: float, of_users: float, of_both: float
) -> None:
    """Neither interval alone does: of a mean over users whose draws the seeds share, and that over users of one draw of seeds."""
    generator, users, cases = np.random.default_rng(seeds), 40, 600
    held = only_seeds = 0
    for _ in range(cases):
        shift = of_seeds * generator.normal(size=(seeds, 1))
        rows = shift + math.sqrt(users) * (
            of_users * generator.normal(size=users) + of_both * generator.normal(size=(seeds, users))
        )
        values, nothing = rows.mean(1).tolist(), [0.0] * seeds
        difference = paired_difference(values, nothing, left_out(rows, 40), np.zeros((seeds, 40)))
        held += difference.low <= 0 <= difference.high
        alone = paired_difference(values, nothing)
        only_seeds += alone.low <= 0 <= alone.high
    assert held / cases == pytest.approx(0.95, abs=0.035)
    assert only_seeds < held


def test_holms_adjusted_values_are_those_of_its_step_down_rule() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_refutes_a_true_hypothesis_in_at_most_5_of_100_tables() -> None:
    generator = np.random.default_rng(0)
    tables = generator.random((2000, 8))
    assert sum(min(holm(row)) <= 0.05 for row in tables.tolist()) / 2000 == pytest.approx(0.05, abs=0.015)
    tables[:, :3] = 1e-9  # three that are false, and refuted
    found = [holm(row) for row in tables.tolist()]
    assert all(max(row[:3]) <= 0.05 for row in found)
    assert sum(min(row[3:]) <= 0.05 for row in found) / 2000 == pytest.approx(0.05, abs=0.015)


def test_two_pairs_of_the_same_sign_settle_nothing() -> None:
    assert paired_difference([1.0, 2.0], [0.5, 0.5]).low < 0
    assert paired_difference([1.0, 1.1, 1.2], [0.5, 0.5, 0.5]).low > 0


def test_one_pair_shows_no_spread_and_settles_nothing() -> None:
    difference = paired_difference([1.0], [0.5])
    assert (difference.mean, difference.low, difference.high) == (0.5, 0.5, 0.5)
    assert (difference.standard_error, difference.p_value) == (None, None)


def test_values_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        mean_estimate([1.0, math.nan])
    with pytest.raises(ValueError, match="at least one"):
        mean_estimate([])
    with pytest.raises(ValueError, match="of both sides or of none"):
        paired_difference([1.0], [1.0], [[1.0, 1.0]])
    with pytest.raises(
        ValueError, match=r"1 rows of at least two finite values by group are needed, not shape \(2, 2\)"
    ):
        mean_estimate([1.0], [[1.0, 1.0], [1.0, 1.0]])


def test_groups_that_move_both_sides_alike_say_nothing_about_the_difference() -> None:
    """Each group's difference is what is jackknifed: a group that is hard for both sides adds no error."""
    hard = np.array([[0.1, -0.3, 0.2, 0.05], [0.4, -0.1, -0.2, 0.3]])
    found = paired_difference([1.1, 2.1], [1.0, 2.0], hard + 0.1, hard)
    assert found.group_error == pytest.approx(0.0, abs=1e-12)
    assert paired_difference([1.1, 2.1], [1.0, 2.0], hard, -hard).group_error > 0.1
