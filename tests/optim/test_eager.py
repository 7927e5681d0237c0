"""Optimizers that do without torch's compiler: the same numbers, and it stays away."""

import copy
import subprocess
import sys

import torch
from torch import Tensor, nn

from rayrec.optim.eager import AdamW

WITHOUT_COMPILER = """
import sys
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from rayrec.optim import OptimizerConfig, build_optimizer
for name in ("adamw", "apollo", "apollo_mini", "galore", "muon"):
    for embeddings in ("rowwise_adagrad", "adamw"):
        model = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 1))
        optimizer = build_optimizer(model, OptimizerConfig(optimizer=name, embeddings=embeddings))
        schedule = LambdaLR(optimizer, lambda step: 1.0)
        optimizer.zero_grad()
        model(torch.arange(20)).sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.load_state_dict(optimizer.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""


def test_no_optimizer_imports_the_compiler() -> None:
    assert subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], timeout=120).returncode == 0


def make_parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5))]


def loss_of(parameters: list[nn.Parameter], step: int) -> Tensor:
    return sum((((p - step) * (i + 1)).sin().sum() for i, p in enumerate(parameters)), torch.zeros(()))


def test_adamw_is_torchs_bit_for_bit_and_reads_its_state() -> None:
    ours, theirs = make_parameters(), make_parameters()
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1}
    both = [(ours, AdamW(ours, fused=True, **settings)), (theirs, torch.optim.AdamW(theirs, fused=True, **settings))]
    for step in range(10):
        for parameters, optimizer in both:
            optimizer.zero_grad()
            loss_of(parameters, step).backward()
            optimizer.step()
        if step == 4:
            both[0][1].load_state_dict(copy.deepcopy(both[1][1].state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_adamw_evaluates_a_closure_with_gradients_and_steps_without() -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters, lr=0.1)
    before = [p.detach().clone() for p in parameters]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(parameters, 1)
        loss.backward()
        return loss

    assert torch.equal(optimizer.step(closure), loss_of([nn.Parameter(p) for p in before], 1))
    assert all(p.requires_grad and p.is_leaf for p in parameters)
    assert not any(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
