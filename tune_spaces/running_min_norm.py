"""The sweep of our running form of MultiBalance: how long its means remember, and what the algorithm leaves open."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("ranker",),
    {
        "ranking.balancing.decay": tune.choice([0.0, 0.9, 0.99, 0.999]),
        "ranking.balancing.normalize": tune.choice([True, False]),
        "ranking.balancing.statistic": tune.choice(["gram", "summed_gradient"]),
        "ranking.balancing.ridge": tune.loguniform(1e-4, 1.0),
    },
    settings={"ranking.balancing.method": "running_min_norm"},
)
