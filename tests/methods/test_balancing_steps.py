"""One step of what balancers are made of, against numbers written out by hand."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from rayrec.methods.balancing import combining
from rayrec.methods.balancing.combining import CombiningBalancer, rescaled
from rayrec.methods.balancing.fixed import Fixed
from rayrec.methods.balancing.gradnorm import Gradnorm, gradnorm_step
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.balancing.simplex import project_on_simplex
from rayrec.methods.balancing.uncertainty import Uncertainty, uncertainty_step


@pytest.mark.parametrize("relative", [False, True])
def test_a_gradnorm_step_moves_each_norm_towards_the_mean_times_the_relative_pace(relative: bool) -> None:
    weights, norms, progress = (
        torch.tensor([0.5, 2.0, 0.5]),
        torch.tensor([1.0, 3.0, 0.0]),
        torch.tensor([0.5, 1.5, 9.0]),
    )
    gradnorm_step(weights, norms=norms, progress=progress, asymmetry=2.0, learning_rate=0.1, relative=relative)
    # Of the tasks seen the mean norm is 2, the mean progress 1: targets 2 * .25 and 2 * 2.25. So task 0 falls, task 1 rises.
    scale = 2.0 if relative else 1.0
    moved = torch.tensor([0.5 - 0.1 * (1.0 / 0.5) / scale, 2.0 + 0.1 * (3.0 / 2.0) / scale])
    torch.testing.assert_close(weights, torch.cat([moved * 2.5 / moved.sum(), torch.tensor([0.5])]))


def test_a_gradnorm_step_leaves_the_weights_of_tasks_without_a_gradient_alone() -> None:
    weights = torch.ones(3)
    settings = {"progress": torch.ones(3), "asymmetry": 1.5, "learning_rate": 0.1, "relative": False}
    gradnorm_step(weights, norms=torch.tensor([1.0, 5.0, 0.0]), **settings)
    torch.testing.assert_close(weights, torch.tensor([1.1, 0.5, 0.0]) * 2 / 1.6 + torch.tensor([0.0, 0.0, 1.0]))
    kept = weights.clone()
    gradnorm_step(weights, norms=torch.zeros(3), **settings)
    assert torch.equal(weights, kept)


def test_a_gradnorm_step_stops_at_a_weight_of_a_thousandth() -> None:
    weights = torch.ones(2)
    norms, progress = torch.tensor([5.0, 1.0]), torch.ones(2)
    gradnorm_step(weights, norms=norms, progress=progress, asymmetry=0.0, learning_rate=10.0, relative=False)
    torch.testing.assert_close(weights, torch.tensor([1e-3, 11.0]) * 2 / 11.001)


def test_gradnorm_takes_the_progress_of_the_weighted_batch_against_the_first_one() -> None:
    balancer = Gradnorm(asymmetry=1.0, learning_rate=0.01).balancer(2, 2)
    h = torch.zeros(1, 2, requires_grad=True)
    values, weights = torch.tensor([[4.0, 1.0], [1.0, 1.0]]), torch.ones(2)
    for step, value in enumerate(values):
        inputs = balancer.branch(h)
        losses = inputs.sum((1, 2)) * torch.tensor([1.0, 3.0])
        total = balancer.total(losses - losses.detach() + value, h, inputs)
        torch.testing.assert_close(total.detach(), weights @ value)
        total.backward()
        norms = weights * torch.tensor([1.0, 3.0]) * math.sqrt(2.0)
        progress = value / values[0]
        gradnorm_step(weights, norms=norms, progress=progress, asymmetry=1.0, learning_rate=0.01, relative=False)
        torch.testing.assert_close(balancer.shares, weights)
        assert int(balancer.steps) == step + 1
    torch.testing.assert_close(balancer.first_losses, values[0])


def test_an_uncertainty_step_is_one_gradient_step_of_the_log_variances() -> None:
    weights = torch.tensor([2.0, 0.5, 1.0])
    uncertainty_step(weights, torch.tensor([1.0, 0.2, 0.0]), 0.1)
    expected = [2.0 * math.exp(0.1 * (0.5 - 2.0)), 0.5 * math.exp(0.1 * (0.5 - 0.1)), 1.0]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_uncertainty_weighs_by_the_weights_before_its_step() -> None:
    balancer = Uncertainty(learning_rate=0.1).balancer(2, 2)
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    assert float(balancer.total(losses, losses, losses).detach()) == 4.0
    first = balancer.shares
    torch.testing.assert_close(first, torch.tensor([math.exp(-0.05), math.exp(-0.25)]))
    total = balancer.total(losses, losses, losses)
    torch.testing.assert_close(total.detach(), first @ losses.detach())
    (gradient,) = torch.autograd.grad(total, losses)
    torch.testing.assert_close(gradient, first)


def test_rescaling_gives_the_length_of_the_plain_sum_and_blows_no_noise_up() -> None:
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    factors = rescaled(torch.tensor([0.2, 0.3]), rows @ rows.T)
    assert float((factors @ rows).norm()) == pytest.approx(5.0)
    assert float(factors[1] / factors[0]) == pytest.approx(1.5)
    opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])  # .75 and .25 cancel: parts of 1.5 in all, a sum of length 2
    factors = rescaled(torch.tensor([0.75, 0.25]), opposite @ opposite.T)
    torch.testing.assert_close(factors, torch.tensor([0.75, 0.25]) * 2.0 / (1e-3 * 1.5))
    assert rescaled(torch.tensor([0.5, 0.5]), torch.zeros(2, 2)).tolist() == [0.0, 0.0]
    absent = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert rescaled(torch.tensor([1.0, 0.0]), absent @ absent.T).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("level", ["representation", "parameters"])
@pytest.mark.parametrize(
    "config", [Fixed(shares=(1.0, 0.0), rescale=True), Multibalance(rescale=True)], ids=lambda config: config.method
)
def test_the_trunk_stays_where_all_weight_lies_on_tasks_that_a_batch_lacks(
    config: Fixed | Multibalance, level: Literal["representation", "parameters"]
) -> None:
    trunk, x = nn.Linear(2, 2), torch.ones(1, 2)
    balancer = replace(config, level=level).balancer(2, 2)
    balancer.weights.copy_(torch.tensor([1.0, 0.0]))
    h = trunk(x)
    inputs = balancer.branch(h)
    losses = inputs.square().sum((1, 2)) * torch.tensor([0.0, 1000.0])
    balancer.total(losses, h, inputs, trunk.parameters()).backward()
    assert trunk.weight.grad is not None
    assert (trunk.weight.grad == 0).all()


@pytest.mark.parametrize("mass", [0.0, 0.3, 2.0])
def test_projection_takes_any_mass(mass: float) -> None:
    point = torch.tensor([0.4, -0.2, 0.35])
    found = project_on_simplex(point, mass)
    assert float(found.sum()) == pytest.approx(mass, abs=1e-6)
    expected = mass * project_on_simplex(point / mass) if mass else torch.zeros(3)
    torch.testing.assert_close(found, expected)


class _AsItIs(CombiningBalancer):
    """Gives the Gram matrix back."""

    def coefficients(self, gram: Tensor) -> Tensor:
        return gram


def test_the_gram_matrix_of_workers_is_that_of_the_joint_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers' losses are means over their own rows, so each sends back gradients twice as large as the joint batch's."""
    joint = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))  # (T, B, D)
    monkeypatch.setattr(combining, "world_size", lambda: 2)
    monkeypatch.setattr(combining, "averaged", lambda gram: gram)  # what this worker sends
    balancer = _AsItIs("representation", 3)
    sent = [balancer.coefficients_at(2 * share) for share in joint.split(4, dim=1)]
    rows = joint.flatten(1)
    torch.testing.assert_close(torch.stack(sent).mean(0), rows @ rows.T)
