"""What each method adds to the losses, and the gradient of every logit, against formulas written out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrec.batch import Batch
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.methods.means import observed_weights
from rayrec.methods.method import MethodConfig, Rows, Sizes, Tasks
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.typed_json import ConfigError

ROWS, MORE, TASKS = 8, 6, 2


class Numbers:
    """A model whose embedded row is the row's number."""

    embedding_dim = 1
    embedding_columns = number_columns = slice(0, 0)
    dense_columns = slice(0, 1)

    def __init__(self) -> None:
        self.lookups = 0

    def embed(self, batch: Batch) -> Tensor:
        self.lookups += 1
        return batch.dense

    def moved_numbers(self, dense: Tensor, noise: Tensor) -> Tensor:
        return noise[:, :0]


def batch_of(rows: int, *, weighted: bool, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (rows, TASKS), generator=generator).float()
    labels[0, 0] = torch.nan
    weights = torch.rand(rows, generator=generator) + 0.1 if weighted else None
    scores = {name: torch.rand(rows, generator=generator) for name in ("teacher_a", "teacher_b")}
    dense = torch.arange(rows).float().view(-1, 1)
    return Batch(dense, torch.zeros(rows, 0, dtype=torch.int64), labels, (), weights, scores)


@dataclass
class Played:
    """One step of a method alone, with random logits for every block; heads: how many."""

    blocks: list[Tensor]
    logits: list[Tensor]
    losses: Tensor
    named: Mapping[str, Tensor]
    before: Tensor

    def gradient(self, block: int, weights: Sequence[float]) -> Tensor:
        """Of sum_h weights[h] * losses[h] with respect to a block's logits."""
        (found,) = torch.autograd.grad(
            self.losses @ torch.tensor(weights), self.logits[block], retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(self.logits[block]) if found is None else found


def play(config: MethodConfig, batch: Batch, unlabeled: Batch | None = None) -> Played:
    method = config.method(Tasks(("a", "b"), ("a",), TASKS))
    assert method is not None
    rows = Rows(Numbers())
    rows.whole(batch)
    sizes = Sizes(observed_weights(batch.labels, batch.weights).sum(0), method.sizes(batch, unlabeled))
    assert len(sizes.own) == method.num_sizes
    term = method.term(rows, batch, unlabeled, sizes)
    assert term is not None
    generator = torch.Generator().manual_seed(5)
    heads = TASKS + len(method.own_heads)
    logits = [torch.randn(len(x), heads, generator=generator).requires_grad_() for x in rows.blocks]
    before = torch.rand(heads, generator=generator)
    losses, named = term(before, logits)
    return Played(rows.blocks, logits, losses, named, before)


def of_rows(x: Tensor) -> Tensor:
    """Which rows a noiseless copy holds: their numbers are their places."""
    return x[:, 0].round().long()


BARELY: dict[str, Any] = {"dense_noise": 1e-6, "embedding_noise": 0.0}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("row_fraction", [1.0, 0.99, 0.5])  # .99 of 8 rows: all of them, in another order
@pytest.mark.parametrize("kind", ["mse", "symmetric_kl"])
@pytest.mark.parametrize("unlabeled", [False, True])
def test_scr_pulls_both_predictions_of_a_row_together_by_its_weight(
    weighted: bool, row_fraction: float, kind: Any, unlabeled: bool
) -> None:
    strength = 1.5
    config = PerturbationConfig(
        "scr", strength, divergence=kind, row_fraction=row_fraction, unlabeled=unlabeled, **BARELY
    )
    batch, more = batch_of(ROWS, weighted=weighted), batch_of(MORE, weighted=weighted, seed=1)
    played = play(config, batch, more if unlabeled else None)
    chosen = of_rows(played.blocks[1])
    pairs = [(0, chosen, 1, batch, chosen)]
    if unlabeled:
        of_more = of_rows(played.blocks[3])
        pairs.append((2, torch.arange(len(of_more)), 3, more, of_more))
    total = sum(float(len(b) if b.weights is None else b.weights.sum()) for *_, b, _ in pairs)  # of all rows
    mean = torch.zeros(TASKS)
    for clean, at, copies, source, rows in pairs:
        z, other = played.logits[clean].detach()[at], played.logits[copies].detach()
        p, q = z.sigmoid(), other.sigmoid()
        weight = (torch.ones(len(rows)) if source.weights is None else source.weights[rows]).unsqueeze(1) / total
        weight = weight * len(source) / len(rows)  # a copy stands for so many
        if kind == "mse":
            value, at_z, at_other = (p - q) ** 2, 2 * (p - q) * p * (1 - p), -2 * (p - q) * q * (1 - q)
        else:
            value = 0.5 * (p - q) * (z - other)
            at_z = 0.5 * (p * (1 - p) * (z - other) + p - q)
            at_other = -0.5 * (q * (1 - q) * (z - other) + p - q)
        mean = mean + (weight * value).sum(0)
        head_weights = torch.tensor([1.0, 3.0])
        expected = torch.zeros_like(played.logits[clean]).index_add(0, at, strength * weight * at_z * head_weights)
        torch.testing.assert_close(played.gradient(clean, [1.0, 3.0]), expected)
        torch.testing.assert_close(played.gradient(copies, [1.0, 3.0]), strength * weight * at_other * head_weights)
    torch.testing.assert_close(played.named["perturbed"].detach(), mean)
    torch.testing.assert_close(played.losses.detach(), played.before + strength * mean)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", ["balanced", "additive"])
@pytest.mark.parametrize("row_fraction", [1.0, 0.5])
def test_lspr_pulls_the_perturbed_prediction_to_the_label(weighted: bool, form: Any, row_fraction: float) -> None:
    strength = 0.4
    batch = batch_of(ROWS, weighted=weighted)
    played = play(PerturbationConfig("lspr", strength, form, row_fraction=row_fraction, **BARELY), batch)
    rows = of_rows(played.blocks[1])
    labels = batch.labels[rows]
    weights = (torch.ones(len(rows)) if batch.weights is None else batch.weights[rows]).unsqueeze(1)
    weights = torch.where(labels.isnan(), 0.0, weights) * ROWS / len(rows)  # a copy stands for so many
    everywhere = torch.ones(ROWS, 1) if batch.weights is None else batch.weights.unsqueeze(1)
    size = torch.where(batch.labels.isnan(), 0.0, everywhere).sum(0)
    z = played.logits[1].detach()
    slope = strength * weights * (z.sigmoid() - labels.nan_to_num(0.0)) / size
    torch.testing.assert_close(played.gradient(1, [1.0, 1.0]), slope)
    assert played.gradient(0, [1.0, 1.0]).count_nonzero() == 0
    entropies = torch.nn.functional.softplus(z) - labels.nan_to_num(0.0) * z
    perturbed = (weights * entropies).sum(0) / size
    kept = 1 - strength if form == "balanced" else 1.0
    torch.testing.assert_close(played.losses.detach(), kept * played.before + strength * perturbed)


@pytest.mark.parametrize("head", ["shared", "auxiliary"])
@pytest.mark.parametrize("weighted", [False, True])
def test_distillation_pulls_the_head_that_learns_to_the_teachers_probability(head: Any, weighted: bool) -> None:
    batch, more = batch_of(ROWS, weighted=weighted), batch_of(MORE, weighted=weighted, seed=1)
    config = DistillationConfig(0.5, 2.0, tasks=("b",), head=head)
    played = play(config, batch, more)
    place = 1 if head == "shared" else 2
    assert [len(block) for block in played.blocks] == [ROWS, MORE]
    added = torch.zeros_like(played.before)
    for block, source, factor in ((0, batch, 0.5), (1, more, 2.0)):
        z, p = played.logits[block].detach()[:, place], source.extras["teacher_b"]
        weights = torch.ones(len(source)) if source.weights is None else source.weights
        expected = torch.zeros_like(played.logits[block])
        expected[:, place] = factor * weights * (z.sigmoid() - p) / weights.sum()
        torch.testing.assert_close(played.gradient(block, [1.0] * len(played.before)), expected)
        added[place] += factor * ((weights * (torch.nn.functional.softplus(z) - p * z)).sum() / weights.sum())
    torch.testing.assert_close(played.losses.detach(), played.before + added)


def test_methods_that_ask_for_the_same_rows_look_them_up_and_predict_them_once() -> None:
    model, batch, more = Numbers(), batch_of(ROWS, weighted=False), batch_of(MORE, weighted=False, seed=1)
    rows = Rows(model)
    rows.whole(batch)
    for config in (PerturbationConfig("scr", 1.0, unlabeled=True, **BARELY), DistillationConfig(0.5, 1.0)):
        method = config.method(Tasks(("a", "b"), ("a", "b"), TASKS))
        assert method is not None
        method.term(rows, batch, more, Sizes(torch.ones(TASKS), method.sizes(batch, more)))
    assert [len(block) for block in rows.blocks] == [ROWS, ROWS, MORE, MORE]
    assert model.lookups == 2


def test_scr_on_unlabeled_rows_asks_for_them() -> None:
    with pytest.raises(ValueError, match="unlabeled log"):
        play(PerturbationConfig("scr", 1.0, unlabeled=True), batch_of(ROWS, weighted=False))


def test_strength_0_is_no_method() -> None:
    assert PerturbationConfig(strength=0.0).method(Tasks(("a",), ("a",), 1)) is None


def test_propensities_multiply_the_weights_that_rows_have() -> None:
    weighing = InversePropensity("teacher_a", floor=0.5).method(Tasks(("a", "b"), ("a", "b"), TASKS))
    for weighted in (False, True):
        batch = batch_of(ROWS, weighted=weighted)
        expected = 1 / batch.extras["teacher_a"].clamp_min(0.5)
        if batch.weights is not None:
            expected = expected * batch.weights
        got = weighing.weighed(batch)
        assert got.weights is not None
        torch.testing.assert_close(got.weights, expected)
        assert replace(got, weights=batch.weights) is not batch
    assert weighing.labeled_columns(taught=True) == ("teacher_a",)
    assert weighing.unlabeled_columns(taught=False) == ()


def test_columns_of_a_teacher_are_read_where_they_count_and_no_teacher_is_in_the_loop() -> None:
    tasks = Tasks(("a", "b"), ("a",), TASKS)
    both = DistillationConfig(0.5, 1.0, columns={"a": "other"}).method(tasks)
    assert both.labeled_columns(taught=False) == both.unlabeled_columns(taught=False) == ("other", "teacher_b")
    assert both.labeled_columns(taught=True) == both.unlabeled_columns(taught=True) == ()
    assert DistillationConfig(0.0, 1.0).method(tasks).labeled_columns(taught=False) == ()
    assert DistillationConfig(0.5, 0.0).method(tasks).unlabeled_columns(taught=False) == ()
    negative = DistillationConfig(0.0, 1.0, target="negative").method(tasks)
    assert (negative.distilled, negative.teacher_columns) == (("a",), ())
    with pytest.raises(ConfigError, match="names no task: c, d; tasks: a, b"):
        DistillationConfig(tasks=("d",), columns={"c": "x"}).method(tasks)
