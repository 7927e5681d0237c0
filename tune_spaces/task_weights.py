"""The sweep of fixed task weights, which grows with the number of tasks: what MultiBalance makes unnecessary."""

from collections.abc import Sequence

from ray import tune

from rayrec.runs.sweeping import SweepSpace
from rayrec.typed_json import ConfigError


def space(tasks: Sequence[str]) -> SweepSpace:
    """Weights of all tasks but the first, relative to it. Raises ConfigError for a single task."""
    if len(tasks) < 2:
        raise ConfigError(f"task weights need at least two tasks, not {', '.join(tasks)}")
    return SweepSpace({f"ranking.task_weights.{task}": tune.loguniform(0.1, 10.0) for task in tasks[1:]})
