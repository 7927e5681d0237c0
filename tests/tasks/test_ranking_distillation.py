"""UKDSL inside the ranking task: where each term lands, on which head, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.batch import Batch
from rayrec.data.log import Log
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.methods.means import masked_cross_entropy
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.typed_json import ConfigError

SMALL = RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,))


def batch_of(folder: Path, rows: int = 64, *, seed: int = 0) -> Batch:
    config = StreamConfig(batch_size=rows, seed=seed)
    with LogStream(Log.open(folder), "valid", config, epochs=1) as stream:
        batch = next(stream.epoch_batches())
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.rand(rows, generator=generator, dtype=torch.float64) for name in ("teacher_click", "teacher_buy")
    }
    return replace(batch, extras=scores)


@pytest.fixture
def labeled(small_log: Path) -> Batch:
    return batch_of(small_log)


@pytest.fixture
def unlabeled(small_log: Path) -> Batch:
    batch = batch_of(small_log, 128, seed=1)
    return replace(batch, labels=torch.full_like(batch.labels, torch.nan))


def task_of(folder: Path, distillation: DistillationConfig | None, **methods) -> RankingTask:
    return RankingTask(Log.open(folder).schema, RankingConfig(architecture=SMALL, distillation=distillation, **methods))


def soft(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    targets = torch.stack([batch.extras["teacher_click"], batch.extras["teacher_buy"]], dim=1).float()
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(0)


def test_the_shared_head_adds_both_terms_to_the_losses_of_the_tasks(small_log, labeled, unlabeled) -> None:
    task = task_of(small_log, DistillationConfig(labeled_weight=0.5, unlabeled_weight=2.0), task_weights={"buy": 0.25})
    model = task.build().eval()
    total = task.loss(model, labeled, unlabeled).total
    terms = masked_cross_entropy(model(labeled), labeled.labels)
    terms = terms + 0.5 * soft(model(labeled), labeled) + 2.0 * soft(model(unlabeled), unlabeled)
    torch.testing.assert_close(total, terms[0] + 0.25 * terms[1])


def test_the_auxiliary_head_alone_learns_from_the_teacher(small_log, labeled, unlabeled) -> None:
    task = task_of(small_log, DistillationConfig(labeled_weight=0.5, unlabeled_weight=2.0, head="auxiliary"))
    assert task.heads == ("click", "buy", "click_teacher", "buy_teacher")
    model = task.build().eval()
    assert model(labeled).shape == (64, 2)
    outputs = [model.heads(model.represent(batch)) for batch in (labeled, unlabeled)]
    distilled = 0.5 * soft(outputs[0][:, 2:], labeled) + 2.0 * soft(outputs[1][:, 2:], unlabeled)
    loss = task.loss(model, labeled, unlabeled)
    torch.testing.assert_close(loss.total, masked_cross_entropy(model(labeled), labeled.labels).sum() + distilled.sum())
    assert "distillation_unlabeled/click_teacher" in loss.parts
    plain = task_of(small_log, None)
    main_only = torch.autograd.grad(plain.loss(model, labeled).total, list(model.towers.parameters()))
    both = torch.autograd.grad(loss.total, list(model.towers.parameters()))
    for alone, joint in zip(main_only, both, strict=True):  # (heads, ...): the teacher moves no main tower
        torch.testing.assert_close(joint[:2], alone[:2])
        assert alone[2:].count_nonzero() == 0
        assert joint[2:].count_nonzero() > 0


@pytest.mark.parametrize("head", ["shared", "auxiliary"])
def test_without_unlabeled_rows_and_labeled_weight_the_loss_is_plain(small_log, labeled, head) -> None:
    task = task_of(small_log, DistillationConfig(head=head))
    model = task.build().eval()
    torch.testing.assert_close(
        task.loss(model, labeled).total, masked_cross_entropy(model(labeled), labeled.labels).sum(), rtol=0, atol=0
    )


def test_some_tasks_only_can_be_distilled(small_log, labeled, unlabeled) -> None:
    task = task_of(small_log, DistillationConfig(tasks=("buy",), columns={"buy": "teacher_click"}))
    assert task.unlabeled_extras() == ("teacher_click",)
    assert task.labeled_extras() == ()
    model = task.build().eval()
    parts = task.loss(model, labeled, unlabeled).parts
    assert parts["distillation_unlabeled/click"] == 0
    expected = binary_cross_entropy_with_logits(model(unlabeled)[:, 1], unlabeled.extras["teacher_click"].float())
    torch.testing.assert_close(parts["distillation_unlabeled/buy"], expected.detach())


def test_negatives_touch_only_tasks_that_hang_on_no_other(small_log, labeled, unlabeled) -> None:
    task = task_of(small_log, DistillationConfig(target="negative"))
    assert task.distillation is not None
    assert (task.distillation.distilled, task.unlabeled_extras()) == (("click",), ())
    model = task.build().eval()
    loss = task.loss(model, labeled, replace(unlabeled, extras={}))
    expected = -torch.nn.functional.logsigmoid(-model(unlabeled)[:, 0]).mean()
    torch.testing.assert_close(loss.parts["distillation_unlabeled/click"], expected.detach())


def test_inverse_propensities_weigh_labeled_rows(small_log, labeled) -> None:
    task = task_of(small_log, None, inverse_propensity=InversePropensity("teacher_click", floor=0.2))
    assert task.labeled_extras() == ("teacher_click",)
    model = task.build().eval()
    weights = 1 / labeled.extras["teacher_click"].clamp_min(0.2).float()
    expected = masked_cross_entropy(model(labeled), labeled.labels, weights).sum()
    torch.testing.assert_close(task.loss(model, labeled).total, expected)


@pytest.mark.parametrize("row_fraction", [1.0, 0.5])
def test_scr_on_unlabeled_rows_and_distillation_share_the_rows_they_predict(
    small_log, labeled, unlabeled, row_fraction, monkeypatch
) -> None:
    perturbation = PerturbationConfig("scr", 1.0, unlabeled=True, row_fraction=row_fraction)
    task = task_of(small_log, DistillationConfig(), perturbation=perturbation)
    model = task.build().eval()
    rows: list[int] = []
    represent = model.represent_embedded
    monkeypatch.setattr(model, "represent_embedded", lambda x: rows.append(len(x)) or represent(x))
    loss = task.loss(model, labeled, unlabeled)
    assert sum(rows) == (64 + 64 + 128 + 128 if row_fraction == 1.0 else 64 + 32 + 64 + 64 + 128)
    torch.testing.assert_close(
        loss.parts["distillation_unlabeled/click"], soft(model(unlabeled), unlabeled)[0].detach()
    )


@pytest.mark.parametrize("head", ["shared", "auxiliary"])
def test_ukdsl_lspr_and_multibalance_balance_every_head(small_log, labeled, unlabeled, head) -> None:
    task = task_of(
        small_log,
        DistillationConfig(labeled_weight=0.5, head=head),
        perturbation=PerturbationConfig("lspr", 0.3),
        balancing=Multibalance(),
    )
    loss = task.loss(task.build(), labeled, unlabeled)
    loss.total.backward()
    assert task.balancer is not None
    weights = task.balancer.weights
    assert len(weights) == len(task.heads) == (4 if head == "auxiliary" else 2)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert {f"balance/{name}" for name in task.heads} <= set(task.loss(task.build(), labeled, unlabeled).parts)


def test_missing_scores_and_unknown_tasks_are_refused_by_name(small_log, labeled, unlabeled) -> None:
    task = task_of(small_log, DistillationConfig())
    with pytest.raises(ConfigError, match="teacher_buy"):
        task.loss(
            task.build(), labeled, replace(unlabeled, extras={"teacher_click": unlabeled.extras["teacher_click"]})
        )
    with pytest.raises(ConfigError, match="clicks"):
        task_of(small_log, DistillationConfig(tasks=("clicks",)))


@pytest.mark.parametrize("score", [-0.1, 1.5])
def test_a_score_that_is_no_probability_is_refused_with_its_column(small_log, labeled, unlabeled, score) -> None:
    task = task_of(small_log, DistillationConfig())
    unlabeled.extras["teacher_buy"][3] = score
    with pytest.raises(ConfigError, match=rf"column 'teacher_buy': .* in \[0, 1\], found {score}"):
        task.loss(task.build(), labeled, unlabeled)


@pytest.mark.parametrize(("value", "found"), [(0.0, "0"), (1.25, "1.25"), (torch.nan, "a missing one")])
def test_a_propensity_that_is_none_is_refused_with_its_column(small_log, labeled, value, found) -> None:
    task = task_of(small_log, None, inverse_propensity=InversePropensity("teacher_click"))
    labeled.extras["teacher_click"][3] = value
    with pytest.raises(ConfigError, match=rf"column 'teacher_click': .* in \(0, 1\], found {found}$"):
        task.loss(task.build(), labeled)


def test_only_a_column_of_scores_is_said_to_be_a_teachers(small_log) -> None:
    distilled = RankingConfig(distillation=DistillationConfig(labeled_weight=1.0, tasks=("click",)))
    with pytest.raises(ConfigError, match=r"no column teacher_click .*scores \(teacher_click\) with .*score_log"):
        RankerExperiment(log=small_log, ranking=distilled).check()
    weighed = RankingConfig(inverse_propensity=InversePropensity())
    with pytest.raises(ConfigError, match=r"no column propensity \(extras of its schema: none\)$"):
        RankerExperiment(log=small_log, ranking=weighed).check()
