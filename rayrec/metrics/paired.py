"""Comparing two ways to train over several seeds: means with standard errors, and paired differences with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000


@dataclass(frozen=True)
class MeanEstimate:
    """Mean of ``count`` values and its standard error, sample deviation / sqrt(count); None of a single value."""

    mean: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (value - baseline) over pairs, its standard error, and the percentile bootstrap interval of that mean.

    low, high: equal to the mean where there is one pair only. below: pairs where the value is below its baseline.
    """

    mean: float
    standard_error: float | None
    low: float
    high: float
    below: int
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of at least three pairs lies on one side of 0 (two that agree in sign would say nothing)."""
        return self.count > 2 and (self.low > 0 or self.high < 0)


def mean_estimate(values: Sequence[float]) -> MeanEstimate:
    """Raises ValueError without values."""
    array = _finite(values)
    return MeanEstimate(float(array.mean()), _standard_error(array), len(array))


def paired_difference(values: Sequence[float], baseline: Sequence[float], *, level: float = 0.95) -> PairedDifference:
    """Of values and baseline values in the same order (one pair a seed).

    The bootstrap (Efron and Tibshirani 1993, chapter 13) draws pairs with replacement, always the same draws for the same count.
    It knows nothing of the spread that a few pairs have not shown: of 5 normal differences its 95 % interval holds the true mean
    in about 84 of 100 cases, of 10 in about 90.
    Raises ValueError when the lengths differ or nothing is given.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values cannot be paired with {len(baseline)} of the baseline")
    differences = _finite(values) - _finite(baseline)
    count = len(differences)
    draws = np.random.default_rng(count).integers(0, count, size=(_RESAMPLES, count))
    low, high = np.quantile(differences[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(
        float(differences.mean()),
        _standard_error(differences),
        float(low),
        float(high),
        int((differences < 0).sum()),
        count,
    )


def _standard_error(values: NDArray[np.float64]) -> float | None:
    return None if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"at least one value, all of them finite, are needed, not {list(values)}")
    return array
