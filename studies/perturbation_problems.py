"""SCR and LSPR on (generalized) linear models, where the truth is known: do learned weights align with the true ones?

Inputs x ~ N(0, I); perturbation x' = x + e, e ~ N(0, noise^2 I). With the squared loss both methods are, in expectation over e,
least squares plus a ridge: the closed form. With the logistic loss they part, to second order in the noise:

    LSPR: mean CE + strength / 2 * noise^2 |w|^2 * mean p (1 - p)           pulls towards labels: the curvature of the loss
    SCR:  mean CE + strength     * noise^2 |w|^2 * mean (p (1 - p))^2       pulls towards the own prediction

(arXiv 2502.18478 reports the experiment; noise as adaptive ridge: Wager, Wang and Liang 2013.) Training draws e anew at each
step, so what it descends is the mean over e. Here that mean is exact: of e only e . w ~ N(0, noise^2 |w|^2) moves a prediction,
so it is an integral over one normal number, on a grid. All problems of a batch are solved at once, in float64.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_NEWTON_STEPS = 60
_HALVINGS = 12
_CHUNK = 400_000  # rows times grid points that are solved at once
_GRID = (
    torch.arange(-18, 19, dtype=torch.float64) * 0.3
)  # of a standard normal g: sums converge as exp(-2 pi^2 / (.3 noise |w|))
_SHARES = torch.exp(-0.5 * _GRID.square()) / torch.exp(-0.5 * _GRID.square()).sum()
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
    """kind "ridge": ``strength`` |w|^2. The others perturb rows with deviation ``noise``; ``copies`` of each row are drawn where
    the loss is squared, where it is logistic the mean over all of them is taken."""

    kind: Literal["none", "ridge", "lspr", "lspr_additive", "scr"]
    strength: float = 0.0
    noise: float = 0.0
    copies: int = 1


def draw_logistic(
    problems: int,
    rows: int,
    features: int,
    *,
    signal: float,
    base_rate: float,
    seed: int,
    correlation: float = 0.0,
) -> Problems:
    """Labels 1 with probability sigmoid(x . w + b); features of variance 1, of which i and j correlate by correlation^|i - j|.

    signal: standard deviation of x . w (|w| where nothing correlates). b makes the mean probability ``base_rate``.
    """
    generator = torch.Generator().manual_seed(seed)
    x, weights = _inputs_and_weights(problems, rows, features, signal, generator)
    places = torch.arange(features, dtype=torch.float64)
    covariance = correlation ** (places.unsqueeze(0) - places.unsqueeze(1)).abs()
    x = x @ torch.linalg.cholesky(covariance).mT
    weights = weights * signal / ((weights @ covariance) * weights).sum(1, keepdim=True).sqrt()
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


def logistic_weights(problems: Problems, method: LinearMethod, *, ridge: float = 1e-4) -> Tensor:
    """(S, d): weights at the minimum of the method's mean objective over the noise, with the logistic loss.

    By damped Gauss-Newton steps, many problems at once; the intercept is learned, not penalized, perturbed or returned.
    ridge: keeps the weights finite where few rows can be separated.
    A problem ends where no step lowers its objective further (SCR's is not convex).
    """
    x = torch.cat([problems.x, problems.x.new_ones(*problems.x.shape[:2], 1)], dim=2)
    penalty = torch.full((x.shape[2],), ridge, dtype=torch.float64)
    if method.kind == "ridge":
        penalty += method.strength
    penalty[-1] = 1e-9
    grid = 1 if method.kind in ("none", "ridge") else len(_GRID)
    chunk = max(1, _CHUNK // (grid * x.shape[1]))
    solved = [
        _minimum(x[i : i + chunk], problems.y[i : i + chunk], method, penalty) for i in range(0, x.shape[0], chunk)
    ]
    return torch.cat(solved)[:, :-1]


def _minimum(x: Tensor, y: Tensor, method: LinearMethod, penalty: Tensor) -> Tensor:
    """(S, d + 1) of rows x (S, n, d + 1), the intercept's ones last."""
    weights = torch.zeros(x.shape[0], x.shape[2], dtype=torch.float64)
    left = torch.arange(len(weights))  # problems that still move
    for _ in range(_NEWTON_STEPS):
        now, rows, labels = weights[left], x[left], y[left]
        gradient, hessian = _slopes(now, rows, labels, method, penalty)
        step = torch.linalg.solve(hessian, gradient.unsqueeze(2)).squeeze(2)
        value = objective(now, rows, labels, method, penalty)
        size = torch.ones(len(left), 1, dtype=torch.float64)
        for _ in range(_HALVINGS):  # of those problems that would rise
            worse = objective(now - size * step, rows, labels, method, penalty) > value
            if not worse.any():
                break
            size = torch.where(worse.unsqueeze(1), 0.5 * size, size)
        moving = ~worse & (gradient.norm(dim=1) > _TOLERANCE)
        weights[left[moving]] = (now - size * step)[moving]
        left = left[moving]
        if not len(left):
            break
    return weights


def expected_extra_loss(method: LinearMethod, logits: Tensor, length: float) -> Tensor:
    """(): what the method adds to the mean cross-entropy in expectation over the noise, to second order in it.

    logits (n,) of a linear model with weights of the given length: see the module.
    """
    slope = torch.sigmoid(logits) * torch.sigmoid(-logits)
    variance = (method.noise * length) ** 2
    if method.kind == "scr":
        return method.strength * variance * slope.square().mean()
    return 0.5 * method.strength * variance * slope.mean()


def objective(weights: Tensor, x: Tensor, y: Tensor, method: LinearMethod, penalty: Tensor) -> Tensor:
    """(S,) of weights (S, d + 1) for rows x (S, n, d + 1), whose last column is 1 and is not perturbed, labels y (S, n)."""
    z = _logits(weights, x)
    value = _clean_share(method) * _cross_entropy(z, y).mean(1) + (penalty * weights.square()).sum(1)
    if method.kind in ("none", "ridge"):
        return value
    moved, _ = _moved(z, weights, method.noise)
    if method.kind == "scr":
        apart = (torch.sigmoid(z).unsqueeze(2) - torch.sigmoid(moved)).square()
        return value + method.strength * (apart @ _SHARES).mean(1)
    return value + method.strength * (_cross_entropy(moved, y.unsqueeze(2)) @ _SHARES).mean(1)


def _slopes(weights: Tensor, x: Tensor, y: Tensor, method: LinearMethod, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (S, d + 1) and a positive definite (Gauss-Newton) Hessian (S, d + 1, d + 1) of ``objective``.

    e = noise (g u + what is perpendicular to w), u = w / |w|, g standard normal: each is a sum of x, u and the identity.
    """
    z = _logits(weights, x)
    p = torch.sigmoid(z)
    clean, rows = _clean_share(method), x.shape[1]
    by_x, by_xx = clean * (p - y), clean * p * (1 - p)  # (S, n) factors of x and of x x^T
    gradient, hessian = 2 * penalty * weights, 2 * torch.diag(penalty).expand(len(x), -1, -1)
    if method.kind not in ("none", "ridge"):
        moved, u = _moved(z, weights, method.noise)
        q = torch.sigmoid(moved)
        slope, strength, noise = q * (1 - q), method.strength, method.noise
        if method.kind == "scr":
            apart, own = p.unsqueeze(2) - q, (p * (1 - p)).unsqueeze(2) - slope  # p - q, and what x does to it
            by_x = by_x + 2 * strength * (apart * own) @ _SHARES
            along = -2 * strength * noise * (apart * slope) @ (_SHARES * _GRID)
            by_xx = by_xx + 2 * strength * own.square() @ _SHARES
            by_xu = -2 * strength * noise * (own * slope) @ (_SHARES * _GRID)
            across = 2 * strength * noise**2 * slope.square() @ _SHARES
            by_uu = 2 * strength * noise**2 * slope.square() @ (_SHARES * _GRID.square())
        else:
            by_x = by_x + strength * (q @ _SHARES - y)
            along = strength * noise * q @ (_SHARES * _GRID)
            by_xx = by_xx + strength * slope @ _SHARES
            by_xu = strength * noise * slope @ (_SHARES * _GRID)
            across = strength * noise**2 * slope @ _SHARES
            by_uu = strength * noise**2 * slope @ (_SHARES * _GRID.square())
        perturbed = torch.ones_like(u[0])
        perturbed[-1] = 0.0  # not the intercept
        gradient = gradient + along.mean(1, keepdim=True) * u
        mixed = (by_xu.unsqueeze(1) @ x).squeeze(1).unsqueeze(2) * u.unsqueeze(1) / rows
        uu = u.unsqueeze(2) * u.unsqueeze(1)
        hessian = hessian + mixed + mixed.mT + (by_uu - across).mean(1)[:, None, None] * uu
        hessian = hessian + across.mean(1)[:, None, None] * torch.diag(perturbed)
    gradient = gradient + (by_x.unsqueeze(1) @ x).squeeze(1) / rows
    return gradient, hessian + x.mT @ (x * by_xx.unsqueeze(2)) / rows


def _moved(z: Tensor, weights: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Logits (S, n, points of the grid) of the perturbed rows, and w / |w| (S, d + 1) without the intercept, 0 of w = 0."""
    along = weights.clone()
    along[:, -1] = 0.0
    length = along.norm(dim=1, keepdim=True)
    return z.unsqueeze(2) + noise * length.unsqueeze(2) * _GRID, along / length.clamp_min(1e-300)


def _clean_share(method: LinearMethod) -> float:
    return 1 - method.strength if method.kind == "lspr" else 1.0


def _logits(weights: Tensor, x: Tensor) -> Tensor:
    return (x @ weights.unsqueeze(2)).squeeze(2)


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.softplus(z) - y * z


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
