"""Calibration against scikit-learn, and what it must not change."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from rayrec.methods.calibration import fit_isotonic, fit_platt
from rayrec.typed_json import ConfigError


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


def drawn(slope: float, spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of that standard deviation, labels of probability sigmoid(slope * logit - 1) and weights, some of them 0."""
    generator = torch.Generator().manual_seed(5)
    logits = spread * torch.randn(4_000, generator=generator)
    labels = (torch.rand(4_000, generator=generator) < torch.sigmoid(slope * logits - 1)).float()
    return logits, labels, torch.randint(0, 4, (4_000,), generator=generator).float()


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("spread", [2.0, 4.0, 10.0, 1000.0])
@pytest.mark.parametrize("slope", [-0.3, 0.1, 0.3, 0.5, 0.7])
def test_platt_scaling_finds_the_maximum_for_a_model_that_is_too_sure(
    slope: float, spread: float, weighed: bool
) -> None:
    logits, labels, weights = drawn(slope * min(1.0, 10.0 / spread), spread)
    fitted = fit_platt(logits, labels, weights if weighed else None)
    x, y = logits.double().numpy(), labels.double().numpy()
    w = weights.double().numpy() if weighed else np.ones_like(x)

    def loss(theta: np.ndarray) -> float:
        return float(
            np.sum(w * (np.logaddexp(0, theta[0] * x / spread + theta[1]) - y * (theta[0] * x / spread + theta[1])))
        )

    reference = minimize(
        loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9, "maxiter": 10_000}
    ).x
    assert fitted.slope * spread == pytest.approx(reference[0], rel=1e-4)
    assert fitted.intercept == pytest.approx(reference[1], rel=1e-4)


def test_labels_that_are_all_but_separated_still_have_a_slope_and_separated_ones_are_refused() -> None:
    logits = torch.linspace(-1, 1, 2_000)
    labels = (logits > 0).float()
    for fit_labels in (labels, 1 - labels):
        with pytest.raises(ConfigError, match="separates the labels"):
            fit_platt(logits, fit_labels)
    labels[[999, 1000]] = labels[[1000, 999]]
    fitted = fit_platt(logits, labels)
    residual = fitted(logits.double()) - labels
    assert fitted.slope > 500
    assert float((residual * logits).sum().abs()) < 1e-6
    assert float(residual.sum().abs()) < 1e-6


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_rows_of_weight_0_are_as_if_they_were_not_there(fit) -> None:
    logits, labels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    kept = [0, 1, 3, 4]
    assert fit(logits, labels, torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])) == fit(logits[kept], labels[kept])


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_logits_that_are_not_finite_are_refused(fit) -> None:
    with pytest.raises(ConfigError, match="finite logits"):
        fit(torch.tensor([0.0, float("nan"), 1.0]), torch.tensor([0.0, 1.0, 1.0]))
