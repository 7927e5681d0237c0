"""The gate: its interval against a closed form and against simulation, its rules."""

import numpy as np
import pytest

from rayrec.traffic.gate import GateConfig, judge, log_losses
from rayrec.typed_json import ConfigError


def test_log_losses_match_the_definition_and_stay_finite() -> None:
    z, y = np.array([-2.0, 0.5, 3.0]), np.array([0.0, 1.0, 0.0])
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(log_losses(z, y), -(y * np.log(p) + (1 - y) * np.log(1 - p)))
    assert log_losses([1000.0, -1000.0], [0, 1]).tolist() == [1000.0, 1000.0]


def test_with_one_row_a_user_the_interval_is_students() -> None:
    new = np.array([0.1, 0.4, 0.2, 0.9])
    verdict = judge(new, np.zeros(4), np.arange(4), GateConfig(min_users=2))
    reach = 3.182446305 * new.std(ddof=1) / 2  # t of 3 degrees of freedom
    assert (verdict.low, verdict.high) == pytest.approx((0.4 - reach, 0.4 + reach))


def test_copies_of_a_users_rows_make_it_no_surer() -> None:
    difference = np.random.default_rng(0).normal(size=50)
    once = judge(difference, np.zeros(50), np.arange(50), GateConfig())
    tenfold = judge(np.repeat(difference, 10), np.zeros(500), np.repeat(np.arange(50), 10), GateConfig())
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, covered = np.random.default_rng(1), 0
    for _ in range(400):
        users = np.repeat(np.arange(60), draw.integers(1, 9, 60))
        losses = 0.3 + draw.normal(size=60)[users] + draw.normal(size=len(users))
        verdict = judge(losses, np.zeros(len(users)), users, GateConfig())
        covered += verdict.low <= 0.3 <= verdict.high
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("mean", "rule", "promoted"),
    [(-0.1, "better", True), (0.0, "better", False), (0.0, "not_worse", True), (0.1, "not_worse", False)],
)
def test_better_needs_an_interval_below_zero_and_not_worse_one_below_the_margin(
    mean: float, rule: str, promoted: bool
) -> None:
    noise = np.random.default_rng(2).normal(0, 0.1, 100)
    verdict = judge(noise - noise.mean() + mean, np.zeros(100), np.arange(100), GateConfig(rule, margin=0.03))  # type: ignore[arg-type]
    assert verdict.promote is promoted
    assert verdict.line.startswith("PROMOTE" if promoted else "REFUSE")


def test_few_users_and_losses_that_are_not_finite_promote_nothing() -> None:
    few = judge(np.full(1000, -1.0), np.zeros(1000), np.arange(1000) % 29, GateConfig())
    assert not few.promote
    assert few.reason == "feedback of 29 users, 30 are needed"
    assert not judge([np.nan, *[-1.0] * 99], np.zeros(100), np.arange(100), GateConfig()).promote
    assert not judge([-np.inf, *[-1.0] * 99], np.zeros(100), np.arange(100), GateConfig()).promote
    with pytest.raises(ConfigError, match=r"gate\.level"):
        GateConfig(level=1.0)
