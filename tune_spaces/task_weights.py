"""The sweep of fixed task weights, which grows with the number of tasks: what MultiBalance makes unnecessary."""

from ray import tune
from ray.tune.search.sample import Domain

from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.runs.sweeping import SweepSpace
from rayrec.typed_json import ConfigError


def weights(base: RankerExperiment) -> dict[str, Domain]:
    """Weights of all tasks but the first, relative to it. Raises ConfigError for a single task."""
    tasks = base.task().schema.task_names
    if len(tasks) < 2:
        raise ConfigError(f"task weights need at least two tasks, not {', '.join(tasks)}")
    return {f"ranking.task_weights.{task}": tune.loguniform(0.1, 10.0) for task in tasks[1:]}


SPACE = SweepSpace(("ranker",), weights)
