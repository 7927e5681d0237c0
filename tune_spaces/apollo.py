"""The sweep of APOLLO on a ranker: learning rate, rank, scale of the update, and how long a projection is kept."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("ranker", "language_model"),
    {
        "optimizer.learning_rate": tune.loguniform(1e-3, 1e-1),
        "optimizer.projection.rank_share": tune.choice([0.0625, 0.125, 0.25, 0.5]),
        "optimizer.projection.scale": tune.loguniform(0.25, 16.0),
        "optimizer.projection.period": tune.choice([20, 50, 200, 1000]),
    },
    settings={"optimizer.optimizer": "apollo"},
)
