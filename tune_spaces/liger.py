"""The sweep of LIGER: the weights of its two losses, the temperature, how many candidates it ranks, and its sizes."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("retriever",),
    {
        "optimizer.learning_rate": tune.loguniform(1e-4, 3e-3),
        "optimizer.weight_decay": tune.loguniform(1e-3, 0.3),
        "retrieval.liger.generative_weight": tune.loguniform(0.1, 10.0),
        "retrieval.liger.temperature": tune.loguniform(0.03, 0.2),
        "retrieval.liger.input_dropout": tune.uniform(0.1, 0.6),
        "retrieval.liger.transformer.encoder_layers": tune.choice([2, 4, 6]),
        "retrieval.beams": tune.choice([20, 40, 100]),
    },
    settings={"retrieval.model": "liger"},
)
