"""The sweep of MultiBalance: how long its norms remember, how fast its weights move, how strongly they are held together."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("ranker",),
    {
        "ranking.balancing.norm_rate": tune.loguniform(1e-3, 1.0),
        "ranking.balancing.step_size": tune.loguniform(1e-2, 100.0),
        "ranking.balancing.uniform_pull": tune.loguniform(1e-2, 10.0),
        "ranking.balancing.rescale": tune.choice([True, False]),
    },
    settings={"ranking.balancing.method": "multibalance"},
)
