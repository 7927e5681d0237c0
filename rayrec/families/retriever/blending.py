"""The blend of a dense head (``rayrec.retrieval.text_blend``), chosen on validation once the weights are trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from rayrec.data.sequences.batches import HistoryBatch
from rayrec.families.retriever.item_scores import DECAYS, dense_scores, judge_each, text_neighbours
from rayrec.families.retriever.task import HistoryItems, RetrievalTask
from rayrec.retrieval.retriever import Retriever
from rayrec.retrieval.text_blend import TextBlend
from rayrec.typed_json import ConfigError

Batches = Callable[[], Iterable[HistoryBatch]]
"""A pass over validation."""
BatchScores = Callable[[HistoryBatch], Tensor]
"""(B, N + 1), -inf for padding."""
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Of the text in a sum of two scores of equal spread."""
BONUSES = tuple(i / 20 for i in range(41))
"""For unseen items, in units of the spread of the scores that they are added to."""
UNSEEN_SHARE = 0.1
"""Of all items: from so many unseen ones on the whole budget may be spent, with fewer in proportion, since fewer cost less."""


@torch.no_grad()
def fit_blend(
    task: RetrievalTask, model: Retriever[Any], batches: Batches, *, history: HistoryItems = "ranked",
    shares: Sequence[float] = SHARES,
) -> TextBlend | None:  # fmt: skip
    """Choose the blend of ``model`` and leave it with that; None for a model that takes none.

    How the text fades and what it weighs are best by the objective over validation targets that training saw, the least of
    equals; then the bonus is that of ``fit_bonus`` by the model's ``unseen_budget``. Raises ConfigError when no target was seen.
    """
    blended = model.blended
    if blended is None:
        return None
    model.eval()
    blended.blend_with(TextBlend(0.0, 0.0, 0.0))
    head, text, objective = dense_scores(model), blended.item_text, task.config.objective

    def dense(batch: HistoryBatch) -> Tensor:
        return head(batch.asked)

    def by_text(batch: HistoryBatch) -> Tensor:
        return fading[decay](batch.history)

    def weighed(batch: HistoryBatch) -> Iterable[tuple[float, Tensor]]:
        first, second = dense(batch), by_text(batch)
        return ((weight, _sum(first, weight, second)) for weight in weights)

    def chosen(batch: HistoryBatch) -> Tensor:
        return _sum(dense(batch), weight, by_text(batch))

    fading = {decay: text_neighbours(text, decay) for decay in DECAYS}
    by_decay = _in_set(task, batches, lambda batch: ((d, fading[d](batch.history)) for d in DECAYS), objective, history)
    decay = _first_best(by_decay)
    ratio = _spread(dense, batches()) / _spread(by_text, batches())
    weights = [share / (1 - share) * ratio for share in shares]
    weight = _first_best(_in_set(task, batches, weighed, objective, history))
    bonus = fit_bonus(task, chosen, batches, blended.unseen_budget, history=history)
    found = TextBlend(weight, decay, bonus)
    blended.blend_with(found)
    return found


@torch.no_grad()
def fit_bonus(
    task: RetrievalTask, scores: BatchScores, batches: Batches, budget: float, *, history: HistoryItems = "ranked"
) -> float:
    """The largest bonus for unseen items of a grid before which none costs more than the budget: a share of the recall@10 of
    validation targets that training saw, less where fewer than UNSEEN_SHARE of the items are unseen.

    0 where nothing is unseen or nothing found without it: what a bonus costs can then not be known.
    """
    seen = task.catalogue.seen[1:]
    unseen = torch.cat([seen.new_zeros(1), ~seen]).float()
    spread = _spread(scores, batches())
    bonuses = [step * spread for step in BONUSES]

    def lifted(batch: HistoryBatch) -> Iterable[tuple[float, Tensor]]:
        plain = scores(batch)
        return ((bonus, _sum(plain, bonus, unseen.to(plain))) for bonus in bonuses)

    recall = _in_set(task, batches, lifted, "recall@10", history)
    if recall[0.0] == 0 or not bool(unseen.any()):
        return 0.0
    allowed = budget * min(1.0, float(unseen.sum()) / (UNSEEN_SHARE * len(seen)))
    *_, bonus = takewhile(lambda bonus: recall[bonus] >= (1 - allowed) * recall[0.0], bonuses)
    return bonus


def _in_set(
    task: RetrievalTask, batches: Batches, each: Callable[[HistoryBatch], Iterable[tuple[float, Tensor]]], metric: str,
    history: HistoryItems,
) -> Mapping[float, float]:  # fmt: skip
    found = {}
    for key, one in judge_each(task, batches(), each, history).items():
        value = one.summarize()["in_set"][metric]
        if value is None:
            raise ConfigError("no validation target was seen in training: nothing to choose a blend by")
        found[key] = value
    if not found:
        raise ConfigError("no validation target: nothing to choose a blend by")
    return found


def _first_best(found: Mapping[float, float]) -> float:
    return max(found, key=lambda key: (found[key], -key))


def _sum(first: Tensor, weight: float, second: Tensor) -> Tensor:
    """first + weight * second, -inf for padding."""
    total = first.clone()
    total[:, 1:] += weight * second[..., 1:]
    return total


def _spread(scores: BatchScores, batches: Iterable[HistoryBatch]) -> float:
    """The mean over histories of their scores' standard deviation over items."""
    spreads = torch.cat([scores(batch)[:, 1:].std(1) for batch in batches])
    return max(float(spreads.mean()), 1e-12)
