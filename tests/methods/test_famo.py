"""FAMO against its algorithm written out, and what it is for: the task that falls slowest gains weight."""

import pytest
import torch

from rayrec.methods.balancing.famo import Famo, FamoBalancer


def total_of(balancer: FamoBalancer, losses: torch.Tensor) -> torch.Tensor:
    return balancer.total(losses, losses, losses)


def test_steps_are_those_of_the_algorithm() -> None:
    beta, gamma = 0.3, 0.05
    balancer = Famo(learning_rate=beta, decay=gamma).balancer(3, 8)
    xi, last = torch.zeros(3), None
    for values in ([1.0, 2.0, 0.5], [0.8, 1.9, 0.5], [0.9, 1.0, 0.4], [0.2, 0.9, 0.3]):
        losses = torch.tensor(values, requires_grad=True)
        if last is not None:
            improved = torch.tensor(last).log() - torch.tensor(values).log()
            leaf = xi.clone().requires_grad_()
            (slope,) = torch.autograd.grad(leaf.softmax(0) @ improved, leaf)
            xi = xi - beta * (slope + gamma * xi)
        z, last = xi.softmax(0), values
        scale = 1 / (z / losses.detach()).sum()
        total = total_of(balancer, losses)
        (gradient,) = torch.autograd.grad(total, losses, retain_graph=True)
        (expected,) = torch.autograd.grad(scale * (z * losses.log()).sum(), losses)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(balancer.logits, xi)
        assert float(balancer.shares.sum()) == pytest.approx(1.0)


def test_the_task_that_falls_slowest_gains_weight() -> None:
    balancer = Famo(learning_rate=1.0).balancer(2, 8)
    for step in range(20):
        total_of(balancer, torch.tensor([0.9**step, 1.0]))
    assert balancer.logits.softmax(0)[1] > 0.6


def test_a_task_observed_nowhere_in_a_batch_is_left_out_and_compared_with_its_last_loss() -> None:
    balancer, gapless = Famo(decay=0.0).balancer(2, 8), Famo(decay=0.0).balancer(2, 8)
    for values in ([1.0, 2.0], [1.0, 0.0], [1.0, 1.0]):
        total_of(balancer, torch.tensor(values))
        if values[1] == 0.0:
            assert balancer.shares.tolist() == [1.0, 0.0]
            assert balancer.last_losses.tolist() == [1.0, 2.0]
    for values in ([1.0, 2.0], [1.0, 1.0]):
        total_of(gapless, torch.tensor(values))
    torch.testing.assert_close(balancer.logits, gapless.logits)
    assert total_of(Famo().balancer(2, 8), torch.zeros(2)) == 0.0


def test_a_task_that_is_absent_while_others_improve_keeps_its_logit() -> None:
    balancer = Famo(learning_rate=1.0, decay=0.0).balancer(3, 8)
    for values in ([1.0, 1.0, 1.0], [0.5, 0.9, 0.0], [0.2, 0.8, 0.0]):
        total_of(balancer, torch.tensor(values))
    assert balancer.logits[2] == 0.0
    assert balancer.logits[0] < 0 < balancer.logits[1]


def test_one_task_is_trained_plainly() -> None:
    loss = torch.tensor([0.7], requires_grad=True)
    balancer = Famo().balancer(1, 8)
    assert float(total_of(balancer, loss).detach()) == pytest.approx(0.7)
