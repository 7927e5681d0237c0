"""Paired comparisons: closed forms, and how often the interval holds the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from rayrec.metrics.paired import mean_estimate, paired_difference


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_the_count() -> None:
    estimate = mean_estimate([1.0, 2.0, 3.0, 6.0])
    assert (estimate.mean, estimate.count) == (3.0, 4)
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert mean_estimate([2.0]).standard_error is None


def test_what_seeds_have_in_common_cancels_in_the_paired_difference() -> None:
    seeds = np.array([0.0, 10.0, -5.0, 3.0])
    difference = paired_difference(seeds + np.array([0.1, 0.2, 0.1, 0.2]), seeds)
    assert difference.mean == pytest.approx(0.15)
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3) / 2)
    assert 0.0999 < difference.low < difference.mean < difference.high < 0.2001
    assert difference.excludes_zero
    assert difference.below == 0
    assert not paired_difference([1.0, -1.0], [0.0, 0.0]).excludes_zero


def test_the_interval_is_that_of_all_equally_likely_resamples() -> None:
    """Three pairs have 27 resamples: their mean's distribution is known exactly."""
    values = np.array([0.0, 1.0, 3.0])
    means = np.array([values[[i, j, k]].mean() for i in range(3) for j in range(3) for k in range(3)])
    difference = paired_difference(values, np.zeros(3), level=0.8)
    expected = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
    assert (difference.low, difference.high) == pytest.approx(tuple(expected))


def test_the_interval_of_many_pairs_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, size=400)
    difference = paired_difference(values, np.zeros(400))
    expected = stats.norm.interval(0.95, values.mean(), values.std() / 20)
    assert (difference.low, difference.high) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("count", "coverage"), [(5, 0.84), (10, 0.90)])
def test_the_interval_of_few_pairs_holds_the_truth_as_often_as_documented(count: int, coverage: float) -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        difference = paired_difference(generator.normal(1.0, 1.0, size=count), np.zeros(count))
        held += difference.low <= 1.0 <= difference.high
    assert held / 400 == pytest.approx(coverage, abs=0.04)


def test_two_pairs_of_the_same_sign_settle_nothing() -> None:
    assert not paired_difference([1.0, 2.0], [0.5, 0.5]).excludes_zero
    assert paired_difference([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]).excludes_zero


def test_one_pair_shows_no_spread_and_settles_nothing() -> None:
    difference = paired_difference([1.0], [0.5])
    assert (difference.mean, difference.low, difference.high) == (0.5, 0.5, 0.5)
    assert difference.standard_error is None
    assert not difference.excludes_zero


def test_values_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        mean_estimate([1.0, math.nan])
    with pytest.raises(ValueError, match="at least one"):
        mean_estimate([])
