"""The sweep of EmbSum: the weight of its summaries, codes, learning rate."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("content",),
    {
        "optimizer.learning_rate": tune.loguniform(3e-5, 3e-3),
        "optimizer.embedding_learning_rate": tune.loguniform(1e-5, 1e-3),
        "ranker.embsum.summary_weight": tune.choice([0.01, 0.05, 0.1, 0.3]),
        "ranker.embsum.user_codes": tune.choice([4, 8, 16, 32]),
        "ranker.embsum.item_codes": tune.choice([1, 2, 4]),
        "ranker.encoder.dropout": tune.uniform(0.0, 0.3),
    },
    settings={"ranker.model": "embsum"},
)
