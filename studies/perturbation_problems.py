"""SCR and LSPR on (generalized) linear models, where the truth is known: do learned weights align with the true ones?

Inputs x ~ N(0, I); perturbation x' = x + e, e ~ N(0, noise^2 I). With the squared loss both methods are, in expectation over e,
least squares plus a ridge: the closed form. With the logistic loss they part, to second order in the noise:

    LSPR: mean CE + strength / 2 * noise^2 |w|^2 * mean p (1 - p)           pulls towards labels: the curvature of the loss
    SCR:  mean CE + strength     * noise^2 |w|^2 * mean (p (1 - p))^2       pulls towards the own prediction

(arXiv 2502.18478 reports the experiment; noise as adaptive ridge: Wager, Wang and Liang 2013.) All problems of a batch are
solved at once, in float64. Since x is isotropic, how many true weights are 0 changes nothing; how rare positives are does.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_NEWTON_STEPS = 60
_HALVINGS = 12
_TOLERANCE = 1e-7  # of the gradient's length: cosines are then exact to about five digits


@dataclass(frozen=True)
class Problems:
    """S problems: inputs x (S, n, d), labels y (S, n), true weights (S, d) and intercepts (S,), all float64."""

    x: Tensor
    y: Tensor
    weights: Tensor
    intercepts: Tensor


@dataclass(frozen=True)
class LinearMethod:
    """kind "ridge": ``strength`` |w|^2. The others draw ``copies`` perturbed copies of each row, with deviation ``noise``."""

    kind: Literal["none", "ridge", "lspr", "lspr_additive", "scr"]
    strength: float = 0.0
    noise: float = 0.0
    copies: int = 1


def draw_logistic(problems: int, rows: int, features: int, *, signal: float, base_rate: float, seed: int) -> Problems:
    """Labels 1 with probability sigmoid(x . w + b), |w| = signal; b makes the mean probability ``base_rate``."""
    generator = torch.Generator().manual_seed(seed)
    x, weights = _inputs_and_weights(problems, rows, features, signal, generator)
    intercept = _intercept(signal, base_rate)
    probabilities = torch.sigmoid((x @ weights.unsqueeze(2)).squeeze(2) + intercept)
    y = (torch.rand(probabilities.shape, generator=generator, dtype=torch.float64) < probabilities).double()
    return Problems(x, y, weights, torch.full((problems,), intercept, dtype=torch.float64))


def draw_linear(problems: int, rows: int, features: int, *, label_noise: float, seed: int) -> Problems:
    """y = x . w + N(0, label_noise^2), |w| = 1."""
    generator = torch.Generator().manual_seed(seed)
    x, weights = _inputs_and_weights(problems, rows, features, 1.0, generator)
    noise = torch.randn(x.shape[:2], generator=generator, dtype=torch.float64)
    return Problems(x, (x @ weights.unsqueeze(2)).squeeze(2) + label_noise * noise, weights, torch.zeros(problems))


def draw_noise(x: Tensor, noise: float, copies: int, seed: int) -> Tensor:
    """(S, copies * n, d) of noise for the rows of x (S, n, d), repeated copy by copy."""
    generator = torch.Generator().manual_seed(seed)
    shape = (x.shape[0], copies * x.shape[1], x.shape[2])
    return noise * torch.randn(shape, generator=generator, dtype=torch.float64)


def cosine(learned: Tensor, true: Tensor) -> Tensor:
    """(S,) cosines of weights (S, d)."""
    return torch.nn.functional.cosine_similarity(learned, true, dim=1)


def ridge_penalty(method: LinearMethod) -> float:
    """The ridge that the method is, in expectation, with the squared loss: least squares (mean over rows) + penalty |w|^2."""
    expected = method.strength * method.noise**2
    match method.kind:
        case "none":
            return 0.0
        case "ridge":
            return method.strength
        case "lspr_additive":
            return expected / (1 + method.strength)
        case _:
            return expected


def ridge_weights(problems: Problems, penalty: float) -> Tensor:
    """(S, d): the minimum of mean (y - x . w)^2 + penalty |w|^2, in closed form."""
    return _least_squares(problems.x, problems.y, torch.ones_like(problems.y), penalty)


def squared_loss_weights(problems: Problems, method: LinearMethod, seed: int) -> Tensor:
    """(S, d): the minimum of the method's objective with the squared loss and the drawn copies; exact, it is quadratic."""
    if method.kind in ("none", "ridge"):
        return ridge_weights(problems, ridge_penalty(method))
    noise = draw_noise(problems.x, method.noise, method.copies, seed)
    rows = problems.x.shape[1]
    ones = torch.ones_like(problems.y)
    share = torch.full(noise.shape[:2], method.strength / method.copies, dtype=torch.float64)
    if method.kind == "scr":  # (x . w - x' . w)^2 = (e . w)^2: rows e with label 0
        x, y = torch.cat([problems.x, noise], dim=1), torch.cat([problems.y, torch.zeros_like(share)], dim=1)
        return _least_squares(x, y, torch.cat([ones, share], dim=1), 0.0, rows)
    clean = 1 - method.strength if method.kind == "lspr" else 1.0
    x = torch.cat([problems.x, problems.x.repeat(1, method.copies, 1) + noise], dim=1)
    y = problems.y.repeat(1, 1 + method.copies)
    return _least_squares(x, y, torch.cat([clean * ones, share], dim=1), 0.0, rows)


def logistic_weights(problems: Problems, method: LinearMethod, seed: int, *, ridge: float = 1e-4) -> Tensor:
    """(S, d): weights at the minimum of the method's objective with the logistic loss and the drawn copies.

    By damped Gauss-Newton steps, all problems at once; the intercept is learned and neither penalized nor returned.
    ridge: keeps the weights finite where few rows can be separated.
    A problem ends where no step lowers its objective further (SCR's is not convex).
    """
    x = _with_intercept(problems.x)
    penalty = torch.full((x.shape[2],), ridge, dtype=torch.float64)
    if method.kind == "ridge":
        penalty += method.strength
    penalty[-1] = 1e-9
    perturbed = None
    if method.kind not in ("none", "ridge"):
        noise = draw_noise(problems.x, method.noise, method.copies, seed)
        perturbed = _with_intercept(problems.x.repeat(1, method.copies, 1) + noise)
    weights = torch.zeros(x.shape[0], x.shape[2], dtype=torch.float64)
    left = torch.arange(len(weights))  # problems that still move
    for _ in range(_NEWTON_STEPS):
        now, rows, labels = weights[left], x[left], problems.y[left]
        copies = None if perturbed is None else perturbed[left]
        gradient, hessian = _slopes(now, rows, labels, copies, method, penalty)
        step = torch.linalg.solve(hessian, gradient.unsqueeze(2)).squeeze(2)
        value = _value(now, rows, labels, copies, method, penalty)
        size = torch.ones(len(left), 1, dtype=torch.float64)
        for _ in range(_HALVINGS):  # of those problems that would rise
            worse = _value(now - size * step, rows, labels, copies, method, penalty) > value
            if not worse.any():
                break
            size = torch.where(worse.unsqueeze(1), 0.5 * size, size)
        moving = ~worse & (gradient.norm(dim=1) > _TOLERANCE)
        weights[left[moving]] = (now - size * step)[moving]
        left = left[moving]
        if not len(left):
            break
    return weights[:, :-1]


def expected_extra_loss(method: LinearMethod, logits: Tensor, length: float) -> Tensor:
    """(): what the method adds to the mean cross-entropy in expectation over the noise, to second order in it.

    logits (n,) of a linear model with weights of the given length: see the module.
    """
    slope = torch.sigmoid(logits) * torch.sigmoid(-logits)
    variance = (method.noise * length) ** 2
    if method.kind == "scr":
        return method.strength * variance * slope.square().mean()
    return 0.5 * method.strength * variance * slope.mean()


def _value(
    weights: Tensor, x: Tensor, y: Tensor, perturbed: Tensor | None, method: LinearMethod, penalty: Tensor
) -> Tensor:
    """The objective (S,)."""
    value = _clean_share(method) * _cross_entropy(weights, x, y) + (penalty * weights.square()).sum(1)
    if perturbed is None:
        return value
    if method.kind == "scr":
        p, q = _probabilities(weights, x), _probabilities(weights, perturbed)
        return value + method.strength * (p.repeat(1, method.copies) - q).square().mean(1)
    return value + method.strength * _cross_entropy(weights, perturbed, y.repeat(1, method.copies))


def _slopes(
    weights: Tensor, x: Tensor, y: Tensor, perturbed: Tensor | None, method: LinearMethod, penalty: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient (S, d) and a positive definite (Gauss-Newton) Hessian (S, d, d) of the objective."""
    gradient, hessian = _cross_entropy_slopes(weights, x, y, _clean_share(method))
    gradient, hessian = gradient + 2 * penalty * weights, hessian + 2 * torch.diag(penalty)
    if perturbed is None:
        return gradient, hessian
    if method.kind != "scr":
        more = _cross_entropy_slopes(weights, perturbed, y.repeat(1, method.copies), method.strength)
        return gradient + more[0], hessian + more[1]
    x = x.repeat(1, method.copies, 1)
    p, q = _probabilities(weights, x), _probabilities(weights, perturbed)
    jacobian = (p * (1 - p)).unsqueeze(2) * x - (q * (1 - q)).unsqueeze(2) * perturbed  # (S, copies * n, d) of p - q
    factor = 2 * method.strength / x.shape[1]
    gradient = gradient + factor * ((p - q).unsqueeze(1) @ jacobian).squeeze(1)
    return gradient, hessian + factor * jacobian.mT @ jacobian


def _clean_share(method: LinearMethod) -> float:
    return 1 - method.strength if method.kind == "lspr" else 1.0


def _probabilities(weights: Tensor, x: Tensor) -> Tensor:
    return torch.sigmoid((x @ weights.unsqueeze(2)).squeeze(2))


def _cross_entropy(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    z = (x @ weights.unsqueeze(2)).squeeze(2)
    return (torch.nn.functional.softplus(z) - y * z).mean(1)


def _cross_entropy_slopes(weights: Tensor, x: Tensor, y: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    p = _probabilities(weights, x)
    factor /= x.shape[1]
    gradient = factor * ((p - y).unsqueeze(1) @ x).squeeze(1)
    return gradient, factor * x.mT @ (x * (p * (1 - p)).unsqueeze(2))


def _least_squares(x: Tensor, y: Tensor, shares: Tensor, penalty: float, rows: int | None = None) -> Tensor:
    """(S, d): minimum of sum_i shares_i (y_i - x_i . w)^2 / rows + penalty |w|^2."""
    rows = rows or x.shape[1]
    weighted = x * shares.unsqueeze(2)
    matrix = weighted.mT @ x / rows + penalty * torch.eye(x.shape[2], dtype=torch.float64)
    return torch.linalg.solve(matrix, weighted.mT @ y.unsqueeze(2) / rows).squeeze(2)


def _inputs_and_weights(
    problems: int, rows: int, features: int, length: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    x = torch.randn(problems, rows, features, generator=generator, dtype=torch.float64)
    weights = torch.randn(problems, features, generator=generator, dtype=torch.float64)
    return x, length * torch.nn.functional.normalize(weights, dim=1)


def _with_intercept(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)


def _intercept(signal: float, base_rate: float) -> float:
    """b with E sigmoid(signal * u + b) = base_rate for u ~ N(0, 1): by bisection on a fine grid of u."""
    u = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-0.5 * u.square())
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        mean = float((torch.sigmoid(signal * u + middle) * density).sum() / density.sum())
        low, high = (middle, high) if mean < base_rate else (low, middle)
    return 0.5 * (low + high)
