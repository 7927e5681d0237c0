"""Distillation terms against their written-out forms, and propensity weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.methods.distillation import DistillationConfig, distillation_terms, teacher_column
from rayrec.methods.inverse_propensity import InversePropensity

LOGITS = torch.tensor([[0.3, -1.2], [2.0, 0.0], [-0.7, 1.5]])
TEACHER = torch.tensor([[0.7, 0.1], [0.9, float("nan")], [0.2, 0.5]])


def mean_loss(config: DistillationConfig, logits: Tensor, teacher: Tensor) -> Tensor:
    losses, counts = distillation_terms(config, logits, teacher)
    return losses.sum(0) / counts.sum(0)


def test_cross_entropy_is_to_the_soft_label_and_least_at_the_teachers_logit() -> None:
    losses, _ = distillation_terms(DistillationConfig(), LOGITS, TEACHER)
    torch.testing.assert_close(
        losses[:, 0], binary_cross_entropy_with_logits(LOGITS[:, 0], TEACHER[:, 0], reduction="none")
    )
    logits = torch.logit(TEACHER[:, :1]).requires_grad_()
    mean_loss(DistillationConfig(), logits, TEACHER[:, :1]).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-7, rtol=0)


def test_a_row_without_a_score_has_neither_loss_nor_count_nor_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    losses, counts = distillation_terms(DistillationConfig(), logits, TEACHER)
    assert losses[1, 1] == 0
    assert counts.tolist() == [[1, 1], [1, 0], [1, 1]]
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[1, 1] == 0
    assert (logits.grad[[0, 2]] != 0).all()


def test_squared_logits_are_half_the_squared_difference() -> None:
    losses, _ = distillation_terms(DistillationConfig(loss="squared_logit"), LOGITS, TEACHER)
    expected = 0.5 * (LOGITS[0, 0] - math.log(0.7 / 0.3)) ** 2
    torch.testing.assert_close(losses[0, 0], expected)
    edge, _ = distillation_terms(DistillationConfig(loss="squared_logit"), LOGITS[:1], torch.tensor([[0.0, 1.0]]))
    assert edge.isfinite().all()
    warm, _ = distillation_terms(DistillationConfig(loss="squared_logit", temperature=3.0), LOGITS, TEACHER)
    torch.testing.assert_close(warm[0, 0], expected)  # T^2 times the squared difference of both sides over T


def test_temperature_softens_both_sides_and_keeps_the_size_of_gradients() -> None:
    config = DistillationConfig(temperature=3.0)
    losses, _ = distillation_terms(config, LOGITS[:, :1], TEACHER[:, :1])
    softened = torch.sigmoid(torch.logit(TEACHER[:, :1]) / 3)
    torch.testing.assert_close(
        losses, 9 * binary_cross_entropy_with_logits(LOGITS[:, :1] / 3, softened, reduction="none")
    )
    gradients = []
    for temperature in (20.0, 200.0):  # in the limit: T^2 * (z - v) / T / 4 / T, whatever T
        logits = LOGITS[:, :1].clone().requires_grad_()
        distillation_terms(DistillationConfig(temperature=temperature), logits, TEACHER[:, :1])[0].sum().backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=1e-3)


def test_confidence_multiplies_a_rows_loss_by_its_distance_from_one_half() -> None:
    plain, _ = distillation_terms(DistillationConfig(), LOGITS, TEACHER)
    losses, counts = distillation_terms(DistillationConfig(confidence=2.0), LOGITS, TEACHER)
    torch.testing.assert_close(losses[0, 1], plain[0, 1] * 0.8**2)
    assert losses[2, 1] == 0  # p = 0.5 says nothing
    assert counts[2, 1] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unlabeled_weight": -1.0}, "unlabeled_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"target": "negative", "labeled_weight": 1.0}, "target negative"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationConfig(**fields)


def test_distillation_acts_when_some_row_gets_a_term() -> None:
    assert DistillationConfig(labeled_weight=0.5, unlabeled_weight=0.0).acts(0.0)
    assert DistillationConfig(labeled_weight=0.0, unlabeled_weight=0.5).acts(0.5)
    assert not DistillationConfig(labeled_weight=0.0, unlabeled_weight=0.5).acts(0.0)
    assert not DistillationConfig(labeled_weight=0.0, unlabeled_weight=0.0).acts(0.5)


def test_columns_are_named_after_tasks_unless_told_otherwise() -> None:
    config = DistillationConfig(columns={"click": "big_model"})
    assert (config.column("click"), config.column("buy")) == ("big_model", teacher_column("buy"))


def test_inverse_propensities_are_floored_and_checked() -> None:
    weighing = InversePropensity(floor=0.1)
    assert weighing.weights(torch.tensor([0.5, 0.01, 1.0], dtype=torch.float64)).tolist() == [2.0, 10.0, 1.0]
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="'propensity'"):
            weighing.weights(torch.tensor([0.5, wrong]))
    assert InversePropensity(floor=1.0).weights(torch.tensor([0.5, 1.0])).tolist() == [1.0, 1.0]
    for floor in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"floor must lie in \(0, 1\]"):
            InversePropensity(floor=floor)
