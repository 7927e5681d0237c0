"""Judges a trained ranker on a split of the log that it was trained on, or of any log with its features and tasks."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rayrec.data.log import Log
from rayrec.data.log.schema import LogSchema
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.bundle import Bundle, load_bundle
from rayrec.families.ranker.experiment import EVALUATION_BATCH_ROWS, RankerExperiment
from rayrec.families.ranker.judging import within_requests
from rayrec.families.ranker.scoring import features_of
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.metrics.by_group import grouped_metrics
from rayrec.reporting import Table
from rayrec.reporting.page import metrics_table
from rayrec.training.judging import Judged, judge_stream
from rayrec.typed_json import ConfigError, from_plain


@dataclass(frozen=True)
class EvaluateRanker:
    """Judge a ranker."""

    split: Literal["train", "valid", "test"] = "test"
    """Which part of the log."""
    log: Path | None = None
    """Folder of the log; None = the one that it was trained on."""
    by: str | None = None
    """A column of the log whose values are requests or users: how well the rows of each are ordered (AUC, MRR, nDCG
    within groups, averaged over those with both kinds of label); rows without a value are left out. None = the
    log's request id."""

    def evaluate(self, folder: Path) -> Table:
        """Metrics by task. Raises BundleError, LogError, SchemaError or ConfigError that names what does not fit."""
        return metrics_table(self.judge(folder))

    def check(self, experiment: RankerExperiment) -> None:
        """Raises LogError, SchemaError or ConfigError for a log or column that this experiment's model cannot be judged on."""
        view = self._view(experiment.task().schema, experiment)
        if by := self.by or view.schema.request_id:
            _check_groups(view, self.split, by)

    def judge_each(self, bundle: Path) -> dict[str, Judged]:
        """What a comparison asks: the arms themselves on this split of this log, told from their own by the log's name."""
        where = self.split if self.log is None else f"{self.split} of {self.log.name}"
        return {"": Judged(where, self.judge(bundle))}

    def judge(self, folder: Path) -> dict[str, dict[str, float | None]]:
        """As ``evaluate``."""
        bundle = load_bundle(folder)
        experiment = from_plain(RankerExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
        view = self._view(bundle.schema, experiment)
        stream = StreamConfig(EVALUATION_BATCH_ROWS, shuffle=False, drop_last=False)
        task, by = _task(bundle, experiment), self.by or view.schema.request_id
        with closing(LogStream(view, self.split, stream)) as batches:
            summary = judge_stream(task, bundle.model, batches.epoch_batches())
        if by is None:
            return summary
        groups, known = _column(view, self.split, by)
        with closing(LogStream(view, self.split, stream)) as batches, torch.no_grad():
            found = [(task.predict(bundle.model, batch), batch.labels) for batch in batches.epoch_batches()]
        logits, labels = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        for place, name in enumerate(bundle.schema.task_names):
            within = grouped_metrics(groups[known], logits[known, place], labels[known, place])
            summary[name] |= {f"{by}s": within.groups, **within_requests(within, by)}
        return summary

    def _view(self, schema: LogSchema, experiment: RankerExperiment) -> Log:
        """The log as a model of that schema reads it."""
        log = Log.open(self.log or experiment.log)
        log.files(self.split)
        absent = sorted(set(schema.task_names) - set(log.schema.task_names))
        if absent:
            raise ConfigError(f"{log.path}: no labels of {', '.join(absent)}, which the model predicts")
        return Log(log.path, replace(features_of(schema, log.schema, log.path), tasks=schema.tasks))


def _check_groups(log: Log, split: str, name: str) -> None:
    """Raises ConfigError for a column that is not there or holds lists."""
    fields = pq.read_schema(log.files(split)[0])
    if name not in fields.names:
        raise ConfigError(f"{log.path}: no column is called {name!r}; there are {', '.join(fields.names)}")
    if pa.types.is_nested(fields.field(name).type):
        raise ConfigError(
            f"{log.path}: column {name!r} holds {fields.field(name).type}, which names no request or user"
        )


def _column(log: Log, split: str, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(n,) codes of a column's values in the order of the split's rows, and which rows have one: null and, in a categorical
    feature, the code of missing and unknown values are none. Raises ConfigError for a column that is not there or holds lists."""
    _check_groups(log, split, name)
    column = pq.read_table(list(log.files(split)), columns=[name]).column(name)
    known = column.is_valid()
    if name in {feature.name for feature in log.schema.categorical}:
        known = pc.and_(known, pc.fill_null(pc.not_equal(column, 0), False))
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.combine_chunks().indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, known.to_numpy()


def _task(bundle: Bundle, experiment: RankerExperiment) -> RankingTask:
    """The bundle's tasks and metrics; how it was trained does not matter here."""
    ranking = RankingConfig(
        experiment.ranking.architecture, known_features_split=experiment.ranking.known_features_split
    )
    return RankingTask(bundle.schema, ranking)
