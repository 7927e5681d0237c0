"""The shortest convex combination of gradients, from their Gram matrix; the simplex that its weights lie on.

``gram`` is (T, T), entry (s, t) the inner product of the gradients of tasks s and t, wherever they were taken (at the shared
representation or on all shared parameters). Solvers run in float64 on the CPU, since T is small, and give float64; only
``min_norm_step`` and ``project_on_simplex`` stay on their argument's device and dtype.
"""

import torch
from torch import Tensor


def min_norm(gram: Tensor) -> Tensor:
    """Weights on the simplex of the shortest convex combination, exactly.

    MGDA (Désidéri 2012); Sener and Koltun 2018, equation 3; on gradients at the representation, their MGDA-UB.
    """
    gram = as_double(gram)
    return minimize_on_simplex(gram, torch.zeros(len(gram), dtype=torch.float64))


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


def project_on_simplex(point: Tensor, mass: float | Tensor = 1.0) -> Tensor:
    """The nearest (T,) point of {w >= 0, sum w = mass} by sorting (Held, Wolfe and Crowder 1974)."""
    falling = point.sort(descending=True).values
    excess = falling.cumsum(0) - mass
    counts = torch.arange(1, len(point) + 1, device=point.device, dtype=point.dtype)
    kept = (falling * counts > excess).sum().clamp_min(1)  # a prefix of the sorted coordinates stays positive
    threshold = excess.gather(0, kept.unsqueeze(0) - 1) / kept
    return (point - threshold).clamp_min(0.0)


def minimize_on_simplex(quadratic: Tensor, linear: Tensor) -> Tensor:
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


def as_double(gram: Tensor) -> Tensor:
    return gram.detach().to("cpu", torch.float64)
