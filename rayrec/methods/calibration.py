"""Calibration of a trained model's logits on labeled rows: Platt scaling and isotonic regression.

Platt 1999, "Probabilistic outputs for support vector machines"; Zadrozny & Elkan 2002, "Transforming classifier scores into
accurate multiclass probability estimates" (pool adjacent violators).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from rayrec.typed_json import ConfigError

_NEWTON_STEPS = 100


@dataclass(frozen=True)
class PlattScaling:
    """Probability = sigmoid(slope * logit + intercept)."""

    slope: float
    intercept: float
    kind: Literal["platt"] = "platt"

    def __call__(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * logits + self.intercept)


@dataclass(frozen=True)
class IsotonicCalibration:
    """Probability = a non-decreasing function of the logit: linear between knots (rising ``logits``), constant beyond them."""

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    kind: Literal["isotonic"] = "isotonic"

    def __call__(self, logits: Tensor) -> Tensor:
        at = np.interp(logits.double().cpu().numpy(), self.logits, self.probabilities)
        return torch.from_numpy(at).to(logits.device, torch.float32)


def fit_platt(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> PlattScaling:
    """Maximum likelihood by damped Newton steps. logits, labels in {0, 1}, weights >= 0: (n,).

    Rows of weight 0 are left out. Raises ConfigError when the others have labels of one class only or a logit that is not
    finite, and where there is no maximum: a threshold of the logits separates the classes.
    """
    logits, labels, weights = _checked(logits, labels, weights)
    rate = float((weights * labels).sum() / weights.sum())
    theta = torch.tensor([0.0, math.log(rate / (1 - rate))], dtype=torch.float64)
    if bool((logits == logits[0]).all()):  # nothing to scale: the base rate
        return PlattScaling(0.0, float(theta[1]))
    negative, positive = logits[labels == 0], logits[labels == 1]
    if negative.max() <= positive.min() or positive.max() <= negative.min():
        raise ConfigError(
            "Platt scaling has no finite slope: a threshold separates the labels; use isotonic, or more rows"
        )
    centre, spread = logits.mean(), logits.std()  # small differences of large logits would make the system singular
    inputs = torch.stack([(logits - centre) / spread, torch.ones_like(logits)], dim=1)  # (n, 2)

    def cost(at: Tensor) -> float:
        z = inputs @ at
        return float(weights @ (softplus(z) - labels * z))

    now, total = cost(theta), float(weights.sum())
    for _ in range(_NEWTON_STEPS):
        probabilities = torch.sigmoid(inputs @ theta)
        gradient = inputs.T @ (weights * (probabilities - labels))
        curvature = weights * probabilities * (1 - probabilities)
        step = torch.linalg.solve(inputs.T @ (inputs * curvature.unsqueeze(1)), gradient)
        while (then := cost(theta - step)) > now * (1 + 1e-12):  # it goes downhill, but may overshoot
            step = step / 2
        theta, now = theta - step, then
        if float(gradient @ step) <= 1e-20 * total:  # at most what the step gained, twice
            slope = theta[0] / spread
            return PlattScaling(float(slope), float(theta[1] - slope * centre))
    raise ConfigError(f"Platt scaling has not converged in {_NEWTON_STEPS} Newton steps; use isotonic")


def fit_isotonic(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> IsotonicCalibration:
    """Weighted least squares among non-decreasing functions. Same arguments as ``fit_platt``, and ConfigError for the same
    labels and logits."""
    logits, labels, weights = _checked(logits, labels, weights)
    points, index = torch.unique(logits, return_inverse=True)  # ties share one value
    mass = torch.zeros_like(points).index_add_(0, index, weights)
    means = torch.zeros_like(points).index_add_(0, index, weights * labels) / mass
    first, last, values = _pool_adjacent_violators(means.tolist(), mass.tolist())
    edges = [edge for block in zip(first, last, strict=True) for edge in block]
    knots = [points[edge].item() for edge in edges]
    heights = [value for value in values for _ in range(2)]
    kept = [i for i in range(len(edges)) if i == 0 or edges[i] != edges[i - 1]]
    return IsotonicCalibration(tuple(knots[i] for i in kept), tuple(heights[i] for i in kept))


Calibration = PlattScaling | IsotonicCalibration


def _checked(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """In float64 on the CPU, without the rows of weight 0."""
    logits, labels = logits.detach().double().cpu(), labels.double().cpu()
    weights = torch.ones_like(labels) if weights is None else weights.double().cpu()
    logits, labels, weights = (values[weights != 0] for values in (logits, labels, weights))
    positive, total = float((weights * labels).sum()), float(weights.sum())
    if not 0 < positive < total:
        raise ConfigError(f"calibration needs both labels: {positive:g} of {total:g} rows are positive")
    if not bool(logits.isfinite().all()):
        raise ConfigError("calibration needs finite logits: the model has predicted NaN or infinity")
    return logits, labels, weights


def _pool_adjacent_violators(means: list[float], mass: list[float]) -> tuple[list[int], list[int], list[float]]:
    """First and last point and the value of each block of the non-decreasing least squares fit."""
    first: list[int] = []
    values: list[float] = []
    masses: list[float] = []
    for i, (value, weight) in enumerate(zip(means, mass, strict=True)):
        start = i
        while values and values[-1] >= value:
            start, before, joined = first.pop(), values.pop(), masses.pop()
            value = (before * joined + value * weight) / (joined + weight)
            weight += joined
        first.append(start)
        values.append(value)
        masses.append(weight)
    last = [start - 1 for start in first[1:]] + [len(means) - 1]
    return first, last, values
