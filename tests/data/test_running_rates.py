"""Rates of earlier rows, against a row-by-row reference."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log.running_rates import running_rates

ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 6), st.sampled_from([0.0, 1.0, np.nan]), st.sampled_from([0.0, 1.0])),
    min_size=1,
    max_size=40,
)


@given(ROWS)
def test_each_row_sees_only_strictly_earlier_rows_of_its_key(drawn: list[tuple[int, int, float, float]]) -> None:
    keys, times = (np.array([row[i] for row in drawn], np.int64) for i in (0, 1))
    labels = np.array([row[2:] for row in drawn], np.float32)
    found = running_rates(keys, times, labels, prior_rows=4.0)
    for i in range(len(drawn)):
        for task in range(2):
            earlier = (times < times[i]) & ~np.isnan(labels[:, task])
            overall = (labels[earlier, task].sum() + 1) / (earlier.sum() + 2)
            own = earlier & (keys == keys[i])
            expected = (labels[own, task].sum() + 4 * overall) / (own.sum() + 4)
            assert abs(found[i, task] - expected) < 1e-6


def test_later_rows_and_own_labels_change_nothing() -> None:
    generator = np.random.default_rng(0)
    keys, times = generator.integers(0, 5, 200), generator.integers(0, 100, 200)
    labels = generator.integers(0, 2, (200, 3)).astype(np.float32)
    changed = np.where(times[:, None] >= 50, 1 - labels, labels)
    np.testing.assert_array_equal(
        running_rates(keys, times, labels)[times <= 50], running_rates(keys, times, changed)[times <= 50]
    )
