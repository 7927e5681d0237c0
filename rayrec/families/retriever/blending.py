"""The blend of a dense head (``rayrec.retrieval.text_blend``), chosen on validation once the weights are trained."""

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from rayrec.data.sequences.batches import HistoryBatch
from rayrec.families.retriever.item_scores import DECAYS, dense_scores, judge_each, text_neighbours
from rayrec.families.retriever.task import RetrievalTask
from rayrec.retrieval.retriever import Retriever
from rayrec.retrieval.text_blend import TextBlend

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Of the text in a sum of two scores of equal spread."""
BONUSES = tuple(i / 20 for i in range(41))
"""For unseen items, in units of the sum's spread."""


@torch.no_grad()
def fit_blend(
    task: RetrievalTask, model: Retriever[Any], batches: Callable[[], Iterable[HistoryBatch]]
) -> TextBlend | None:
    """Choose the blend of ``model`` and leave it with that; None for a model that takes none.

    batches(): a pass over validation. How the text fades and what it weighs are best by the objective over targets that training
    saw, the least of equals; the bonus is the largest before which none costs more than ``unseen_budget`` of their recall@10.
    """
    blended = model.blended
    if blended is None:
        return None
    model.eval()
    blended.blend_with(TextBlend(0.0, 0.0, 0.0))
    head, text, objective = dense_scores(model), blended.item_text, task.config.objective
    unseen = (~task.catalogue.seen).to(text)

    def in_set(each: Callable[[HistoryBatch], Iterable[tuple[float, Tensor]]], metric: str) -> Mapping[float, float]:
        judged = judge_each(task, batches(), each, "ranked")
        return {key: one.summarize()["in_set"][metric] or 0.0 for key, one in judged.items()}

    def dense(batch: HistoryBatch) -> Tensor:
        return head(batch.asked)

    fading = {decay: text_neighbours(text, decay) for decay in DECAYS}
    decay = _first_best(in_set(lambda batch: ((d, fading[d](batch.history)) for d in DECAYS), objective))

    def by_text(batch: HistoryBatch) -> Tensor:
        return fading[decay](batch.history)

    ratio = _spread(dense, batches()) / _spread(by_text, batches())

    def weighed(batch: HistoryBatch) -> Iterable[tuple[float, Tensor]]:
        first, second = dense(batch), by_text(batch)
        weights = (share / (1 - share) * ratio for share in SHARES)
        return ((weight, _sum(first, weight, second)) for weight in weights)

    weight = _first_best(in_set(weighed, objective))

    def both(batch: HistoryBatch) -> Tensor:
        return _sum(dense(batch), weight, by_text(batch))

    spread = _spread(both, batches())
    bonuses = [step * spread for step in BONUSES]

    def lifted(batch: HistoryBatch) -> Iterable[tuple[float, Tensor]]:
        scores = both(batch)
        return ((bonus, _sum(scores, bonus, unseen)) for bonus in bonuses)

    recall = in_set(lifted, "recall@10")
    least = (1 - blended.unseen_budget) * recall[0.0]
    *_, bonus = takewhile(lambda bonus: recall[bonus] >= least, bonuses)
    found = TextBlend(weight, decay, bonus)
    blended.blend_with(found)
    return found


def _first_best(found: Mapping[float, float]) -> float:
    return max(found, key=lambda key: (found[key], -key))


def _sum(first: Tensor, weight: float, second: Tensor) -> Tensor:
    """first + weight * second, -inf for padding."""
    total = first.clone()
    total[:, 1:] += weight * second[..., 1:]
    return total


def _spread(scores: Callable[[HistoryBatch], Tensor], batches: Iterable[HistoryBatch]) -> float:
    """The mean over histories of their scores' standard deviation over items."""
    spreads = torch.cat([scores(batch)[:, 1:].std(1) for batch in batches])
    return max(float(spreads.mean()), 1e-12)
