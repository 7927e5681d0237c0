"""How often the 95 % interval of a paired difference holds the truth: python -m benchmarks.interval_coverage.

Null cases: differences of a few seeds, alone or of means over users that all seeds share. One line a setting.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import tyro
from numpy.typing import NDArray

from rayrec.metrics.paired import paired_difference

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]
SHAPES: dict[str, Draw] = {
    "normal": lambda g, shape: g.standard_normal(shape),
    "t with 4 degrees of freedom": lambda g, shape: g.standard_t(4, shape),
    "exponential": lambda g, shape: g.exponential(size=shape) - 1.0,
}
SPREADS = ((1.0, 0.5, 0.0), (1.0, 1.0, 0.0), (1.0, 2.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 1.0))


@dataclass(frozen=True)
class Coverage:
    """cases: of each setting. users: judged, in ``groups`` groups."""

    cases: int = 10_000
    seeds: tuple[int, ...] = (3, 5, 10)
    users: int = 300
    groups: int = 64


def run(command: Coverage) -> None:
    for seeds in command.seeds:
        for name, draw in SHAPES.items():
            generator = np.random.default_rng(seeds)
            found = [paired_difference(draw(generator, (seeds,)).tolist(), [0.0] * seeds) for _ in range(command.cases)]
            held = sum(d.low <= 0 <= d.high for d in found) / command.cases
            print(f"{seeds} seeds, {name}: {held:.2%}", flush=True)
        for spread in SPREADS:
            held = sum(_holds(command, seeds, spread, case) for case in range(command.cases)) / command.cases
            print(f"{seeds} seeds x users, deviations of seed, user, both {spread}: {held:.2%}", flush=True)


def _holds(command: Coverage, seeds: int, spread: tuple[float, float, float], case: int) -> bool:
    """spread: standard deviations of a seed's share, of the mean over users of theirs, and of their interaction's."""
    generator, users = np.random.default_rng((seeds, case)), command.users
    of_users = generator.standard_normal(users) * spread[1] + generator.standard_normal((seeds, users)) * spread[2]
    rows = spread[0] * generator.standard_normal((seeds, 1)) + sqrt(users) * of_users
    group = np.arange(users) % command.groups
    sums = np.stack([np.bincount(group, row, command.groups) for row in rows])
    left_out = (rows.sum(1, keepdims=True) - sums) / (users - np.bincount(group, minlength=command.groups))
    zeros = [0.0] * seeds
    difference = paired_difference(rows.mean(1).tolist(), zeros, left_out, np.zeros_like(left_out))
    return difference.low <= 0 <= difference.high


if __name__ == "__main__":
    run(tyro.cli(Coverage, description=__doc__))
