"""Starting settings of a ranker for each data set, chosen on its validation split; a sweep goes on from here."""

from pathlib import Path
from typing import Literal

from rayrec.data.importers.public import PublicName
from rayrec.data.streams import StreamConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.tasks.ranking import RankingConfig
from rayrec.training.loop import LoopConfig
from rayrec.training.ranker_run import RankerExperiment


def experiment_for(dataset: Literal["simulated"] | PublicName, log: Path) -> RankerExperiment:
    """The experiment for ``log``, the data set of that name as imported or simulated."""
    match dataset:
        case "simulated" | "criteo":
            return _many_rows(log, batch_size=2048, epochs=2)
        case "census-income" | "census-income-education":
            return _many_rows(log, batch_size=1024, epochs=4)
        case "kuairand" | "ipinyou" | "open-bandit" | "coat":
            return _few_rows_many_ids(log)


def _many_rows(log: Path, *, batch_size: int, epochs: int) -> RankerExperiment:
    """Enough rows for each id to learn interactions."""
    return RankerExperiment(
        log,
        ranking=RankingConfig(RankerArchitecture(trunk=(128, 64), tower=(32,), dropout=0.2)),
        optimizer=OptimizerConfig(embedding_learning_rate=0.05),
        loop=LoopConfig(epochs=epochs, schedule="linear"),
        stream=StreamConfig(batch_size=batch_size),
    )


def _few_rows_many_ids(log: Path) -> RankerExperiment:
    """Ids seen a few times each: the wide part learns fast, the deep one is small and sees half of its inputs."""
    architecture = RankerArchitecture(
        embedding_dim=8, cross_layers=0, trunk=(32,), tower=(), dropout=0.5, embedding_dropout=0.5
    )
    return RankerExperiment(
        log,
        ranking=RankingConfig(architecture),
        optimizer=OptimizerConfig(embedding_learning_rate=0.2, embedding_weight_decay=1e-4),
        loop=LoopConfig(epochs=10),
        stream=StreamConfig(batch_size=256),
    )
