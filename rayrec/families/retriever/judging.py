"""How well and at what cost a trained retriever answers: metrics by method, time a user, bytes that must be stored."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.task import HistoryItems, RetrievalTask
from rayrec.retrieval.searching import HEADS, Method, Searcher
from rayrec.training.judging import Judged
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class Judgement:
    """metrics: by group (in_set, cold, all) and name. milliseconds: a user, in batches, histories to ranks.

    left_out: the metrics without each group of users, of equal groups for all models of one split.
    index_bytes: what answering needs beside the weights: float32 vectors (dense), 2 bytes a code (generative), both (hybrid).
    history: whether its items were candidates.
    """

    method: Method
    beams: int | None
    metrics: Mapping[str, Mapping[str, float | None]]
    milliseconds: float
    index_bytes: int
    left_out: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    history: HistoryItems = "ranked"

    def as_judged(self, split: str, parameters: int) -> Judged:
        costs = {
            "ms a user": self.milliseconds,
            "index bytes": float(self.index_bytes),
            "parameters": float(parameters),
        }
        return Judged(split, self.metrics, self.left_out, costs)


def judge(
    experiment: RetrieverExperiment, task: RetrievalTask, searcher: Searcher[Any], method: Method,
    *, split: str = "test", beams: int | None = None, history: HistoryItems = "ranked",
) -> Judgement:  # fmt: skip
    """One pass over a split of the experiment's data. Raises ConfigError for a split or method that is not there."""
    if split not in ("valid", "test"):
        raise ConfigError(f"split must be valid or test, not {split!r}")
    searcher.model.eval()
    evaluation, users, seconds = task.evaluation(), 0, 0.0
    for batch in experiment.data(Worker()).open_evaluation(split, 1).epoch_batches():
        started = time.perf_counter()
        ranks = task.ranks(searcher, batch, method, beams, history)
        seconds += time.perf_counter() - started
        users += len(batch)
        evaluation.update(ranks, batch)
    used = beams or searcher.beams if "generative" in HEADS[method] else None
    milliseconds = 1000 * seconds / max(users, 1)
    stored, left_out = searcher.stored_bytes(method), evaluation.left_out()
    return Judgement(method, used, evaluation.summarize(), milliseconds, stored, left_out, history)
