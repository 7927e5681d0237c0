"""Means over users: closed forms, and intervals that hold the truth as often as they say where users differ."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from rayrec.traffic.over_users import ratio_of_sums

DRAW = np.random.default_rng(0)


def test_with_one_decision_a_user_the_difference_is_welchs() -> None:
    a, b = DRAW.normal(1, 1, 40), DRAW.normal(0, 3, 25)
    found = ratio_of_sums(a, np.ones(40)).minus(ratio_of_sums(b, np.ones(25)))
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))
    one = ratio_of_sums(a, np.ones(40)).interval(0.9)
    assert one == pytest.approx(stats.t.interval(0.9, 39, a.mean(), stats.sem(a)))


def test_a_ratio_is_linearized_around_the_mean_by_hand() -> None:
    y, n = np.array([1.0, 0.0, 3.0]), np.array([2.0, 1.0, 5.0])
    found = ratio_of_sums(y, n)
    rest = [1 - 0.5 * 2, 0 - 0.5, 3 - 0.5 * 5]
    assert (found.value, found.units) == (0.5, 3)
    assert found.variance == pytest.approx(3 / 2 * sum(r * r for r in rest) / 64)


def test_copies_of_users_decisions_narrow_nothing_and_copies_of_users_do() -> None:
    n = DRAW.integers(1, 9, 50).astype(float)
    y = DRAW.binomial(n.astype(int), 0.3).astype(float)
    once, tenfold = ratio_of_sums(y, n), ratio_of_sums(10 * y, 10 * n)
    assert (tenfold.value, tenfold.variance) == pytest.approx((once.value, once.variance))
    users = ratio_of_sums(np.tile(y, 10), np.tile(n, 10))
    assert users.variance == pytest.approx(once.variance / 10, rel=0.02)


def users(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clicks and decisions of users of whom some come a hundred times as often as others, and click otherwise."""
    n = np.ceil(DRAW.lognormal(1.0, 1.0, count))
    return DRAW.binomial(n.astype(int), DRAW.beta(2, 6, count)).astype(float), n


def test_of_two_arms_that_are_the_same_the_interval_holds_zero_as_often_as_it_says() -> None:
    """The one that takes decisions for independent does not, by far."""
    rounds, covered, naive = 1_000, 0, 0
    for _ in range(rounds):
        (y, n), (z, m) = users(200), users(300)
        found = ratio_of_sums(y, n).minus(ratio_of_sums(z, m))
        covered += found.low <= 0 <= found.high
        p, q = y.sum() / n.sum(), z.sum() / m.sum()
        naive += abs(p - q) <= 1.96 * np.sqrt(p * (1 - p) / n.sum() + q * (1 - q) / m.sum())
    assert 0.93 <= covered / rounds <= 0.97
    assert naive / rounds < 0.85


def test_a_difference_that_is_there_is_found_and_held_as_often_as_said() -> None:
    rounds, found, held = 200, 0, 0
    for _ in range(rounds):
        (y, n), (z, m) = users(1_000), users(1_000)
        difference = ratio_of_sums(y + 0.1 * n, n).minus(ratio_of_sums(z, m))
        found += difference.low > 0
        held += difference.low <= 0.1 <= difference.high
    assert found / rounds > 0.95
    assert 0.9 <= held / rounds <= 0.99


def test_too_few_users_have_no_interval_and_no_decisions_no_value() -> None:
    one = ratio_of_sums([1.0], [2.0])
    assert one.value == 0.5
    assert np.isnan(one.interval()).all()
    difference = one.minus(ratio_of_sums([1.0, 2.0], [4.0, 4.0]))
    assert difference.value == 0.125
    assert np.isnan([difference.low, difference.high]).all()
    assert np.isnan(ratio_of_sums([], []).value)
    same = ratio_of_sums([1.0, 1.0], [2.0, 2.0])
    assert same.minus(same).low == same.minus(same).high == 0
    with pytest.raises(ValueError, match="two sums of each user"):
        ratio_of_sums([1.0], [1.0, 2.0])
