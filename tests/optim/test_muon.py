"""Muon as build_optimizer sets it up: its update against one by singular values."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from rayrec.optim import MuonConfig, OptimizerConfig, build_optimizer


def orthogonalized(matrix: Tensor, iterations: int) -> Tensor:
    """Newton-Schulz acts on singular values alone: s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5, from s / Frobenius norm; float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(iterations):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(24, 12), (12, 24)])
def test_two_steps_are_the_orthogonalized_momentum_times_the_adjusted_rate(
    shape: tuple[int, int], nesterov: bool, adjust: Literal["original", "match_rms_adamw"]
) -> None:
    model = nn.Linear(shape[1], shape[0], bias=False)
    muon = MuonConfig(momentum=0.75, nesterov=nesterov, iterations=3, adjust_lr_fn=adjust)
    optimizer = build_optimizer(model, OptimizerConfig("muon", matrix_learning_rate=0.5, weight_decay=0.125, muon=muon))
    assert isinstance(optimizer, torch.optim.Muon)
    rate = 0.5 * (0.2 * math.sqrt(24) if adjust == "match_rms_adamw" else math.sqrt(max(1, shape[0] / shape[1])))
    expected, average = model.weight.detach().double(), torch.zeros(shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        gradient = torch.randn(shape, generator=generator)
        model.weight.grad = gradient.clone()
        optimizer.step()
        average = 0.75 * average + 0.25 * gradient
        looked_ahead = 0.75 * average + 0.25 * gradient if nesterov else average
        expected = (1 - 0.5 * 0.125) * expected - rate * orthogonalized(looked_ahead, 3)
    error = (model.weight.detach() - expected).norm() / expected.norm()
    assert error < 0.02  # torch iterates in bfloat16


def test_with_the_default_adjustment_an_update_is_as_large_as_adamw_s() -> None:
    model = nn.Linear(96, 64, bias=False)
    optimizer = build_optimizer(model, OptimizerConfig("muon", learning_rate=0.01, weight_decay=0.0))
    before = model.weight.detach().clone()
    model.weight.grad = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    root_mean_square = (model.weight.detach() - before).square().mean().sqrt().item()
    assert 0.15 * 0.01 < root_mean_square < 0.25 * 0.01  # .2 to .4 of the rate is AdamW's
