"""Scores of all items by what is not trained (popularity, neighbours by text), by a dense head, and by sums of those."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rayrec.data.sequences.batches import HistoryBatch
from rayrec.families.retriever.task import HistoryItems, RetrievalEvaluation, RetrievalTask
from rayrec.metrics.ranking import ABSENT, target_ranks
from rayrec.models.layers.item_softmax import shifted_scores
from rayrec.retrieval.retriever import Retriever
from rayrec.retrieval.text_blend import text_query
from rayrec.typed_json import ConfigError

Scores = Callable[[Tensor], Tensor]
"""Of histories (B, L), left-padded with 0: scores (B, N + 1) of all items, -inf for padding."""
K = TypeVar("K", bound=Hashable)
DECAYS = (0.0, 0.3, 0.6, 0.8, 1.0)


def popularity(counts: Tensor) -> Scores:
    """Most frequent in training first; counts: (N + 1,), row 0 padding."""
    scores = without_padding(counts.double().unsqueeze(0).clone())
    return lambda history: scores.expand(len(history), -1).clone()


def text_neighbours(text: Tensor, decay: float) -> Scores:
    """Cosine of each item's embedding and the sum of those of the history, in which every item weighs ``decay`` times the next
    newer one: 0 = the newest alone. text: (N + 1, E), row 0 of no item."""
    vectors = normalize(text.float(), dim=1)
    return lambda history: without_padding(text_query(text, history, decay) @ vectors.T)


def dense_scores(model: Retriever[Any]) -> Callable[[Any], Tensor]:
    """What the model's dense head gives every item, its shift of the history's items on top. Raises ConfigError without one."""
    head = model.dense
    if head is None:
        raise ConfigError("scores of all items need a dense head; this model has none")
    with torch.no_grad():
        vectors = head.item_vectors().float()

    @torch.no_grad()
    def scores(history: Tensor) -> Tensor:
        found, repeats = head.query(history).float() @ vectors.T, head.repeats(history)
        return without_padding(found if repeats is None else shifted_scores(found, repeats.items, repeats.shift))

    return scores


def summed(first: Scores, second: Scores, share: float) -> Scores:
    """(1 - share) * first + share * second, each of mean 0 and deviation 1 over the items of a row."""
    return lambda history: added(standardized(first(history)), standardized(second(history)), share)


def equal_sum(several: Sequence[Scores]) -> Scores:
    """Their mean, each of mean 0 and deviation 1 over the items of a row; of one alone, its own scores."""
    if len(several) == 1:
        return several[0]

    def scores(history: Tensor) -> Tensor:
        total = sum((standardized(one(history)) for one in several[1:]), standardized(several[0](history)))
        return without_padding(total / len(several))

    return scores


def scored_ranks(scores: Tensor, batch: HistoryBatch, depth: int, history: HistoryItems) -> Tensor:
    """Ranks (B,) of the targets by scores (B, N + 1) of all items, ABSENT beyond ``depth``."""
    if history == "excluded":
        scores = scores.scatter(1, batch.history, -torch.inf)
    ranks = target_ranks(scores, batch.target)
    return ranks.masked_fill(ranks > depth, ABSENT)


def judge_each(
    task: RetrievalTask, batches: Iterable[HistoryBatch], each: Callable[[HistoryBatch], Iterable[tuple[K, Tensor]]],
    history: HistoryItems,
) -> dict[K, RetrievalEvaluation]:  # fmt: skip
    """Every scoring (key, scores (B, N + 1)) that ``each`` gives of a batch, judged over one pass of ``batches``."""
    found: dict[K, RetrievalEvaluation] = {}
    for batch in batches:
        for key, scores in each(batch):
            evaluation = found.setdefault(key, task.evaluation())
            evaluation.update(scored_ranks(scores, batch, task.config.list_depth, history), batch)
    return found


def without_padding(scores: Tensor) -> Tensor:
    scores[:, 0] = -torch.inf
    return scores


def standardized(scores: Tensor) -> Tensor:
    """(B, N + 1), 0 for padding, whose -inf times a share of 0 would be NaN."""
    found = scores - scores[:, 1:].mean(1, keepdim=True)
    found[:, 0] = 0
    spread = torch.linalg.vector_norm(found, dim=1, keepdim=True) / (found.shape[1] - 2) ** 0.5  # cheaper than std
    return found.div_(spread.clamp_min(1e-12))


def added(first: Tensor, second: Tensor, share: float) -> Tensor:
    return without_padding(torch.lerp(first, second, share))
