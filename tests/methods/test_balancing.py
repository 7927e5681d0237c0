"""MultiBalance and its peers on a real ranker: what the trunk and the towers get, alone and with two workers."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from rayrec.batch import Batch
from rayrec.methods.balancing import METHODS, Balancer, Balancing
from rayrec.methods.balancing.combining import Combining, row_gram
from rayrec.methods.balancing.fixed import Fixed
from rayrec.methods.balancing.mgda import Mgda
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.balancing.running_min_norm import RunningMinNorm
from rayrec.methods.shared_gradients import SharedGradients
from rayrec.models.ranker import Ranker, RankerArchitecture, RankerInputs

COMBINING = ("running_min_norm", "fixed", "mgda", "pcgrad", "cagrad", "nash_mtl")
DISTRIBUTED = ("multibalance", "running_min_norm", "pcgrad", "gradnorm", "uncertainty", "famo")
LEVELS = ("representation", "parameters")


def ranker(tasks: int, *, wide: bool = True) -> Ranker:
    torch.manual_seed(0)
    inputs = RankerInputs((0.0, 1.0), (1.0, 2.0), (False, True), (True, False), (50, 20), (20,), (1,), tasks)
    return Ranker(inputs, RankerArchitecture(embedding_dim=4, trunk=(32, 16), tower=(8,), wide=wide))


def some_batch(rows: int, tasks: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (rows, 2), generator=generator)
    shares = torch.linspace(0.1, 0.6, tasks)
    return Batch(
        torch.randn(rows, 2, generator=generator),
        ids,
        (torch.rand(rows, tasks, generator=generator) < shares).float(),
        (torch.randint(0, 20, (rows, 5), generator=generator),),
    )


def task_losses(logits: Tensor, batch: Batch) -> Tensor:
    return binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(0)


def config(method: str, level: str = "representation", tasks: int = 3, **others: Any) -> Balancing:
    (kind,) = (kind for kind in METHODS if kind.method == method)  # type: ignore[attr-defined]
    if method == "fixed":
        others["shares"] = tuple(1.0 + t for t in range(tasks))
    if issubclass(kind, Combining):
        others["level"] = level
    return kind(**others)


def balancer_of(method: str, level: str = "representation", tasks: int = 3, **others: Any) -> Any:
    """The state of that method for a representation of width 8."""
    return config(method, level, tasks, **others).balancer(tasks, 8)


def backward(model: Ranker, balancer: Balancer | None, batch: Batch, scales: Tensor | None = None) -> dict[str, Tensor]:
    """Gradients by parameter name of one step with (None: without) a balancer."""
    model.zero_grad()
    h = model.represent(batch)
    inputs = h if balancer is None else balancer.branch(h)
    losses = task_losses(model.heads(inputs), batch)
    losses = losses if scales is None else losses * scales
    total = losses.sum() if balancer is None else balancer.total(losses, h, inputs, model.parameters())
    total.backward()
    return {name: dense(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient.clone()


def towers(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: g for name, g in gradients.items() if name.startswith("towers.")}


def trunk(gradients: dict[str, Tensor]) -> Tensor:
    """All shared gradients as one vector."""
    return torch.cat([g.flatten() for name, g in gradients.items() if not name.startswith("towers.")])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", [*COMBINING, "multibalance", "uniform", "gradnorm", "uncertainty"])
def test_one_task_equals_plain_training_bit_for_bit(method: str, level: str) -> None:
    batch = some_batch(64, 1)
    plain = backward(ranker(1), None, batch)
    balanced = backward(ranker(1), balancer_of(method, level, tasks=1), batch)
    assert plain.keys() == balanced.keys()
    assert all(torch.equal(plain[name], balanced[name]) for name in plain)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", COMBINING)
def test_identical_losses_equal_plain_training(method: str, level: str) -> None:
    """Four towers with the same weights and labels: their gradients agree, so every combination is the plain sum again."""
    batch = some_batch(64, 1)
    batch = replace(batch, labels=batch.labels.expand(-1, 4))
    model = ranker(4, wide=False)  # each task's own wide column is shared by nobody
    with torch.no_grad():
        for p in model.towers.parameters():
            p.copy_(p[:1].expand_as(p))
    plain = backward(model, None, batch)
    balanced = backward(model, balancer_of(method, level, tasks=4, rescale=True), batch)
    torch.testing.assert_close(trunk(balanced), trunk(plain), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", [*COMBINING, "multibalance", "uniform"])
def test_towers_get_their_plain_gradients_bit_for_bit(method: str, level: str) -> None:
    batch = some_batch(64, 3)
    plain = towers(backward(ranker(3), None, batch))
    balanced = towers(backward(ranker(3), balancer_of(method, level), batch))
    assert plain
    assert all(torch.equal(plain[name], balanced[name]) for name in plain)


@pytest.mark.parametrize("method", ["running_min_norm", "mgda", "cagrad", "nash_mtl"])
@pytest.mark.parametrize("level", LEVELS)
def test_scaling_one_loss_by_1000_does_not_change_the_weights_with_normalization(method: str, level: str) -> None:
    model, batches = ranker(3), [some_batch(64, 3, seed) for seed in range(4)]
    found = []
    for factor in (1.0, 1000.0):
        balancer = balancer_of(method, level, normalize=True, rescale=True)
        for batch in batches:
            gradients = backward(model, balancer, batch, torch.tensor([1.0, factor, 1.0]))
        found.append((balancer.weights.clone(), trunk(gradients)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    # With the weights the direction stays too; only its length follows the plain sum.
    assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.9999


def test_without_normalization_the_larger_loss_loses_its_weight() -> None:
    balancer = balancer_of("running_min_norm", normalize=False, solver="exact")
    backward(ranker(3), balancer, some_batch(64, 3), torch.tensor([1.0, 1000.0, 1.0]))
    assert balancer.weights[1] < 0.01


@pytest.mark.parametrize("solver", ["projected_gradient", "exact"])
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_two_opposite_gradients_combine_to_nothing(solver: str, ratio: float) -> None:
    h = torch.randn(32, 8, requires_grad=True)
    direction = torch.randn(32, 8)
    balancer = balancer_of("running_min_norm", solver=solver, tasks=2)
    inputs = balancer.branch(h)
    losses = torch.stack([(inputs[0] * direction).sum(), -ratio * (inputs[1] * direction).sum()])
    balancer.total(losses, h, inputs).backward()
    assert h.grad is not None
    assert float(h.grad.norm()) <= 1e-3 * float(direction.norm())


def test_the_trunk_gets_the_gradient_of_the_stated_combination() -> None:
    """Recomputed by hand from T separate backward passes: weights / running norms, rescaled to the plain sum's norm."""
    model, batch = ranker(3), some_batch(64, 3)
    balancer = balancer_of("running_min_norm", solver="exact", ridge=0.0)
    balanced = trunk(backward(model, balancer, batch))
    h = model.represent(batch)
    leaf = h.detach().requires_grad_()
    losses = task_losses(model.heads(leaf), batch)
    rows = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0].flatten() for loss in losses])
    unit = rows / rows.norm(dim=1, keepdim=True)
    combined = balancer.weights @ unit
    assert (unit @ combined >= combined @ combined - 1e-5).all()  # no task conflicts with it
    combined = combined * (rows.sum(0).norm() / combined.norm())
    model.zero_grad()
    h.backward(combined.view_as(h))
    expected = {n: dense(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(balanced, trunk(expected), atol=1e-6, rtol=1e-3)


def test_balancing_parameters_combines_the_full_gradients() -> None:
    """MGDA over all shared parameters against T plain backward passes, with sparse tables as with dense ones."""
    batch, results = some_batch(64, 3), []
    for sparse in (False, True):
        model = ranker(3)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = sparse
        balancer = balancer_of("mgda", "parameters")
        results.append(trunk(backward(model, balancer, batch)))
    model = ranker(3)
    rows = torch.stack([trunk(backward(model, None, batch, torch.eye(3)[t])) for t in range(3)])
    torch.testing.assert_close(row_gram(rows), rows @ rows.T)
    for result in results:
        torch.testing.assert_close(result, balancer.weights @ rows, atol=1e-6, rtol=1e-4)


def test_the_summed_gradient_statistic_is_the_gram_of_gradients_summed_over_rows() -> None:
    h = torch.randn(32, 8, requires_grad=True)
    directions = torch.randn(3, 32, 8)
    balancer = balancer_of("running_min_norm", statistic="summed_gradient")
    inputs = balancer.branch(h)
    balancer.total((inputs * directions).sum((1, 2)), h, inputs).backward()
    summed = directions.sum(1) / directions.flatten(1).norm(dim=1, keepdim=True)
    torch.testing.assert_close(balancer.gram, summed @ summed.T)


def test_running_means_start_as_plain_means_and_skip_absent_tasks() -> None:
    balancer = balancer_of("running_min_norm", decay=0.9, tasks=2)
    for first, second in ((1.0, 3.0), (3.0, 0.0), (5.0, 5.0)):
        balancer.coefficients(torch.diag(torch.tensor([first, second]).square()))
    torch.testing.assert_close(balancer.norms, torch.tensor([3.0, 4.0]))
    assert balancer.seen.tolist() == [[3.0, 2.0], [2.0, 2.0]]


def test_an_absent_task_has_no_say_and_does_no_harm() -> None:
    for method in COMBINING:
        balancer = balancer_of(method, rescale=True)
        h = torch.randn(16, 4, requires_grad=True)
        direction = torch.randn(16, 4)
        inputs = balancer.branch(h)
        losses = torch.stack(
            [(inputs[0] * direction).sum(), (inputs[1] * 0.0).sum(), 2 * (inputs[2] * direction).sum()]
        )
        balancer.total(losses, h, inputs).backward()
        assert h.grad is not None
        torch.testing.assert_close(h.grad, 3 * direction, atol=1e-5, rtol=1e-4)


def test_gradnorm_gives_the_slow_task_more_and_keeps_the_sum() -> None:
    h = torch.randn(16, 4, requires_grad=True)
    balancer = balancer_of("gradnorm", tasks=2, relative=True)
    directions = torch.nn.functional.normalize(torch.randn(2, 64), dim=1).view(2, 16, 4)
    for step in range(200):
        inputs = balancer.branch(h)
        losses = (inputs * directions).sum((1, 2))
        # Task 0 has halved its loss, task 1 has not moved; gradients are equal.
        values = torch.tensor([0.5 if step else 1.0, 1.0])
        balancer.total(losses - losses.detach() + values, h, inputs).backward()
    torch.testing.assert_close(balancer.loss_weights.sum(), torch.tensor(2.0))
    relative = torch.tensor([0.5, 1.0]) / 0.75
    expected = relative.pow(1.5) / relative.pow(1.5).sum() * 2
    torch.testing.assert_close(balancer.loss_weights, expected, atol=0.05, rtol=0.0)


def test_uncertainty_weights_settle_at_half_the_inverse_loss() -> None:
    balancer = balancer_of("uncertainty", tasks=2, learning_rate=0.1)
    losses = torch.tensor([0.25, 2.0], requires_grad=True)
    for _ in range(600):
        balancer.total(losses, losses, losses)
    torch.testing.assert_close(balancer.loss_weights, torch.tensor([2.0, 0.25]), atol=1e-4, rtol=0.0)


def test_a_restored_balancer_goes_on_as_if_nothing_had_happened() -> None:
    model, batches = ranker(3), [some_batch(64, 3, seed) for seed in range(6)]
    whole = balancer_of("running_min_norm")
    first, second = balancer_of("running_min_norm"), balancer_of("running_min_norm")
    expected = [backward(model, whole, batch) for batch in batches]
    for batch in batches[:3]:
        backward(model, first, batch)
    second.load_state_dict(first.state_dict())
    for batch, reference in zip(batches[3:], expected[3:], strict=True):
        assert all(torch.equal(g, reference[name]) for name, g in backward(model, second, batch).items())


class _Step(nn.Module):
    def __init__(self, model: Ranker, balancer: Balancer) -> None:
        super().__init__()
        self.model = model
        self.others = [balancer]  # not a submodule, as in the training loop

    def forward(self, batch: Batch) -> Tensor:
        (balancer,) = self.others
        h = self.model.represent(batch)
        inputs = balancer.branch(h)
        losses = task_losses(self.model.heads(inputs), batch)
        return balancer.total(losses, h, inputs, self.model.parameters())


def _balanced_worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for method in DISTRIBUTED:
        for level in LEVELS:
            model, balancer = ranker(3), balancer_of(method, level)
            step = DistributedDataParallel(_Step(model, balancer))
            for seed in range(3):
                model.zero_grad()
                step(some_batch(64, 3, seed)[rank::2]).backward()
            gradients = {n: p.grad for n, p in model.named_parameters()}
            results[f"{method} {level}"] = {**gradients, **dict(balancer.named_buffers())}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_equal_one_worker_with_the_joint_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_balanced_worker, args=(port, str(tmp_path)), nprocs=2)
    workers = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for method in DISTRIBUTED:
        for level in LEVELS:
            model, balancer = ranker(3), balancer_of(method, level)
            for seed in range(3):
                backward(model, balancer, some_batch(64, 3, seed))
            gradients = {n: p.grad for n, p in model.named_parameters()}
            for name, expected in {**gradients, **dict(balancer.named_buffers())}.items():
                first, second = (worker[f"{method} {level}"][name] for worker in workers)
                assert torch.equal(first, second)
                torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Fixed, "shares"),
        (lambda: Fixed(shares=(1.0, -1.0)), "shares"),
        (lambda: Fixed(shares=(1.0, 2.0)).balancer(3, 8), "3 tasks"),
        (lambda: RunningMinNorm(decay=1.0), "decay"),
        (lambda: RunningMinNorm(ridge=-1.0), "ridge"),
        (lambda: RunningMinNorm(solver_steps=0), "solver_steps"),
        (lambda: Mgda(level="parameters", statistic="summed_gradient"), "summed_gradient"),
        (lambda: Multibalance(norm_rate=0.0), "norm_rate"),
        (lambda: Multibalance(step_size=float("nan")), "step_size"),
        (lambda: Fixed(shares=(1.0, float("inf"))), "shares"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_single_solver_step_is_enough_to_ask_for_and_none_is_refused() -> None:
    assert RunningMinNorm(solver_steps=1).solver_steps == 1
    with pytest.raises(ValueError, match="solver_steps must be at least 1, not 0"):
        RunningMinNorm(solver_steps=0)


def test_shared_gradients_leave_out_what_the_representation_does_not_depend_on() -> None:
    generator = torch.Generator().manual_seed(0)
    trunk, tower = (nn.Parameter(torch.randn(3, 3, generator=generator)) for _ in range(2))
    x, at_h = torch.randn(4, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    shared = SharedGradients.of(x @ trunk, at_h, [tower, trunk])
    by_hand = torch.stack([(x.T @ gradient).flatten() for gradient in at_h])
    torch.testing.assert_close(shared.gram(), by_hand @ by_hand.T)
    shared.carrier(torch.tensor([2.0, -1.0])).backward()
    assert tower.grad is None
    assert trunk.grad is not None
    torch.testing.assert_close(trunk.grad.flatten(), 2 * by_hand[0] - by_hand[1])


@pytest.mark.parametrize("method", ["multibalance", "gradnorm", "uncertainty", "mgda"])
def test_the_shares_of_a_step_stay_what_they_were_when_the_next_one_moves_the_weights(method: str) -> None:
    balancer, model = balancer_of(method), ranker(3)
    backward(model, balancer, some_batch(64, 3, 1))
    shares = balancer.shares
    before = shares.clone()
    backward(model, balancer, some_batch(64, 3, 2))
    assert torch.equal(shares, before)
    assert not torch.equal(balancer.shares, before)
