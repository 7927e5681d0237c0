"""The sweep of LSPR: the weight of the perturbed loss, and how large a small perturbation is (epsilon) on numbers and vectors."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("ranker",),
    {
        "ranking.perturbation.strength": tune.uniform(0.1, 0.9),
        "ranking.perturbation.dense_noise": tune.loguniform(0.01, 1.0),
        "ranking.perturbation.embedding_noise": tune.loguniform(0.01, 1.0),
    },
    settings={"ranking.perturbation.loss": "lspr"},
)
