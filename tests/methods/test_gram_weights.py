"""Balancers as functions of a Gram matrix: closed forms, independent solvers, TorchJD, and properties that all share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchjd.aggregation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from rayrec.methods.balancing.cagrad import cagrad
from rayrec.methods.balancing.nash_mtl import nash_mtl
from rayrec.methods.balancing.pcgrad import Pcgrad, pcgrad, random_orders
from rayrec.methods.balancing.simplex import min_norm, min_norm_step, project_on_simplex

examples = settings(deadline=None, max_examples=25)  # the machine may be busy; each example solves whole problems

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "min_norm": min_norm,
    "pcgrad": lambda gram: pcgrad(gram, random_orders(len(gram), 3)),
    "cagrad": lambda gram: cagrad(gram, 0.5),
    "nash_mtl": nash_mtl,
}


def gradients(tasks: int, width: int, seed: int) -> Tensor:
    """(tasks, width) float64 of very different lengths, conflicting and not."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, width, generator=generator, dtype=torch.float64)
    return rows * torch.exp(torch.randn(tasks, 1, generator=generator, dtype=torch.float64))


def qp_solver(objective: Callable, slope: Callable, tasks: int) -> np.ndarray:
    """SLSQP over the simplex, from several starts."""
    results = [
        minimize(
            objective,
            start,
            jac=slope,
            bounds=[(0, 1)] * tasks,
            constraints=LinearConstraint(np.ones((1, tasks)), 1, 1),
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 2000},
        )
        for start in (np.full(tasks, 1 / tasks), *np.eye(tasks))
    ]
    return min(results, key=lambda result: result.fun).x


tasks_and_seeds = given(tasks=st.integers(2, 8), extra=st.integers(-3, 20), seed=st.integers(0, 10_000))


@examples
@tasks_and_seeds
def test_min_norm_weights_match_an_independent_qp_solver(tasks: int, extra: int, seed: int) -> None:
    rows = gradients(tasks, max(1, tasks + extra), seed)
    gram = rows @ rows.T / (rows @ rows.T).diagonal().mean()
    ours = min_norm(gram)
    matrix = gram.numpy()
    reference = torch.from_numpy(qp_solver(lambda w: w @ matrix @ w, lambda w: 2 * matrix @ w, tasks))
    assert float(ours @ gram @ ours) <= float(reference @ gram @ reference) + 1e-10
    torch.testing.assert_close(ours @ rows, reference @ rows, atol=1e-5, rtol=1e-5)  # the shortest vector is unique
    if extra > 2:  # then so are the weights; the solver itself stops at about 1e-7 in them
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0.0)


@examples
@given(a=st.floats(0.1, 10), b=st.floats(0.1, 10), cosine=st.floats(-0.99, 0.99))
def test_min_norm_of_two_tasks_is_the_closed_form(a: float, b: float, cosine: float) -> None:
    """Sener and Koltun 2018, algorithm 1: clip((g_2 - g_1) . g_2 / |g_1 - g_2|^2) to [0, 1]."""
    inner = a * b * cosine
    gram = torch.tensor([[a * a, inner], [inner, b * b]], dtype=torch.float64)
    first = min(1.0, max(0.0, (b * b - inner) / (a * a + b * b - 2 * inner)))
    torch.testing.assert_close(min_norm(gram), torch.tensor([first, 1 - first], dtype=torch.float64))


@examples
@tasks_and_seeds
def test_no_task_conflicts_with_the_min_norm_combination(tasks: int, extra: int, seed: int) -> None:
    rows = gradients(tasks, max(1, tasks + extra), seed)
    combined = min_norm(rows @ rows.T) @ rows
    assert (rows @ combined >= combined @ combined - 1e-9 * rows.square().sum(1).max()).all()


@examples
@tasks_and_seeds
def test_projected_steps_reach_the_min_norm_from_a_warm_start(tasks: int, extra: int, seed: int) -> None:
    rows = gradients(tasks, tasks + 10 + extra, seed)
    rows = rows / rows.norm(dim=1, keepdim=True)
    gram = rows @ rows.T
    weights = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
    before = float(weights @ gram @ weights)
    for _ in range(60):
        weights = min_norm_step(gram, weights, 50)
        assert float(weights @ gram @ weights) <= before + 1e-12
        before = float(weights @ gram @ weights)
    torch.testing.assert_close(weights, min_norm(gram), atol=1e-5, rtol=0.0)


@examples
@given(point=st.lists(st.floats(-5, 5), min_size=1, max_size=10))
def test_projection_on_the_simplex_is_the_nearest_point(point: list[float]) -> None:
    """Its optimality conditions: one threshold for all positive coordinates, and no more than it for the others."""
    given_point = torch.tensor(point, dtype=torch.float64)
    nearest = project_on_simplex(given_point)
    torch.testing.assert_close(nearest.sum(), torch.tensor(1.0, dtype=torch.float64))
    thresholds = (given_point - nearest)[nearest > 0]
    torch.testing.assert_close(thresholds, thresholds[:1].expand_as(thresholds))
    assert (given_point[nearest == 0] <= thresholds[0] + 1e-12).all()


def test_an_absent_task_gets_no_weight_and_all_absent_is_no_error() -> None:
    gram = torch.diag(torch.tensor([1.0, 0.0, 2.0]))
    start = torch.full((3,), 1 / 3)
    weights = min_norm_step(gram, start, 200, torch.tensor([True, False, True]))
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 0.0, 1 / 3]), atol=1e-4, rtol=0.0)
    assert (min_norm_step(torch.zeros(3, 3), start, 3, torch.zeros(3, dtype=torch.bool)) == 0).all()


@examples
@tasks_and_seeds
def test_min_norm_is_at_least_as_short_as_torchjd_mgda(tasks: int, extra: int, seed: int) -> None:
    rows = gradients(tasks, tasks + 5 + extra, seed)
    reference = torchjd.aggregation.MGDA(epsilon=1e-8, max_iters=500)(rows)
    ours = min_norm(rows @ rows.T) @ rows
    assert float(ours @ ours) <= float(reference @ reference) * (1 + 1e-9)
    # Frank-Wolfe stops early, sometimes far from the end; but no combination lies before the plane through the shortest one.
    assert float(ours @ (reference - ours)) >= -1e-9 * float(reference @ reference)


@examples
@tasks_and_seeds
def test_pcgrad_weights_are_those_of_torchjd_in_the_same_order(tasks: int, extra: int, seed: int) -> None:
    rows = gradients(tasks, max(1, tasks + extra), seed)
    torch.manual_seed(seed)
    shuffled = [torch.randperm(tasks) for _ in range(tasks)]
    orders = torch.stack([order[order != i] for i, order in enumerate(shuffled)])
    torch.manual_seed(seed)
    reference = torchjd.aggregation.PCGradWeighting()(rows @ rows.T)
    torch.testing.assert_close(pcgrad(rows @ rows.T, orders), reference)


def test_pcgrad_of_two_tasks_takes_the_conflict_off_both() -> None:
    rows = gradients(2, 5, 1)
    rows[1] -= 2 * (rows[1] @ rows[0]) / (rows[0] @ rows[0]) * rows[0] * (1 if rows[1] @ rows[0] > 0 else 0)
    first, second = rows
    inner = first @ second
    assert inner < 0
    expected = first - inner / (second @ second) * second + second - inner / (first @ first) * first
    torch.testing.assert_close(pcgrad(rows @ rows.T, random_orders(2, 0)) @ rows, expected)


def test_pcgrad_meets_the_others_in_an_order_of_its_seed_and_step() -> None:
    rows = gradients(5, 3, 4)
    gram = rows @ rows.T
    drawn = [pcgrad(gram, random_orders(5, seed)) for seed in range(6)]
    assert len({tuple(weights.tolist()) for weights in drawn}) > 1  # so the order matters here
    for step in range(3):
        torch.testing.assert_close(Pcgrad().task_weights(gram, step), drawn[step])
        torch.testing.assert_close(Pcgrad(seed=3).task_weights(gram, step), drawn[3 + step])


@examples
@given(tasks=st.integers(2, 6), seed=st.integers(0, 10_000), c=st.floats(0.05, 0.95))
def test_cagrad_solves_its_dual_as_an_independent_solver_does(tasks: int, seed: int, c: float) -> None:
    rows = gradients(tasks, tasks + 8, seed)
    gram = rows @ rows.T
    gram /= gram.diagonal().mean()
    matrix = gram.numpy()
    toward = matrix.mean(1)
    radius = c * np.sqrt(matrix.mean())
    dual = qp_solver(
        lambda w: w @ toward + radius * np.sqrt(w @ matrix @ w),
        lambda w: toward + radius * matrix @ w / np.sqrt(w @ matrix @ w),
        tasks,
    )
    expected = 1 / tasks + radius / np.sqrt(dual @ matrix @ dual) * dual
    torch.testing.assert_close(cagrad(gram, c), torch.from_numpy(expected), atol=2e-4, rtol=1e-4)


@examples
@tasks_and_seeds
def test_cagrad_stays_within_its_radius_and_raises_the_worst_improvement(tasks: int, extra: int, seed: int) -> None:
    rows = gradients(tasks, tasks + 5 + extra, seed)
    average = rows.mean(0)
    combined = cagrad(rows @ rows.T, 0.5) @ rows
    assert float((combined - average).norm()) <= 0.5 * float(average.norm()) * (1 + 1e-6)
    assert float((rows @ combined).min()) >= float((rows @ average).min()) - 1e-9


def test_cagrad_of_no_aversion_is_the_average() -> None:
    rows = gradients(4, 9, 0)
    torch.testing.assert_close(cagrad(rows @ rows.T, 0.0), torch.full((4,), 0.25, dtype=torch.float64))


@examples
@tasks_and_seeds
def test_nash_weights_solve_the_bargaining_equation(tasks: int, extra: int, seed: int) -> None:
    rows = gradients(tasks, tasks + 10 + extra, seed)
    gram = rows @ rows.T
    weights = nash_mtl(gram, ridge=0.0)
    assert (weights > 0).all()
    torch.testing.assert_close(gram @ weights, 1 / weights)


def test_nash_weights_of_orthogonal_gradients_are_inverse_norms() -> None:
    norms = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(nash_mtl(torch.diag(norms.square()), ridge=0.0), 1 / norms)


@pytest.mark.parametrize("name", WEIGHTINGS)
@examples
@given(tasks=st.integers(2, 6), seed=st.integers(0, 1000))
def test_weights_do_not_depend_on_the_order_of_tasks(name: str, tasks: int, seed: int) -> None:
    rows = gradients(tasks, tasks + 6, seed)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
    gram, permuted = rows @ rows.T, rows[order] @ rows[order].T
    if name == "pcgrad":  # the random orders move along with their tasks
        orders, place = random_orders(tasks, seed), order.argsort()
        ours, moved = pcgrad(gram, orders), pcgrad(permuted, place[orders[order]])
    else:
        ours, moved = WEIGHTINGS[name](gram), WEIGHTINGS[name](permuted)
    torch.testing.assert_close(moved, ours[order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", WEIGHTINGS)
@examples
@given(tasks=st.integers(2, 6), seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 0.25, 1e4]))
def test_the_combination_scales_with_the_gradients_or_not_at_all(
    name: str, tasks: int, seed: int, scale: float
) -> None:
    rows = gradients(tasks, tasks + 6, seed)
    weights, scaled = WEIGHTINGS[name](rows @ rows.T), WEIGHTINGS[name](scale**2 * rows @ rows.T)
    expected = weights / scale if name == "nash_mtl" else weights
    torch.testing.assert_close(scaled, expected, atol=0.0 if name == "nash_mtl" else 1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHTINGS)
@examples
@given(tasks=st.integers(1, 6), seed=st.integers(0, 1000), rank=st.integers(0, 2))
def test_weights_are_finite_where_gradients_depend_on_each_other_or_vanish(
    name: str, tasks: int, seed: int, rank: int
) -> None:
    rows = gradients(tasks, max(rank, 1), seed) * bool(rank)
    weights = WEIGHTINGS[name](rows @ rows.T)
    assert weights.shape == (tasks,)
    assert weights.isfinite().all()


def test_gradients_that_all_vanish_share_the_weight_evenly() -> None:
    assert min_norm(torch.zeros(4, 4, dtype=torch.float64)).tolist() == [0.25] * 4
