"""The sweep of UKDSL: the distillation weights, the temperature, and unlabeled rows per labeled row.

The base names an unlabeled log and scored logs or a teacher. The auxiliary head is swept, whose main head serves
what validation judges: impressions. A shared head is right on all candidates at the price of impressions: judge it there.
"""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("ranker",),
    {
        "ranking.distillation.labeled_weight": tune.uniform(0.0, 2.0),
        "ranking.distillation.unlabeled_weight": tune.loguniform(0.1, 10.0),
        "ranking.distillation.temperature": tune.uniform(1.0, 3.0),
        "unlabeled_ratio": tune.choice([1.0, 2.0, 4.0, 8.0]),
    },
    settings={"ranking.distillation.head": "auxiliary"},
)
