"""Judges a trained ranker on a split of the log that it was trained on, or of any log with its features and tasks."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rayrec.data.log import Log
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.bundle import Bundle, load_bundle
from rayrec.families.ranker.experiment import EVALUATION_BATCH_ROWS, RankerExperiment
from rayrec.families.ranker.scoring import features_of
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.reporting import Table
from rayrec.reporting.page import metrics_table
from rayrec.training.judging import judge_stream
from rayrec.typed_json import ConfigError, from_plain


@dataclass(frozen=True)
class EvaluateRanker:
    """Judge a ranker.

    split: which part of the log. log: None = the one that it was trained on.
    """

    split: Literal["train", "valid", "test"] = "test"
    log: Path | None = None

    def evaluate(self, folder: Path) -> Table:
        """Metrics by task. Raises BundleError, LogError, SchemaError or ConfigError that names what does not fit."""
        bundle = load_bundle(folder)
        experiment = from_plain(RankerExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
        log = Log.open(self.log or experiment.log)
        log.files(self.split)
        absent = sorted(set(bundle.schema.task_names) - set(log.schema.task_names))
        if absent:
            raise ConfigError(f"{log.path}: no labels of {', '.join(absent)}, which the model predicts")
        view = Log(log.path, replace(features_of(bundle.schema, log.schema, log.path), tasks=bundle.schema.tasks))
        stream = StreamConfig(EVALUATION_BATCH_ROWS, shuffle=False, drop_last=False, reader="in_process")
        with closing(LogStream(view, self.split, stream)) as batches:
            return metrics_table(judge_stream(_task(bundle, experiment), bundle.model, batches.epoch_batches()))


def _task(bundle: Bundle, experiment: RankerExperiment) -> RankingTask:
    """The bundle's tasks and metrics; how it was trained does not matter here."""
    ranking = RankingConfig(
        experiment.ranking.architecture, known_features_split=experiment.ranking.known_features_split
    )
    return RankingTask(bundle.schema, ranking)
