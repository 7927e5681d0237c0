"""Ranking by scores of all items: what no training takes part in (popularity, neighbours by text), and sums of two models."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from rayrec.data.sequences.batches import HistoryBatch
from rayrec.data.sequences.streams import JudgedSequences
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.task import HistoryItems, RetrievalEvaluation
from rayrec.metrics.ranking import ABSENT, target_ranks
from rayrec.models.layers.item_softmax import shifted_scores
from rayrec.retrieval.retriever import Retriever
from rayrec.training.judging import Judged
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError

Scores = Callable[[Tensor], Tensor]
"""Of histories (B, L), left-padded with 0: scores (B, N + 1) of all items, -inf for padding."""
K = TypeVar("K", bound=Hashable)
SHARES = tuple(i / 10 for i in range(11))
DECAYS = (0.0, 0.3, 0.6, 0.8, 1.0)


def popularity(counts: Tensor) -> Scores:
    """Most frequent in training first; counts: (N + 1,), row 0 padding."""
    scores = _without_padding(counts.double().unsqueeze(0).clone())
    return lambda history: scores.expand(len(history), -1).clone()


def text_neighbours(text: Tensor, decay: float) -> Scores:
    """Cosine of each item's embedding and the sum of those of the history, in which every item weighs ``decay`` times the next
    newer one: 0 = the newest alone. text: (N + 1, E), row 0 of no item."""
    vectors = normalize(text.float(), dim=1)
    vectors[0] = 0.0

    def scores(history: Tensor) -> Tensor:
        ages = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
        weights = torch.tensor(decay, device=history.device) ** ages  # 0 ** 0 is 1
        query = normalize((vectors[history] * weights.unsqueeze(1)).sum(1), dim=1)
        return _without_padding(query @ vectors.T)

    return scores


def dense_scores(model: Retriever[Any]) -> Scores:
    """What the model's dense head gives every item, its shift of the history's items on top. Raises ConfigError without one."""
    head = model.dense
    if head is None:
        raise ConfigError("scores of all items need a dense head; this model has none")
    with torch.no_grad():
        vectors = head.item_vectors().float()

    @torch.no_grad()
    def scores(history: Tensor) -> Tensor:
        found, repeats = head.query(history).float() @ vectors.T, head.repeats(history)
        return _without_padding(found if repeats is None else shifted_scores(found, repeats.items, repeats.shift))

    return scores


def summed(first: Scores, second: Scores, share: float) -> Scores:
    """(1 - share) * first + share * second, each of mean 0 and deviation 1 over the items of a row."""
    return lambda history: _added(_standardized(first(history)), _standardized(second(history)), share)


def best_share(
    experiment: RetrieverExperiment, first: Scores, second: Scores, *, history: HistoryItems,
    shares: Sequence[float] = SHARES,
) -> float:  # fmt: skip
    """The ``share`` of ``summed`` that is best by the objective on validation targets seen in training; the least of equals."""

    def each(given: Tensor) -> Iterable[tuple[float, Tensor]]:
        one, other = _standardized(first(given)), _standardized(second(given))
        return ((share, _added(one, other, share)) for share in shares)

    return _best(experiment, each, history)


def best_decay(
    experiment: RetrieverExperiment, text: Tensor, *, history: HistoryItems, decays: Sequence[float] = DECAYS
) -> float:
    """The ``decay`` of ``text_neighbours``, chosen likewise."""
    options = {decay: text_neighbours(text, decay) for decay in decays}
    return _best(experiment, lambda given: ((decay, scores(given)) for decay, scores in options.items()), history)


def judge_scores(experiment: RetrieverExperiment, scores: Scores, *, split: str, history: HistoryItems) -> Judged:
    """The full ranking, judged as a trained retriever's: to the same depth, ties against the target."""
    return _judge(experiment, lambda given: ((None, scores(given)),), split, history)[None]


def scored_ranks(scores: Tensor, batch: HistoryBatch, depth: int, history: HistoryItems) -> Tensor:
    """Ranks (B,) of the targets by scores (B, N + 1) of all items, ABSENT beyond ``depth``."""
    if history == "excluded":
        scores = scores.scatter(1, batch.history, -torch.inf)
    ranks = target_ranks(scores, batch.target)
    return ranks.masked_fill(ranks > depth, ABSENT)


def _best(
    experiment: RetrieverExperiment, each: Callable[[Tensor], Iterable[tuple[float, Tensor]]], history: HistoryItems
) -> float:
    objective = experiment.retrieval.objective
    found = {key: one.metrics["in_set"][objective] for key, one in _judge(experiment, each, "valid", history).items()}
    return max(found, key=lambda key: (found[key] or 0.0, -key))


def _judge(
    experiment: RetrieverExperiment, each: Callable[[Tensor], Iterable[tuple[K, Tensor]]], split: str, history: HistoryItems
) -> dict[K, Judged]:  # fmt: skip
    task, depth = experiment.task(), experiment.retrieval.list_depth
    evaluations: dict[K, RetrievalEvaluation] = {}
    batches = experiment.data(Worker()).open_evaluation(split, 1)
    assert isinstance(batches, JudgedSequences)
    for batch in batches.epoch_batches():
        for key, scores in each(batch.history):
            evaluation = evaluations.setdefault(key, task.evaluation())
            evaluation.update(scored_ranks(scores, batch, depth, history), batch)
    return {key: Judged(split, one.summarize(), one.left_out()) for key, one in evaluations.items()}


def _without_padding(scores: Tensor) -> Tensor:
    scores[:, 0] = -torch.inf
    return scores


def _standardized(scores: Tensor) -> Tensor:
    """(B, N + 1), 0 for padding, whose -inf times a share of 0 would be NaN."""
    items = scores[:, 1:]
    spread = items.std(1, keepdim=True).clamp_min(1e-12)
    return pad((items - items.mean(1, keepdim=True)) / spread, (1, 0))


def _added(first: Tensor, second: Tensor, share: float) -> Tensor:
    return _without_padding((1 - share) * first + share * second)
