"""The sweep of SPAR: learning rate, codes, window and random share of its sparse attention, width."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("content",),
    {
        "optimizer.learning_rate": tune.loguniform(3e-5, 3e-3),
        "ranker.spar.user_codes": tune.choice([4, 8, 16, 32]),
        "ranker.spar.item_codes": tune.choice([1, 2, 4]),
        "ranker.spar.window": tune.choice([128, 256, 512]),
        "ranker.spar.random_share": tune.choice([0.0, 0.05, 0.1, 0.2]),
        "ranker.encoder.dropout": tune.uniform(0.0, 0.3),
    },
    settings={"ranker.model": "spar"},
)
