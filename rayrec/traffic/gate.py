"""Whether a new version may go live: the difference in log loss from the one in force on the same feedback, with an interval
over users, whose rows depend on each other."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayrec.traffic.over_users import ratio_of_sums
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class GateConfig:
    """What a new version must show."""

    rule: Literal["better", "not_worse"] = "better"
    """better: the whole interval of the difference lies below 0; not_worse: below ``margin``."""
    margin: float = 0.001
    """Log loss, in nats an impression, that a new version may lose under not_worse."""
    level: float = 0.95
    """Of the two-sided t interval over users."""
    min_users: int = 30
    """Of whom there is feedback; with fewer, nothing is promoted."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError(f"gate.level must lie between 0 and 1, not {self.level}")
        if not self.margin >= 0:
            raise ConfigError(f"gate.margin must be at least 0, not {self.margin}")
        if self.min_users < 2:
            raise ConfigError(f"gate.min_users must be at least 2, not {self.min_users}")


@dataclass(frozen=True)
class Verdict:
    """difference: mean log loss of the new version minus that of the one in force, over rows; low, high: its interval."""

    promote: bool
    difference: float
    low: float
    high: float
    new: float
    old: float
    rows: int
    users: int
    reason: str

    @property
    def line(self) -> str:
        """For a terminal."""
        return (
            f"{'PROMOTE' if self.promote else 'REFUSE'}: log loss {self.new:.5f}, in force {self.old:.5f}, difference "
            f"{self.difference:+.5f} [{self.low:+.5f}, {self.high:+.5f}] on {self.rows:,} impressions of {self.users:,} users: "
            f"{self.reason}"
        )


def log_losses(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """(n,) nats, of (n,) logits and labels 0 or 1: log(1 + exp(-z)) of a positive, log(1 + exp(z)) of a negative."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    return np.logaddexp(0.0, z) - y * z


def judge(new: ArrayLike, old: ArrayLike, users: ArrayLike, config: GateConfig) -> Verdict:
    """new, old: (n,) losses of the same rows. users: (n,) int64.

    The mean difference is a ratio of two sums over users, of the differences and of the rows (``over_users``). A loss that is not
    finite is refused.
    """
    a, b, who = np.asarray(new, np.float64), np.asarray(old, np.float64), np.asarray(users)
    if not (a.shape == b.shape == who.shape and a.ndim == 1 and len(a)):
        raise ValueError(f"losses and users of the same rows are needed, not shapes {a.shape}, {b.shape}, {who.shape}")
    _, place = np.unique(who, return_inverse=True)
    rows = np.bincount(place)
    count, mean = len(rows), float((a - b).mean())
    low = high = mean
    if count > 1 and np.isfinite(mean):
        low, high = ratio_of_sums(np.bincount(place, a - b), rows).interval(config.level)
    bound = 0.0 if config.rule == "better" else config.margin
    if not np.isfinite(mean):
        promote, reason = False, "a loss is not finite"
    elif count < config.min_users:
        promote, reason = False, f"feedback of {count} users, {config.min_users} are needed"
    elif high < bound:
        promote, reason = True, "better" if config.rule == "better" else f"not worse by {bound:g} or more"
    else:
        promote, reason = False, f"the interval does not lie below {bound:g}"
    return Verdict(promote, mean, low, high, float(a.mean()), float(b.mean()), len(a), count, reason)
