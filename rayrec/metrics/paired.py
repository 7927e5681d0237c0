"""Comparing two ways to train over several seeds: means with standard errors, paired differences with t intervals.

Two things vary: the seeds, and the users (or rows) that happened to be judged. Where each value comes with its values on the
judged rows less one group at a time, the interval covers both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class MeanEstimate:
    """Mean of ``count`` values and its standard error over seeds, sample deviation / sqrt(count); None of a single value.

    group_error: its standard error over groups of the judged users or rows; None where values by group are not known.
    """

    mean: float
    standard_error: float | None
    count: int
    group_error: float | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (value - baseline) over pairs, and how sure it is.

    standard_error: over pairs (seeds), None of one pair. group_error: over groups of users or rows, None where not known.
    low, high: the interval from both; both equal to the mean, and p_value None, where neither is known.
    p_value: of no difference, two-sided, of this comparison alone. below: pairs where the value is below its baseline.
    """

    mean: float
    standard_error: float | None
    group_error: float | None
    low: float
    high: float
    p_value: float | None
    below: int
    count: int


def mean_estimate(values: Sequence[float], left_out: ArrayLike | None = None) -> MeanEstimate:
    """left_out (S, G): each value on the judged rows less one of G groups. Raises ValueError without values."""
    array = _finite(values)
    groups = None if left_out is None else _groups(left_out, len(array))
    group_error = None if groups is None else float(np.sqrt(_jackknife(groups.mean(0))))
    return MeanEstimate(float(array.mean()), _standard_error(array), len(array), group_error)


def paired_difference(
    values: Sequence[float],
    baseline: Sequence[float],
    left_out: ArrayLike | None = None,
    baseline_left_out: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> PairedDifference:
    """Of values and baseline values in the same order (one pair a seed).

    left_out, baseline_left_out: (S, G), each value on the judged rows less one of G groups, the same groups in both.

    Over pairs alone it is the t interval with S - 1 degrees of freedom. With groups, the variance is that of two crossed
    samples, V = V_pairs + V_groups - V_both (Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering",
    eq. 2.11), no smaller than V_pairs: V_groups the delete-a-group jackknife of the mean difference, V_both that of each pair's
    departure from it, which the first two both contain. Degrees of freedom after Satterthwaite (1946), with W = V - V_pairs:
    V^2 / (V_pairs^2 / (S - 1) + W^2 / (G - 1)).
    How often it holds the truth was simulated, see benchmarks/RESULTS.md: about 95 % of symmetric differences, 88 % of
    exponential ones, whose skewness a few pairs cannot show.
    Raises ValueError when the lengths differ, nothing is given, or only one side has groups.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values cannot be paired with {len(baseline)} of the baseline")
    if (left_out is None) != (baseline_left_out is None):
        raise ValueError("groups are needed of both sides or of none")
    differences = _finite(values) - _finite(baseline)
    count, mean = len(differences), float(differences.mean())
    standard_error, group_error = _standard_error(differences), None
    variance, freedom = 0.0, None
    if standard_error is not None:
        variance, freedom = standard_error**2, count - 1.0
    if left_out is not None and baseline_left_out is not None:
        groups = _groups(left_out, count) - _groups(baseline_left_out, count)  # (S, G)
        of_groups, others = _jackknife(groups.mean(0)), groups.shape[1] - 1
        group_error = float(np.sqrt(of_groups))
        if standard_error is None:
            variance, freedom = of_groups, float(others)
        else:
            of_both = float(np.sum([_jackknife(row) for row in groups - groups.mean(0)])) / (count * (count - 1))
            of_pairs, beyond = variance, max(0.0, of_groups - of_both)
            variance = of_pairs + beyond
            spread = of_pairs**2 / (count - 1) + beyond**2 / others
            freedom = variance**2 / spread if spread > 0 else float(count - 1)
    if freedom is None:
        low, high, p_value = mean, mean, None
    else:
        error = float(np.sqrt(variance))
        reach = float(stdtrit(freedom, (1 + level) / 2)) * error
        low, high = mean - reach, mean + reach
        p_value = float(2 * stdtr(freedom, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return PairedDifference(mean, standard_error, group_error, low, high, p_value, int((differences < 0).sum()), count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Refuting what stands at 0.05 or below refutes a true null hypothesis in at most 5 % of tables, however they depend.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _jackknife(left_out: NDArray[np.float64]) -> float:
    """Variance of a value from those with one of G groups left out, (G,): (G - 1) / G * sum of squares around their mean."""
    return float((len(left_out) - 1) * left_out.var())


def _standard_error(values: NDArray[np.float64]) -> float | None:
    return None if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))


def _groups(left_out: ArrayLike, count: int) -> NDArray[np.float64]:
    array = np.asarray(left_out, dtype=np.float64)
    if array.ndim != 2 or len(array) != count or array.shape[1] < 2 or not np.isfinite(array).all():
        raise ValueError(f"{count} rows of at least two finite values by group are needed, not shape {array.shape}")
    return array


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"at least one value, all of them finite, are needed, not {list(values)}")
    return array
