"""One trial of a sweep as it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """``name``: Tune's trial id. ``objective``: None when it failed before its first evaluation."""

    name: str
    parameters: Mapping[str, float | int | str | bool]
    objective: float | None
    evaluations: int
    seconds: float
    stopped_early: bool
    error: str | None
    checkpoint: Path | None


def ranked(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """Best first ("min" or "max" of the objective); those without an objective last."""
    sign = 1.0 if mode == "min" else -1.0
    return sorted(trials, key=lambda trial: float("inf") if trial.objective is None else sign * trial.objective)
