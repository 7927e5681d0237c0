"""The sweep of a plain ranker: learning rates, regularization, and the size of the interaction network."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("ranker",),
    {
        "optimizer.learning_rate": tune.loguniform(3e-4, 1e-2),
        "optimizer.embedding_learning_rate": tune.loguniform(1e-2, 3e-1),
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
        "optimizer.embedding_weight_decay": tune.loguniform(1e-6, 1e-3),
        "ranking.architecture.dropout": tune.uniform(0.0, 0.5),
        "ranking.architecture.cross_layers": tune.choice([0, 1, 2, 3]),
    },
)
