"""Semi-supervised feature selection (SSFS of UKDSL, arXiv 2502.06834): features ranked without labels.

A feature matters as much as a trained model's predictions move when it is spoiled: shuffled among the rows of a batch, or set to
its default (missing). That needs no labels, so all traffic can be used. Permutation importance, its labeled peer (Breiman
2001, "Random forests"), is how much the loss rises instead.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.batch import Batch
from rayrec.errors import UserError
from rayrec.methods.perturbation import divergence

_Compare = Callable[
    [Tensor, Tensor, Batch], tuple[Tensor, Tensor]
]  # logits, spoiled logits, batch: sums and counts, (T,) each


@dataclass(frozen=True)
class FeatureSelectionConfig:
    """How influence is measured."""

    spoil: Literal["shuffle", "default"] = "shuffle"
    """Either "shuffle" a feature among the rows of a batch, or set it to its "default" (missing)."""
    measure: Literal["mse", "symmetric_kl"] = "symmetric_kl"
    """Of the movement of predictions: squared difference of probabilities ("mse") or "symmetric_kl", which also feels
    movements of small probabilities."""
    seed: int = 0
    """Of the draws."""


@torch.no_grad()
def influences(model: nn.Module, batches: Iterable[Batch], config: FeatureSelectionConfig) -> Tensor:
    """(F, T) float64 mean movement of the predictions of each task when a feature is spoiled. Labels are not looked at.

    model: in evaluation mode, batches to logits (B, T). F: dense features, then categorical ones, then sequences.
    Raises ValueError when there is no row.
    """

    def moved(logits: Tensor, spoiled: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return divergence(config.measure, logits, spoiled).sum(0), logits.new_full(
            (logits.shape[1],), float(len(batch))
        )

    return _means(model, batches, config, moved)


@torch.no_grad()
def permutation_importances(model: nn.Module, batches: Iterable[Batch], config: FeatureSelectionConfig) -> Tensor:
    """(F, T) float64 mean rise of the cross-entropy on observed labels when a feature is spoiled; NaN for a task without any."""

    def risen(logits: Tensor, spoiled: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        observed = ~batch.labels.isnan()
        labels = batch.labels.nan_to_num(0.0)
        before, after = (binary_cross_entropy_with_logits(z, labels, reduction="none") for z in (logits, spoiled))
        return ((after - before) * observed).sum(0), observed.sum(0).float()

    return _means(model, batches, config, risen)


def spoiled_batch(batch: Batch, feature: int, config: FeatureSelectionConfig, generator: torch.Generator) -> Batch:
    """``batch`` with feature number ``feature`` (order as in ``influences``) shuffled among its rows or set to missing."""
    order = None
    if config.spoil == "shuffle":
        order = torch.randperm(len(batch), generator=generator).to(batch.categorical.device)
    dense, categorical = batch.dense.shape[1], batch.categorical.shape[1]
    if feature < dense:
        column = torch.nan if order is None else batch.dense[order, feature]
        return replace(batch, dense=_with_column(batch.dense, feature, column))
    feature -= dense
    if feature < categorical:
        ids = 0 if order is None else batch.categorical[order, feature]
        return replace(batch, categorical=_with_column(batch.categorical, feature, ids))
    feature -= categorical
    sequences = list(batch.sequences)
    sequences[feature] = torch.zeros_like(sequences[feature]) if order is None else sequences[feature][order]
    return replace(batch, sequences=tuple(sequences))


def keep_most_influential(
    influence: Mapping[str, float],
    *,
    budget: float,
    costs: Mapping[str, float] | None = None,
    always: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names to keep, most influential first, within ``budget``: a number of features, or a total of ``costs`` (one each, > 0).

    always: kept whatever they cost. With costs, influence per cost decides. Raises ValueError when these alone exceed the budget.
    """
    price = {name: 1.0 if costs is None else costs[name] for name in influence}
    if min(price.values(), default=1.0) <= 0:
        raise UserError("costs must be above 0")
    unknown = sorted(set(always) - set(influence))
    if unknown:
        raise UserError(f"always names no feature: {', '.join(unknown)}")
    spent = sum(price[name] for name in always)
    if spent > budget:
        raise UserError(f"the features that are always kept cost {spent:g}, more than the budget of {budget:g}")
    kept = set(always)
    for name in sorted(influence, key=lambda name: influence[name] / price[name], reverse=True):
        if name not in kept and spent + price[name] <= budget:
            kept.add(name)
            spent += price[name]
    return tuple(sorted(kept, key=lambda name: influence[name], reverse=True))


def _with_column(matrix: Tensor, place: int, column: Tensor | float) -> Tensor:
    changed = matrix.clone()
    changed[:, place] = column
    return changed


def _means(model: nn.Module, batches: Iterable[Batch], config: FeatureSelectionConfig, compare: _Compare) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed)
    sums: Tensor | None = None
    counts: Tensor | None = None
    for batch in batches:
        features = batch.dense.shape[1] + batch.categorical.shape[1] + len(batch.sequences)
        logits: Tensor = model(batch)
        parts = [compare(logits, model(spoiled_batch(batch, f, config, generator)), batch) for f in range(features)]
        added = torch.stack([part[0].double() for part in parts])  # (F, T)
        number = torch.stack([part[1].double() for part in parts])
        sums = added if sums is None else sums + added
        counts = number if counts is None else counts + number
    if sums is None or counts is None:
        raise UserError("no rows to select features on")
    return sums / counts
