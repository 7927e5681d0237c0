"""The table of studies that keep a result for each arm of each seed."""

import math

import pytest

from rayrec.metrics.paired import paired_difference
from studies.seeds_table import seeds_table


def test_arms_are_shown_with_their_means_and_differences_to_the_first() -> None:
    results = [
        {"plain": {"auc": a, "ece": 0.1}, "other": {"auc": b, "ece": 0.2}} for a, b in ((0.7, 0.72), (0.72, 0.75))
    ]
    table = seeds_table(results, ("auc", "ece"))
    wanted = paired_difference([0.72, 0.75], [0.7, 0.72])
    assert table.columns == ("arm", "auc", "ece")
    assert table.rows[0] == ("plain", "0.7100 ± 0.0100", "0.1000 ± 0.0000")
    assert table.rows[1][1] == f"0.7350 ± 0.0150 ({wanted.low:+.4f}, {wanted.high:+.4f})"
    assert seeds_table(results[:1], ("auc",)).rows[1] == ("other", "0.7200")


def test_a_metric_that_an_arm_lacks_is_an_error() -> None:
    with pytest.raises(KeyError, match="ece"):
        seeds_table([{"plain": {"auc": 0.7}}], ("auc", "ece"))


def test_a_metric_that_some_seeds_cannot_have_is_told_and_the_others_are_shown() -> None:
    results = [{"plain": {"auc": auc, "ece": 0.1}, "other": {"auc": 0.7, "ece": 0.2}} for auc in (0.6, math.nan, 0.8)]
    table = seeds_table(results, ("auc", "ece"))
    assert [row[1] for row in table.rows] == ["undefined in 1 of 3"] * 2
    assert table.rows[1][2].startswith("0.2000")
