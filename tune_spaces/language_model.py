"""The sweep of a language model: learning rates, warm-up and batch size."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("language_model",),
    {
        "optimizer.learning_rate": tune.loguniform(5e-4, 3e-2),
        "optimizer.embedding_learning_rate": tune.loguniform(5e-4, 3e-2),
        "loop.warmup_steps": tune.choice([0, 50, 200]),
        "stream.batch_size": tune.choice([8, 16, 32]),
    },
)
