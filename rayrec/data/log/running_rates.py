"""How often earlier rows of the same key were positive: rates that a feature store would hold at the time of each row."""

import numpy as np
from numpy.typing import NDArray

PRIOR_ROWS = 20.0


def running_rates(
    keys: NDArray[np.int64], times: NDArray[np.int64], labels: NDArray[np.float32], prior_rows: float = PRIOR_ROWS
) -> NDArray[np.float32]:
    """(n, T) smoothed shares of positives among the rows of the same key that are strictly earlier; no row sees its own time.

    keys, times: (n,) in any order. labels: (n, T) 0 or 1, NaN = not observed (the row counts for the other tasks only).
    (positives + prior_rows * p) / (observed + prior_rows), where p is the same over the rows of all keys,
    (positives + 1) / (observed + 2).
    """
    everything = np.zeros(len(keys), np.int64)
    positives, observed = _earlier(everything, times, labels)
    overall = (positives + 1) / (observed + 2)
    positives, observed = _earlier(keys, times, labels)
    return ((positives + prior_rows * overall) / (observed + prior_rows)).astype(np.float32)


def _earlier(
    keys: NDArray[np.int64], times: NDArray[np.int64], labels: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positives and observed labels, (n, T) each, over the rows of the same key and a smaller time."""
    order = np.lexsort((times, keys))
    sorted_keys, sorted_times = keys[order], times[order]
    new_key = np.append(True, sorted_keys[1:] != sorted_keys[:-1])
    new_time = new_key | np.append(True, sorted_times[1:] != sorted_times[:-1])
    rows = np.arange(len(keys))
    first_of_key = np.maximum.accumulate(np.where(new_key, rows, 0))
    first_of_time = np.maximum.accumulate(np.where(new_time, rows, 0))
    sums = []
    for values in (np.nan_to_num(labels[order]), ~np.isnan(labels[order])):
        before = np.concatenate([np.zeros((1, labels.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
        of_rows = np.empty((len(keys), labels.shape[1]))
        of_rows[order] = before[first_of_time] - before[first_of_key]
        sums.append(of_rows)
    return sums[0], sums[1]
