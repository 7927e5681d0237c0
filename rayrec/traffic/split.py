"""Whether users came out in the arms as they were to: if not, nothing that is said of the arms holds, whatever the cause.

Fabijan et al. 2019, "Diagnosing sample ratio mismatch in online controlled experiments" (KDD): Pearson's chi-square of the
users of each arm against the shares, and an alarm at a small p, for it is looked at again and again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

ALARM = 0.001


@dataclass(frozen=True)
class SplitCheck:
    """users: found by arm. expected: by the shares. p: of a chi-square as large or larger where the split is as configured."""

    users: Mapping[str, int]
    expected: Mapping[str, float]
    p: float

    @property
    def alarm(self) -> bool:
        return self.p < ALARM


def split_check(users: Mapping[str, int], shares: Mapping[str, float]) -> SplitCheck:
    """users: by arm. shares: in any proportion, of all arms. An arm that was to have nobody and has somebody is p = 0.

    Raises ValueError for users of an arm without a share, and without any user.
    """
    if unknown := sorted(users.keys() - shares.keys()):
        raise ValueError(f"users of arms that have no share: {', '.join(unknown)}")
    found = np.array([users.get(arm, 0) for arm in shares], np.float64)
    weights = np.array(list(shares.values()), np.float64)
    if not found.sum():
        raise ValueError("no user is in any arm")
    expected = found.sum() * weights / weights.sum()
    live = weights > 0
    p = (
        1.0
        if live.sum() == 1
        else float(chdtrc(live.sum() - 1, ((found - expected)[live] ** 2 / expected[live]).sum()))
    )
    if found[~live].any():
        p = 0.0
    return SplitCheck(dict(users), dict(zip(shares, expected.tolist(), strict=True)), p)
