"""The sweep of what keeps a multi-task ranker from overfitting: strength and size of small perturbations, and task weights."""

from ray import tune
from ray.tune.search.sample import Domain

from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.runs.sweeping import SweepSpace


def parameters(base: RankerExperiment) -> dict[str, Domain]:
    """LSPR's strength and noise, and the weights of all tasks but the first, relative to it."""
    return {
        "ranking.perturbation.strength": tune.uniform(0.1, 0.9),
        "ranking.perturbation.dense_noise": tune.loguniform(0.01, 1.0),
        "ranking.perturbation.embedding_noise": tune.loguniform(0.01, 1.0),
        **{f"ranking.task_weights.{task}": tune.loguniform(0.1, 10.0) for task in base.task().schema.task_names[1:]},
    }


SPACE = SweepSpace(("ranker",), parameters, settings={"ranking.perturbation.loss": "lspr"})
