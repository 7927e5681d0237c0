"""Ranking by the scores of ``item_scores``: judged like a trained retriever, and what is free in them chosen on validation."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.item_scores import (
    DECAYS,
    Scores,
    added,
    judge_each,
    standardized,
    text_neighbours,
)
from rayrec.families.retriever.task import HistoryItems
from rayrec.training.judging import Judged
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError

K = TypeVar("K", bound=Hashable)
SHARES = (0.0, 0.05, 0.1, 0.15, *(i / 10 for i in range(2, 11)))


def best_share(
    experiment: RetrieverExperiment, first: Scores, second: Scores, *, history: HistoryItems,
    shares: Sequence[float] = SHARES,
) -> float:  # fmt: skip
    """The ``share`` of ``summed`` that is best by the objective on validation targets seen in training; the first of equals."""

    def each(given: Tensor) -> Iterable[tuple[float, Tensor]]:
        one, other = standardized(first(given)), standardized(second(given))
        return ((share, added(one, other, share)) for share in shares)

    return _best(experiment, each, history)


def best_decay(
    experiment: RetrieverExperiment, text: Tensor, *, history: HistoryItems, decays: Sequence[float] = DECAYS
) -> float:
    """The ``decay`` of ``text_neighbours``, chosen likewise."""
    return best_option(experiment, {decay: text_neighbours(text, decay) for decay in decays}, history=history)


def best_option(experiment: RetrieverExperiment, options: Mapping[K, Scores], *, history: HistoryItems) -> K:
    """Of several scorings, chosen likewise; the first of equals."""
    return _best(experiment, lambda given: ((key, scores(given)) for key, scores in options.items()), history)


def judge_scores(experiment: RetrieverExperiment, scores: Scores, *, split: str, history: HistoryItems) -> Judged:
    """The full ranking, judged as a trained retriever's: to the same depth, ties against the target."""
    return _judge(experiment, lambda given: ((None, scores(given)),), split, history)[None]


def _best(
    experiment: RetrieverExperiment, each: Callable[[Tensor], Iterable[tuple[K, Tensor]]], history: HistoryItems
) -> K:
    """Raises ConfigError when no validation target was seen in training."""
    objective = experiment.retrieval.objective
    found = {key: one.metrics["in_set"][objective] for key, one in _judge(experiment, each, "valid", history).items()}
    judged = {key: value for key, value in found.items() if value is not None}
    if not judged:
        raise ConfigError("no validation target was seen in training: nothing to choose by")
    return max(judged, key=judged.__getitem__)  # the first of equals


def _judge(
    experiment: RetrieverExperiment, each: Callable[[Tensor], Iterable[tuple[K, Tensor]]], split: str, history: HistoryItems
) -> dict[K, Judged]:  # fmt: skip
    batches = experiment.data(Worker()).open_evaluation(split, 1)
    found = judge_each(experiment.task(), batches.epoch_batches(), lambda batch: each(batch.history), history)
    return {key: Judged(split, one.summarize(), one.left_out()) for key, one in found.items()}
