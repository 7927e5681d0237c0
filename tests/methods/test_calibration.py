"""Calibration against scikit-learn, and what it must not change."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from rayrec.methods.calibration import fit_isotonic, fit_platt


def sample(rows: int = 3_000, *, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(rows, generator=generator)
    if ties:
        logits = (logits * 5).round() / 5
    labels = (torch.rand(rows, generator=generator) < torch.sigmoid(0.5 * logits - 1)).float()
    return logits, labels, torch.rand(rows, generator=generator) + 0.5


def test_platt_scaling_matches_unpenalized_logistic_regression_and_finds_the_truth() -> None:
    logits, labels, weights = sample()
    fitted = fit_platt(logits, labels, weights)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None].numpy(), labels.numpy(), weights.numpy())
    assert fitted.slope == pytest.approx(float(reference.coef_[0, 0]), rel=1e-4)
    assert fitted.intercept == pytest.approx(float(reference.intercept_[0]), rel=1e-4)
    assert fitted.slope == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("ties", [False, True])
def test_isotonic_calibration_matches_scikit_learn(ties: bool) -> None:
    logits, labels, weights = sample(ties=ties)
    fitted = fit_isotonic(logits, labels, weights)
    reference = IsotonicRegression(out_of_bounds="clip").fit(logits.double().numpy(), labels.numpy(), weights.numpy())
    points = torch.linspace(-9, 9, 1001)
    np.testing.assert_allclose(fitted(points).numpy(), reference.predict(points.double().numpy()), atol=1e-5)
    assert (fitted(points).diff() >= 0).all()


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_calibrated_scores_average_to_the_observed_rate(fit) -> None:
    logits, labels, _ = sample()
    assert float(fit(logits, labels)(logits).mean()) == pytest.approx(float(labels.mean()), abs=1e-4)


def test_one_class_is_refused_and_a_constant_score_becomes_the_base_rate() -> None:
    logits, labels, _ = sample()
    with pytest.raises(ValueError, match="both labels"):
        fit_platt(logits, torch.zeros_like(labels))
    constant = fit_platt(torch.ones(4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert float(constant(torch.ones(1))) == pytest.approx(0.25)
