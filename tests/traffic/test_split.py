"""The split of users: the textbook's chi-square, and an alarm where it must be and nowhere else."""

import numpy as np
import pytest
from scipy import stats

from rayrec.traffic.assignment import Assignment
from rayrec.traffic.split import split_check


def test_p_is_that_of_pearsons_chi_square() -> None:
    found = split_check({"a": 480, "b": 310, "c": 210}, {"a": 5, "b": 3, "c": 2})
    assert found.p == pytest.approx(stats.chisquare([480, 310, 210], [500, 300, 200]).pvalue)
    assert found.expected == pytest.approx({"a": 500, "b": 300, "c": 200})
    assert not found.alarm


def test_a_hundredth_of_the_users_that_is_lost_from_one_arm_is_found() -> None:
    assert split_check({"a": 100_000, "b": 98_000}, {"a": 0.5, "b": 0.5}).alarm
    assert not split_check({"a": 100_000, "b": 99_500}, {"a": 0.5, "b": 0.5}).alarm


def test_of_users_that_the_assignment_drew_an_alarm_is_as_rare_as_it_says() -> None:
    shares = {"old": 0.9, "new": 0.1}
    p = []
    for salt in range(300):
        assignment = Assignment(f"e{salt}", shares)
        drawn = [assignment.arm(f"user-{i}") for i in range(300)]
        p.append(split_check({arm: drawn.count(arm) for arm in shares}, shares).p)
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert min(p) > 1e-5


def test_an_arm_of_nobody_that_has_somebody_is_wrong_for_certain() -> None:
    assert split_check({"a": 1_000, "b": 1}, {"a": 1, "b": 0}).p == 0
    assert split_check({"a": 1_000, "b": 0}, {"a": 1, "b": 0}).p == 1


def test_users_of_an_arm_without_a_share_are_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="no share: c"):
        split_check({"a": 1, "c": 2}, {"a": 1})
    with pytest.raises(ValueError, match="no user"):
        split_check({"a": 0}, {"a": 1})
