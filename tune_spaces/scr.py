"""The sweep of SCR: the weight and kind of the divergence, and how large a perturbation is on numbers and vectors."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("ranker",),
    {
        "ranking.perturbation.strength": tune.loguniform(0.1, 30.0),
        "ranking.perturbation.divergence": tune.choice(["mse", "symmetric_kl"]),
        "ranking.perturbation.dense_noise": tune.loguniform(0.01, 1.0),
        "ranking.perturbation.embedding_noise": tune.loguniform(0.01, 1.0),
    },
    settings={"ranking.perturbation.loss": "scr"},
)
