"""The sweep of SASRec: learning rate, regularization, width, depth, and inner products or cosines."""

from ray import tune

from rayrec.runs.sweeping import SweepSpace

SPACE = SweepSpace(
    ("retriever",),
    {
        "optimizer.learning_rate": tune.loguniform(3e-4, 3e-3),
        "optimizer.embedding_learning_rate": tune.loguniform(3e-4, 3e-3),
        "optimizer.weight_decay": tune.loguniform(1e-4, 0.3),
        "optimizer.embedding_weight_decay": tune.loguniform(1e-4, 0.3),
        "retrieval.sasrec.dim": tune.choice([64, 128, 256]),
        "retrieval.sasrec.layers": tune.choice([1, 2, 3]),
        "retrieval.sasrec.dropout": tune.uniform(0.2, 0.7),
        "retrieval.sasrec.temperature": tune.choice([None, 0.05, 0.07, 0.1]),
    },
    settings={"retrieval.model": "sasrec"},
)
