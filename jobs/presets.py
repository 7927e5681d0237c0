"""Starting settings of a ranker for each data set, tuned on its validation split; a sweep goes on from here."""

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
            return _experiment(log, batch_size=2048, epochs=2)
        case "census-income" | "census-income-education":
            return _experiment(log, batch_size=1024, epochs=6, learning_rate=1e-3)
        case "kuairand":
            return _experiment(log, batch_size=1024, epochs=10, embedding_weight_decay=1e-3, embedding_dropout=0.3)
        case "ipinyou" | "open-bandit" | "coat":
            return _experiment(log, batch_size=512, epochs=6, embedding_weight_decay=1e-3)


def _experiment(
    log: Path,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-3,
    embedding_weight_decay: float = 0.0,
    embedding_dropout: float = 0.0,
) -> RankerExperiment:
    architecture = RankerArchitecture(trunk=(128, 64), tower=(32,), dropout=0.1, embedding_dropout=embedding_dropout)
    return RankerExperiment(
        log,
        ranking=RankingConfig(architecture),
        optimizer=OptimizerConfig(learning_rate=learning_rate, embedding_weight_decay=embedding_weight_decay),
        loop=LoopConfig(epochs=epochs),
        stream=StreamConfig(batch_size=batch_size),
    )
