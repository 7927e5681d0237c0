"""Means of what users did, with users as the units: they were drawn, and what one of them does depends on itself.

A mean over decisions is a ratio of two sums over users, y_u (what came of a user's decisions) and n_u (how many there were). Its
variance is linearized (the delta method): U / (U - 1) * sum (y_u - mean n_u)^2 / (sum n_u)^2 (Cochran 1977, "Sampling
Techniques", eq. 6.13 without its finite correction; for experiments in traffic Deng, Knoblich and Lu 2018, "Applying the delta
method in metric analytics", section 3.1). With one decision a user it is that of a plain mean, and copies of a user's decisions
change nothing.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """value with its two-sided interval; NaN where there are too few users to tell."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.5g} [{self.low:.5g}, {self.high:.5g}]"


@dataclass(frozen=True)
class Ratio:
    """variance: of the estimate. units: users."""

    value: float
    variance: float
    units: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's, with units - 1 degrees of freedom."""
        if self.units < 2:
            return math.nan, math.nan
        reach = float(stdtrit(self.units - 1, (1 + level) / 2)) * math.sqrt(self.variance)
        return self.value - reach, self.value + reach

    def estimate(self, level: float = 0.95) -> Estimate:
        return Estimate(self.value, *self.interval(level))

    def minus(self, other: "Ratio", level: float = 0.95) -> Estimate:
        """The difference of two sets of users that share none; degrees of freedom of Welch (1947) and Satterthwaite (1946).

        Two ratios without any variance have an interval without width.
        """
        difference, variance = self.value - other.value, self.variance + other.variance
        if min(self.units, other.units) < 2 or not math.isfinite(variance):
            return Estimate(difference, math.nan, math.nan)
        if variance == 0:
            return Estimate(difference, difference, difference)
        parts = self.variance**2 / (self.units - 1) + other.variance**2 / (other.units - 1)
        reach = float(stdtrit(variance**2 / parts, (1 + level) / 2)) * math.sqrt(variance)
        return Estimate(difference, difference - reach, difference + reach)


def ratio_of_sums(y: ArrayLike, n: ArrayLike) -> Ratio:
    """sum y / sum n of (U,) sums by user; NaN where sum n is 0, and the variance where there are fewer than two users."""
    numerator, denominator = np.asarray(y, np.float64), np.asarray(n, np.float64)
    if numerator.shape != denominator.shape or numerator.ndim != 1:
        raise ValueError(f"two sums of each user are needed, not shapes {numerator.shape} and {denominator.shape}")
    units, total = len(numerator), float(denominator.sum())
    if not total:
        return Ratio(math.nan, math.nan, units)
    value = float(numerator.sum()) / total
    if units < 2:
        return Ratio(value, math.nan, units)
    rest = numerator - value * denominator
    return Ratio(value, units / (units - 1) * float(np.square(rest).sum()) / total**2, units)
