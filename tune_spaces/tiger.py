"""The sweep of TIGER: learning rate, regularization, and the sizes of its transformer."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("retriever",),
    {
        "optimizer.learning_rate": tune.loguniform(1e-4, 3e-3),
        "optimizer.weight_decay": tune.loguniform(1e-3, 0.3),
        "retrieval.tiger.input_dropout": tune.uniform(0.0, 0.5),
        "retrieval.tiger.transformer.dropout": tune.uniform(0.0, 0.3),
        "retrieval.tiger.transformer.encoder_layers": tune.choice([2, 4, 6]),
        "retrieval.tiger.transformer.decoder_layers": tune.choice([2, 4, 6]),
        "retrieval.tiger.transformer.feed_forward": tune.choice([256, 512, 1024]),
    },
    settings={"retrieval.model": "tiger"},
)
