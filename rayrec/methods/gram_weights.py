"""Gradient balancers as pure functions: a Gram matrix of task gradients in, one weight a task out.

``gram`` is (T, T), entry (s, t) the inner product of the gradients of tasks s and t, wherever they were taken (at the shared
representation or on all shared parameters). The combined gradient is ``sum_t weights[t] * gradient_t``. All solvers run in
float64 on the CPU, since T is small, and give float64; only ``min_norm_step`` stays on the Gram matrix's device and dtype.
"""

import torch
from torch import Tensor


def uniform(gram: Tensor) -> Tensor:
    """All ones: the plain sum of losses."""
    return torch.ones(len(gram), dtype=torch.float64)


def min_norm(gram: Tensor) -> Tensor:
    """Weights on the simplex of the shortest convex combination, exactly.

    MGDA (Désidéri 2012); Sener and Koltun 2018, equation 3; on gradients at the representation, their MGDA-UB.
    """
    gram = _as_double(gram)
    return _minimize_on_simplex(gram, torch.zeros(len(gram), dtype=torch.float64))


def min_norm_step(gram: Tensor, start: Tensor, steps: int, present: Tensor | None = None) -> Tensor:
    """``steps`` projected gradient steps towards ``min_norm`` from ``start`` (T,), without leaving the device.

    The step is 1 / (largest absolute row sum), a bound of the largest eigenvalue, so that w^T gram w never rises.
    present: (T,) bool; the others get weight 0.
    """
    rate = 1.0 / gram.abs().sum(1).amax().clamp_min(torch.finfo(gram.dtype).tiny)
    weights = start
    for _ in range(steps):
        moved = weights - rate * (gram @ weights)
        weights = project_on_simplex(moved if present is None else torch.where(present, moved, -1e30))
    return weights


def project_on_simplex(point: Tensor) -> Tensor:
    """The nearest (T,) point of {w >= 0, sum w = 1} by sorting (Held, Wolfe and Crowder 1974)."""
    falling = point.sort(descending=True).values
    excess = falling.cumsum(0) - 1.0
    counts = torch.arange(1, len(point) + 1, device=point.device, dtype=point.dtype)
    kept = (falling * counts > excess).sum().clamp_min(1)  # a prefix of the sorted coordinates stays positive
    threshold = excess.gather(0, kept.unsqueeze(0) - 1) / kept
    return (point - threshold).clamp_min(0.0)


def random_orders(tasks: int, seed: int) -> Tensor:
    """For each task an own random order of the others, (T, T - 1), the same on every worker."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(tasks, tasks, generator=generator).fill_diagonal_(2.0)  # oneself last, then cut off
    return keys.argsort(1)[:, :-1]


def pcgrad(gram: Tensor, orders: Tensor) -> Tensor:
    """Each gradient projected off those it conflicts with, in its row of ``orders`` (T, T - 1); their sum.

    PCGrad: Yu et al. 2020, algorithm 1. Row i of ``parts`` holds gradient i as a combination of all, all rows at once.
    """
    gram = _as_double(gram)
    parts = torch.eye(len(gram), dtype=torch.float64)  # (T, T)
    norms = gram.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    for others in orders.unbind(1):
        inner = (parts * gram[others]).sum(1)  # of each partly projected gradient with its next other
        shift = inner.clamp_max(0.0) / norms[others]
        parts.scatter_add_(1, others.unsqueeze(1), -shift.unsqueeze(1))
    return parts.sum(0)


def cagrad(gram: Tensor, conflict_aversion: float) -> Tensor:
    """The average gradient moved by at most ``conflict_aversion`` (c) of its norm towards the worst-off tasks.

    CAGrad: Liu et al. 2021, equation 3: weights 1/T + c |g_0| / |g_w| w, where w minimizes g_w . g_0 + c |g_0| |g_w| on the
    simplex. For a given length t = |g_w| that is a quadratic program, (|g_w|^2 / t + t) / 2 being at least |g_w|; length and
    weights in turn go downhill to the one minimum, since this form is convex in both. c = 0 gives the average.
    """
    gram = _as_double(gram)
    tasks = len(gram)
    average = torch.full((tasks,), 1.0 / tasks, dtype=torch.float64)
    toward = gram @ average
    radius = conflict_aversion * _norm(gram, average)
    shortest = 1e-8 * gram.diagonal().amax().sqrt()
    length = _norm(gram, average)
    if radius <= 0.0 or length <= shortest:
        return average
    weights = average
    for _ in range(100):
        weights = _minimize_on_simplex(radius / length * gram, toward)
        before, length = length, _norm(gram, weights)
        if length <= shortest:  # Pareto stationary: no direction helps every task
            return torch.zeros(tasks, dtype=torch.float64)
        if (before - length).abs() <= 1e-10 * length:
            break
    return average + radius / length * weights


def nash_mtl(gram: Tensor, ridge: float = 1e-6) -> Tensor:
    """The bargaining solution: positive weights a with (gram a)_t = 1 / a_t, so that every task gains alike.

    Nash-MTL: Navon et al. 2022, equation 2. It is the minimum of a^T gram a / 2 - sum log a, self-concordant, hence damped Newton
    steps. ``ridge`` times the mean squared norm is added to the diagonal: where the gradients cancel there is no minimum.
    """
    gram = _as_double(gram)
    gram = gram + ridge * gram.diagonal().mean().clamp_min(1e-300) * torch.eye(len(gram), dtype=torch.float64)
    weights = gram.diagonal().rsqrt() / len(gram) ** 0.5
    for _ in range(100):
        slope = gram @ weights - 1.0 / weights
        step = torch.linalg.solve(gram + torch.diag(weights.square().reciprocal()), slope)
        decrement = (slope @ step).clamp_min(0.0).sqrt()
        weights = weights - step / (1.0 + decrement)  # stays positive
        if decrement < 1e-12:
            break
    return weights


def _minimize_on_simplex(quadratic: Tensor, linear: Tensor) -> Tensor:
    """Exact minimum of w^T quadratic w / 2 + linear . w over the simplex: a primal active-set method in float64.

    From the best corner, the task of most negative reduced slope enters; the minimum on the support is taken, or, where that
    has a negative weight, the walk towards it stops at the border and the task that reached zero leaves.
    """
    tasks = len(quadratic)
    scale = quadratic.diagonal().mean() + linear.abs().amax()
    if not scale > 0.0:
        return torch.full((tasks,), 1.0 / tasks, dtype=torch.float64)
    # Dependent gradients make the minimum ambiguous: the faintest ridge picks one and keeps every system solvable.
    quadratic = quadratic / scale + 1e-13 * torch.eye(tasks, dtype=torch.float64)
    linear = linear / scale
    weights = torch.zeros(tasks, dtype=torch.float64)
    weights[(quadratic.diagonal() / 2 + linear).argmin()] = 1.0
    support = weights > 0.0
    for _ in range(20 * tasks):
        slope = quadratic @ weights + linear
        entering = int(torch.where(support, torch.inf, slope).argmin())
        if support.all() or slope[entering] >= slope @ weights - 1e-13:
            break
        support[entering] = True
        while True:
            target = _minimize_on_plane(quadratic, linear, support)
            if (target[support] >= 0.0).all():
                weights = target
                break
            falls = support & (target < 0.0)
            share = torch.where(falls, weights / (weights - target), torch.inf)
            leaving = int(share.argmin())
            weights = (weights + share[leaving] * (target - weights)).clamp_min(0.0)
            weights[leaving] = 0.0
            support[leaving] = False
    return weights / weights.sum()


def _minimize_on_plane(quadratic: Tensor, linear: Tensor, support: Tensor) -> Tensor:
    """The minimum over {sum w = 1, w = 0 off the support}, signs free: one symmetric linear system."""
    chosen = support.nonzero().squeeze(1)
    size = len(chosen)
    system = torch.ones(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size] = quadratic[chosen][:, chosen]
    system[size, size] = 0.0
    right = torch.ones(size + 1, dtype=torch.float64)
    right[:size] = -linear[chosen]
    target = torch.zeros(len(quadratic), dtype=torch.float64)
    target[chosen] = torch.linalg.solve(system, right)[:size]
    return target


def _norm(gram: Tensor, weights: Tensor) -> Tensor:
    """Length of the combined gradient."""
    return (weights @ gram @ weights).clamp_min(0.0).sqrt()


def _as_double(gram: Tensor) -> Tensor:
    return gram.detach().to("cpu", torch.float64)
