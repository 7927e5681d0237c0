"""Arms over seeds, in a terminal: means with standard errors, and t intervals of the differences to the first arm by seed."""

import math
from collections.abc import Mapping, Sequence

from rayrec.metrics.paired import mean_estimate, paired_difference
from rayrec.reporting import Table
from rayrec.reporting.page import text_table

Measured = Mapping[str, Mapping[str, float]]  # by arm and metric


def seeds_table(results: Sequence[Measured], metrics: Sequence[str]) -> Table:
    """results: of each seed; every arm, and every metric of it, is in all of them.

    Cells: mean ± standard error (95 % t interval of the difference to the first arm); of a metric that is not finite for the arm
    or the first one, in how many seeds.
    """
    first, *_ = arms = list(results[0])
    rows = []
    for arm in arms:
        cells = []
        for metric in metrics:
            values, base = ([result[name][metric] for result in results] for name in (arm, first))
            if missing := sum(not math.isfinite(own + other) for own, other in zip(values, base, strict=True)):
                cells.append(f"undefined in {missing} of {len(values)}")
                continue
            estimate = mean_estimate(values)
            error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.4f}"
            less = "" if arm == first or len(values) < 2 else " ({:+.4f}, {:+.4f})".format(*_interval(values, base))
            cells.append(f"{estimate.mean:.4f}{error}{less}")
        rows.append((arm, *cells))
    return Table(("arm", *metrics), tuple(rows))


def _interval(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    difference = paired_difference(values, base)
    return difference.low, difference.high


def show(results: Sequence[Measured], metrics: Sequence[str]) -> None:
    print(f"{len(results)} seeds: mean ± standard error (95 % t interval of the difference to the first arm)")
    print(text_table(seeds_table(results, metrics)))
