"""The table of studies that keep a result for each arm of each seed."""

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
