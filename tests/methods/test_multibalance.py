"""MultiBalance as published, and our own running form, against recursions written out by hand over several batches."""

import pytest
import torch
from torch import Tensor

from rayrec.methods.balancing.balancer import Balancer
from rayrec.methods.balancing.multibalance import Multibalance, MultibalanceBalancer
from rayrec.methods.balancing.running_min_norm import RunningMinNorm
from rayrec.methods.balancing.simplex import min_norm, minimize_on_simplex, project_on_simplex

TASKS, ROWS, WIDTH = 3, 6, 4


def directions(seed: int, *, absent: int | None = None) -> Tensor:
    """The tasks' gradients at the representation, (T, B, D), of very different norms."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(TASKS, ROWS, WIDTH, generator=generator) * torch.tensor([0.3, 1.0, 4.0]).view(-1, 1, 1)
    found = found * (0.5 + torch.rand(TASKS, 1, 1, generator=generator))
    if absent is not None:
        found[absent] = 0.0
    return found


def trunk_gradient(balancer: Balancer, gradients: Tensor) -> Tensor:
    """What the representation gets, (B, D), when task t's loss has the gradient ``gradients[t]`` there."""
    h = torch.zeros(ROWS, WIDTH, requires_grad=True)
    inputs = balancer.branch(h)
    balancer.total((inputs * gradients).sum((1, 2)), h, inputs).backward()
    assert h.grad is not None
    return h.grad


def test_the_defaults_are_the_papers() -> None:
    config = Multibalance()
    assert (config.norm_rate, config.step_size, config.uniform_pull) == (0.01, 1.0, 0.1)
    assert not config.rescale


@pytest.mark.parametrize("step_size", [0.02, 1.0])
def test_the_published_form_is_the_recursion_written_out(step_size: float) -> None:
    gamma, rho = 0.25, 0.3
    balancer = Multibalance(norm_rate=gamma, step_size=step_size, uniform_pull=rho).balancer(TASKS, WIDTH)
    historic, weights = torch.zeros(TASKS), torch.full((TASKS,), 1 / 3)
    uniform = weights.clone()
    for seed in range(6):
        gradients = directions(seed)
        rows = gradients.flatten(1)  # (T, B * D): the columns of V before stretching
        norms = rows.norm(dim=1)
        historic = norms if seed == 0 else (1 - gamma) * historic + gamma * norms
        v = historic.unsqueeze(1) * rows / norms.unsqueeze(1)
        slope = v @ (v.T @ weights + rho * (v.T @ uniform))
        weights = project_on_simplex(weights - step_size * slope)
        got = trunk_gradient(balancer, gradients)
        torch.testing.assert_close(balancer.weights, weights, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.flatten(), v.T @ weights, atol=1e-5, rtol=1e-4)
    assert int(balancer.steps) == 6


def test_a_task_without_gradient_keeps_its_weight_and_norm_and_the_rest_share_what_is_left() -> None:
    balancer = Multibalance(norm_rate=0.25, step_size=0.02).balancer(TASKS, WIDTH)
    assert isinstance(balancer, MultibalanceBalancer)
    trunk_gradient(balancer, directions(0))
    weights, norms = balancer.weights.clone(), balancer.norms.clone()
    gradients = directions(1, absent=1)
    got = trunk_gradient(balancer, gradients)
    assert balancer.weights[1] == weights[1]
    assert balancer.norms[1] == norms[1]
    assert not torch.equal(balancer.weights[[0, 2]], weights[[0, 2]])
    assert float(balancer.weights.sum()) == pytest.approx(1.0)
    rows = gradients.flatten(1)[[0, 2]]
    factors = (balancer.weights * balancer.norms)[[0, 2]] / rows.norm(dim=1)
    torch.testing.assert_close(got.flatten(), factors @ rows)


def test_a_task_first_seen_late_starts_with_its_own_norm() -> None:
    balancer = Multibalance(norm_rate=0.25).balancer(TASKS, WIDTH)
    assert isinstance(balancer, MultibalanceBalancer)
    trunk_gradient(balancer, directions(0, absent=2))
    assert balancer.norms[2] == 0.0
    trunk_gradient(balancer, directions(1))
    torch.testing.assert_close(balancer.norms[2], directions(1)[2].norm())


def test_a_batch_of_large_gradients_keeps_the_historic_length() -> None:
    """A burst of 100 times the gradient moves the trunk by 1 + 99 gamma times, not by 100."""
    balancer = Multibalance(norm_rate=0.01, step_size=0.0).balancer(TASKS, WIDTH)
    calm = trunk_gradient(balancer, directions(0))
    torch.testing.assert_close(trunk_gradient(balancer, 100.0 * directions(0)), 1.99 * calm, atol=1e-5, rtol=1e-4)


def test_weights_on_the_same_batch_settle_at_the_minimum_that_the_pull_leaves() -> None:
    rho = 0.5
    balancer = Multibalance(step_size=0.002, uniform_pull=rho).balancer(TASKS, WIDTH)
    for _ in range(3000):
        trunk_gradient(balancer, directions(0))
    rows = directions(0).flatten(1).double()
    gram = rows @ rows.T
    expected = minimize_on_simplex(gram, rho * gram @ torch.full((TASKS,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(balancer.weights.double(), expected, atol=1e-4, rtol=0.0)
    assert not torch.allclose(expected, min_norm(gram), atol=1e-2)


def test_a_loss_of_1000_times_the_scale_loses_its_weight_in_the_published_form() -> None:
    balancer = Multibalance().balancer(TASKS, WIDTH)
    for seed in range(3):
        trunk_gradient(balancer, directions(seed) * torch.tensor([1.0, 1000.0, 1.0]).view(-1, 1, 1))
    assert balancer.weights[1] == 0.0


def test_equal_gradients_leave_the_weights_uniform_and_rescaling_gives_the_plain_sum() -> None:
    same = directions(0)[:1].expand(TASKS, -1, -1)
    for rescale, length in ((False, 1.0), (True, 3.0)):
        balancer = Multibalance(rescale=rescale).balancer(TASKS, WIDTH)
        torch.testing.assert_close(trunk_gradient(balancer, same), length * same[0])
        torch.testing.assert_close(balancer.weights, torch.full((TASKS,), 1 / 3))


@pytest.mark.parametrize("rescale", [False, True])
def test_our_running_form_is_the_recursion_written_out(rescale: bool) -> None:
    """Running means of norms and of the Gram matrix of normalized gradients, not this batch's."""
    decay, ridge = 0.6, 0.1
    config = RunningMinNorm(decay=decay, ridge=ridge, solver="exact", rescale=rescale)
    balancer = config.balancer(TASKS, WIDTH)
    norms, gram = torch.zeros(TASKS), torch.zeros(TASKS, TASKS)
    for seed in range(6):
        rows = directions(seed).flatten(1)
        rate = max(1 / (seed + 1), 1 - decay)
        norms = (1 - rate) * norms + rate * rows.norm(dim=1)
        unit = rows / norms.unsqueeze(1)
        gram = (1 - rate) * gram + rate * unit @ unit.T
        weights = min_norm(gram + ridge * gram.diagonal().mean() * torch.eye(TASKS)).float()
        expected = weights @ unit
        if rescale:
            expected = expected * rows.sum(0).norm() / expected.norm()
        got = trunk_gradient(balancer, directions(seed))
        torch.testing.assert_close(balancer.weights, weights, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.flatten(), expected, atol=1e-4, rtol=1e-4)
