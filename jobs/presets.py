"""Starting settings of a ranker for each data set, chosen on its validation split; a sweep goes on from here."""

from pathlib import Path
from typing import Literal

from rayrec.data.log import Log
from rayrec.data.log.streams import StreamConfig
from rayrec.data.public.logs import PUBLIC_DATASETS, PublicName
from rayrec.data.simulation import teacher_only_features
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.loop import LoopConfig


def experiment_for(dataset: Literal["simulated"] | PublicName, log: Path) -> RankerExperiment:
    """The experiment for ``log``, the data set of that name as imported or simulated."""
    match "weak" if dataset == "simulated" else PUBLIC_DATASETS[dataset].signal:
        case "strong":
            return _strong_signal(log)
        case "weak":
            return _weak_signal(log)
        case "few rows a value":
            return _few_rows_many_ids(log)


def student_of_world(log: Path) -> RankerExperiment:
    """An early-stage ranker of the simulated world: it does not see the late signals. No user ids: a dozen impressions each fit
    noise."""
    return RankerExperiment(
        log,
        ignored_features=("user", *teacher_only_features(Log.open(log).schema)),
        ranking=RankingConfig(RankerArchitecture(embedding_dim=4, interaction="none", trunk=(16,), tower=())),
        optimizer=OptimizerConfig(learning_rate=1e-2, embedding_learning_rate=1e-2),
        loop=LoopConfig(epochs=4, schedule="linear"),
        stream=StreamConfig(batch_size=256),
    )


def teacher_of_world(log: Path) -> RankerExperiment:
    """A late-stage ranker that must be right far from what was shown: linear in features that hold what drove the selection,
    and trained to the end."""
    return RankerExperiment(
        log,
        ignored_features=("user",),
        ranking=RankingConfig(RankerArchitecture(embedding_dim=1, interaction="none", trunk=(), tower=())),
        optimizer=OptimizerConfig(learning_rate=2e-2, embedding_learning_rate=0.05),
        loop=LoopConfig(epochs=6, schedule="linear", keep="last"),
        stream=StreamConfig(batch_size=256),
    )


def _strong_signal(log: Path) -> RankerExperiment:
    """Few values a feature, each seen often: wide layers, and interactions of full rank."""
    return RankerExperiment(
        log,
        ranking=RankingConfig(RankerArchitecture(trunk=(128, 64), tower=(32,), dropout=0.2)),
        optimizer=OptimizerConfig(embedding_learning_rate=0.02),
        loop=LoopConfig(epochs=6, schedule="linear"),
        stream=StreamConfig(batch_size=1024),
    )


def _weak_signal(log: Path) -> RankerExperiment:
    """Clicks that are hard to predict, from ids seen tens of times: small vectors, half of them dropped."""
    architecture = RankerArchitecture(
        embedding_dim=8, cross_layers=1, trunk=(64,), tower=(16,), dropout=0.2, embedding_dropout=0.5
    )
    return RankerExperiment(
        log,
        ranking=RankingConfig(architecture),
        optimizer=OptimizerConfig(learning_rate=3e-3, embedding_learning_rate=0.1, embedding_weight_decay=1e-3),
        loop=LoopConfig(epochs=3, schedule="linear"),
        stream=StreamConfig(batch_size=1024),
    )


def _few_rows_many_ids(log: Path) -> RankerExperiment:
    """Ids seen a few times each: the wide part learns fast, the deep one is small and sees half of its inputs."""
    architecture = RankerArchitecture(
        embedding_dim=8, cross_layers=0, trunk=(32,), tower=(), dropout=0.5, embedding_dropout=0.5
    )
    return RankerExperiment(
        log,
        ranking=RankingConfig(architecture),
        optimizer=OptimizerConfig(learning_rate=3e-3, embedding_learning_rate=0.1, embedding_weight_decay=1e-3),
        loop=LoopConfig(epochs=10),
        stream=StreamConfig(batch_size=256),
    )
