"""The sweep of a plain ranker: learning rates, regularization, and the size of the interaction network."""

from ray import tune

from rayrec.training.sweeping import SweepSpace

SPACE = SweepSpace(
    {
        "optimizer.learning_rate": tune.loguniform(3e-4, 1e-2),
        "optimizer.embedding_learning_rate": tune.loguniform(3e-3, 1e-1),
        "optimizer.weight_decay": tune.loguniform(1e-6, 1e-2),
        "ranking.architecture.dropout": tune.uniform(0.0, 0.3),
        "ranking.architecture.cross_layers": tune.choice([1, 2, 3]),
    }
)
