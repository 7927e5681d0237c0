"""APOLLO's maths: equality with the official optimizer, closed forms, invariants."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.apollo_torch_peer import load_apollo_torch
from rayrec.optim import apollo
from rayrec.optim.apollo import Apollo
from rayrec.optim.apollo_update import update_stacked
from rayrec.optim.random_projection import draw_projection, project, project_stack

# Tall, wide, square; the last three are too large for stacking here. Each smaller dimension names its matrix's projection.
SHAPES = [(32, 16), (12, 40), (20, 20), (48, 26), (28, 44), (30, 30)]


@pytest.fixture(autouse=True)
def _small_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of updating matrices meet small ones."""
    monkeypatch.setattr("rayrec.optim.apollo_stacks.STACK_LIMIT", 600)
    monkeypatch.setattr("rayrec.optim.apollo_stacks.CHUNK_LIMIT", 2000)


def parameters(
    shapes: Iterable[tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], generator: torch.Generator, size: float = 1.0) -> None:
    for p in params:
        p.grad = (size * torch.randn(p.shape, generator=generator)).to(p.dtype)


def relative_difference(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


def draw_as_apollo_torch(seed: int, period: int, rank: int, size: int) -> Tensor:
    """The projection that apollo-torch draws for that matrix of SHAPES: it seeds by position and walks on each period."""
    next_seed = load_apollo_torch()[1].next_seed
    position = [min(shape) for shape in SHAPES].index(size)
    own_seed = position + 1
    for _ in range(period):
        own_seed = next_seed(own_seed)
    generator = torch.Generator().manual_seed(own_seed)
    rows, columns = SHAPES[position]
    shape = (rank, columns) if rows >= columns else (rows, rank)
    drawn = torch.randn(shape, generator=generator) / math.sqrt(rank)
    return drawn if rows >= columns else drawn.t()


@pytest.mark.parametrize(("limiter", "weight_decay"), [(True, 0.1), (False, 0.0)])
@pytest.mark.parametrize(("scale_type", "rank", "scale"), [("channel", 4, 1.0), ("tensor", 1, 128.0)])
def test_500_steps_equal_apollo_torch_with_the_same_projections(
    scale_type: Any, rank: int, scale: float, limiter: bool, weight_decay: float
) -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    setting, lr = {"rank": rank, "scale": scale, "scale_type": scale_type}, 0.3 if scale_type == "channel" else 0.03
    reference = load_apollo_torch()[0].AdamW(
        [{"params": theirs, "proj": "random", "proj_type": "std", "update_proj_gap": 200, **setting}],
        lr=lr,
        weight_decay=weight_decay,
        disable_nl=not limiter,
        scale_front=weight_decay > 0,  # before or after the limiter: the same, since the limiter is homogeneous
    )
    optimizer = Apollo(
        [{"params": ours, **setting}],
        lr=lr,
        weight_decay=weight_decay,
        norm_growth=1.01 if limiter else None,
        draw=draw_as_apollo_torch,
    )
    generator, start = torch.Generator().manual_seed(1), [p.detach().clone() for p in ours]
    for step in range(500):
        set_gradients(theirs, generator, size=5.0 if step % 50 == 0 else 1.0)  # sudden growth calls the limiter
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = other.grad
        reference.step()
        optimizer.step()
        if step % 20 == 0 or step == 499:
            assert relative_difference(ours, theirs) <= 1e-5, f"step {step}"
    assert relative_difference(ours, start) > 0.3


@pytest.mark.parametrize("eps", [1e-8, 0.1])
@pytest.mark.parametrize("fused", [True, False])
def test_vectors_follow_torch_adamw(monkeypatch: pytest.MonkeyPatch, eps: float, *, fused: bool) -> None:
    if not fused:
        monkeypatch.setattr("rayrec.optim.apollo_update._FUSED_DEVICES", ())
    ours, theirs = parameters([(7,), (3, 5)]), parameters([(7,), (3, 5)])
    optimizer = Apollo([{"params": ours, "kind": "adamw", "eps": eps}], lr=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, eps=eps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        set_gradients(theirs, generator)
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = other.grad
        optimizer.step()
        reference.step()
    assert relative_difference(ours, theirs) < 1e-6


def signed_permutation(seed: int, period: int, rank: int, size: int) -> Tensor:
    """Orthogonal, and Adam does not notice it: coordinates change their order and sign only."""
    generator = torch.Generator().manual_seed(seed + period)
    signs = 2.0 * torch.randint(0, 2, (size, 1), generator=generator) - 1.0
    return signs * torch.eye(size)[torch.randperm(size, generator=generator)]


@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8), (40, 30), (30, 40)])
def test_scales_at_full_rank_with_an_orthogonal_projection_are_adams_norm_ratios(
    shape: tuple[int, int], scale_type: Any
) -> None:
    (parameter,) = parameters([shape])
    expected = parameter.detach().clone()
    optimizer = Apollo([parameter], lr=0.1, rank=1.0, scale_type=scale_type, norm_growth=None, draw=signed_permutation)
    mean, square = torch.zeros(shape), torch.zeros(shape)
    dim = (0, 1) if scale_type == "tensor" else 1 if shape[0] >= shape[1] else 0
    for step in range(1, 7):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        parameter.grad = gradient
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        adam = mean / (square.sqrt() + 1e-6)
        ratio = adam.norm(dim=dim, keepdim=True) / gradient.norm(dim=dim, keepdim=True)
        expected -= 0.1 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * ratio * gradient
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (40, 30), (30, 40)])
@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
def test_zero_gradients_change_nothing_and_do_not_lock_the_limiter(shape: tuple[int, int], scale_type: Any) -> None:
    (parameter,) = parameters([shape])
    before = parameter.detach().clone()
    optimizer = Apollo([parameter], lr=0.1, rank=2, scale_type=scale_type)
    parameter.grad = torch.zeros(shape)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before, rtol=0, atol=0)
    generator = torch.Generator().manual_seed(0)
    set_gradients([parameter], generator)
    optimizer.step()
    first = (parameter - before).norm()
    parameter.grad = torch.zeros(shape)
    optimizer.step()
    between = parameter.detach().clone()
    set_gradients([parameter], generator)
    optimizer.step()
    assert parameter.isfinite().all()
    assert (parameter - between).norm() > 0.1 * first > 0


@given(
    rows=st.integers(2, 40),
    columns=st.integers(2, 40),
    tasks=st.integers(1, 4),
    scale_type=st.sampled_from(["channel", "tensor"]),
    norm_growth=st.sampled_from([1.01, None]),
)
@settings(max_examples=25, deadline=None)
def test_a_batch_of_matrices_steps_like_its_members_alone(
    rows: int, columns: int, tasks: int, scale_type: Any, norm_growth: float | None
) -> None:
    (tower,) = parameters([(tasks, rows, columns)])
    alone = [nn.Parameter(matrix.clone()) for matrix in tower.detach()]
    setting = {"rank": 0.5, "scale_type": scale_type, "norm_growth": norm_growth}
    batched = Apollo([{"params": [tower], "batch_dims": 1}], lr=0.1, weight_decay=0.1, **setting)
    single = Apollo(alone, lr=0.1, weight_decay=0.1, **setting)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        set_gradients([tower], generator)
        assert tower.grad is not None
        for parameter, gradient in zip(alone, tower.grad, strict=True):
            parameter.grad = gradient
        batched.step()
        single.step()
    torch.testing.assert_close(tower.detach(), torch.stack([p.detach() for p in alone]), rtol=1e-5, atol=1e-6)


def test_a_convolution_steps_like_its_flattened_weight_in_any_memory_format() -> None:
    for shape in ((32, 6, 3, 3), (8, 16, 3, 3), (40, 8, 2, 2), (8, 40, 2, 2)):
        (conv,) = parameters([shape])
        flat = nn.Parameter(conv.detach().flatten(1).clone())
        last = nn.Parameter(conv.detach().clone().to(memory_format=torch.channels_last))
        optimizers = [Apollo([p], lr=0.1, rank=3, weight_decay=0.1) for p in (conv, flat, last)]
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            set_gradients([conv], generator)
            assert conv.grad is not None
            flat.grad, last.grad = conv.grad.flatten(1), conv.grad.to(memory_format=torch.channels_last)
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(conv.detach().flatten(1), flat.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(conv.detach(), last.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 8), (40, 30)])
def test_an_update_grows_by_at_most_the_given_factor(shape: tuple[int, int]) -> None:
    (parameter,) = parameters([shape])
    optimizer = Apollo([parameter], lr=1.0, rank=2, betas=(0.0, 0.0), norm_growth=1.5)
    sizes, generator = [], torch.Generator().manual_seed(0)
    for step in range(6):
        before = parameter.detach().clone()
        set_gradients([parameter], generator, size=3.0**step)
        optimizer.param_groups[0]["eps"] = 3.0**step * 1e6  # makes Adam's direction proportional to the gradient
        optimizer.param_groups[0]["scale"] = (3.0**step * 1e6) ** 2 * 3.0 ** (-step)
        optimizer.step()
        sizes.append(float((parameter.detach() - before).norm() / optimizer.param_groups[0]["scale"] ** 0.5))
    ratios = [b / a for a, b in pairwise(sizes)]
    assert max(ratios) <= 1.5 * (1 + 1e-4)


def test_a_learning_rate_schedule_scales_the_update() -> None:
    slow, fast = parameters([(12, 8)]), parameters([(12, 8)])
    optimizers = [Apollo(p, lr=0.01, rank=2) for p in (slow, fast)]
    before = slow[0].detach().clone()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizers[1], lambda step: 3.0)
    for params, optimizer in zip((slow, fast), optimizers, strict=True):
        set_gradients(params, torch.Generator().manual_seed(0))
        optimizer.step()
    schedule.step()
    torch.testing.assert_close(fast[0] - before, 3.0 * (slow[0] - before), rtol=1e-4, atol=1e-6)


def test_groups_keep_their_own_settings() -> None:
    a, b = parameters([(12, 8), (12, 8)])
    together = Apollo(
        [{"params": [a], "rank": 2, "lr": 0.1}, {"params": [b], "rank": 1, "scale_type": "tensor"}], lr=0.01
    )
    a2, b2 = parameters([(12, 8), (12, 8)])
    apart = [Apollo([a2], rank=2, lr=0.1), Apollo([b2], rank=1, scale_type="tensor", lr=0.01)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        set_gradients([a, b], generator)
        a2.grad, b2.grad = a.grad, b.grad
        together.step()
        for optimizer in apart:
            optimizer.step()
    assert torch.equal(a, a2)
    assert torch.equal(b, b2)


def test_parameters_without_a_gradient_wait_and_their_steps_do_not_count() -> None:
    shapes = [(12, 8)] * 3
    together, alone = parameters(shapes), parameters(shapes)
    joint = Apollo(together, lr=0.1, rank=2, projection_period=2)
    single = [Apollo([p], lr=0.1, rank=2, projection_period=2) for p in alone]
    generator = torch.Generator().manual_seed(0)
    for present in ((0, 1, 2), (0, 2), (1,), (0, 2), (0, 1, 2), (2,)):
        set_gradients(together, generator)
        for i, (a, b) in enumerate(zip(together, alone, strict=True)):
            if i not in present:
                a.grad = None
            b.grad = a.grad
        joint.step()
        for optimizer in single:
            optimizer.step()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert [joint.state[p]["step"] for p in together] == [4, 3, 5]


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16), (12, 300), (1024, 512)])
def test_projections_of_one_matrix_and_of_a_stack_agree(shape: tuple[int, int]) -> None:
    gradients = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for rank in (1, 4):
        projection = draw_projection(0, 0, rank, min(shape))
        stacked = project_stack(gradients, projection)
        tall = shape[0] >= shape[1]
        exact = gradients.double() @ projection.double().t() if tall else projection.double() @ gradients.double()
        torch.testing.assert_close(stacked.double(), exact, rtol=1e-4, atol=1e-5)
        for gradient, expected in zip(gradients, exact, strict=True):
            torch.testing.assert_close(project(gradient, projection).double(), expected, rtol=1e-4, atol=1e-5)


def test_projections_have_variance_one_over_rank_and_change_with_each_input() -> None:
    drawn = draw_projection(0, 0, 64, 4096)
    assert drawn.mean().abs() < 1e-3
    assert abs(64 * drawn.var().item() - 1) < 0.01
    others = [
        draw_projection(1, 0, 64, 4096),
        draw_projection(0, 1, 64, 4096),
        draw_projection(0, 0, 64, 4097)[:, :4096],
    ]
    for other in others:
        assert (drawn * other).mean().abs() * 64 < 0.01
    assert torch.equal(drawn, draw_projection(0, 0, 64, 4096))


def test_only_small_matrices_are_copied_into_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Size] = []

    def recording(params: list[Tensor], *others: Any) -> None:
        copied.extend(p.shape for p in params)
        update_stacked(params, *others)

    monkeypatch.setattr(apollo, "update_stacked", recording)
    params = parameters([(20, 20), (20, 20), (30, 30), (30, 30)])  # 400 and 900 elements, 600 being the limit
    set_gradients(params, torch.Generator().manual_seed(0))
    Apollo(params, rank=2).step()
    assert copied == [(20, 20), (20, 20)]


def test_what_is_not_given_is_as_published() -> None:
    (group,) = Apollo(parameters([(12, 8)])).param_groups
    wanted = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "rank": 0.25, "scale_type": "channel",
              "scale": 1.0, "projection_period": 200, "norm_growth": 1.01}  # fmt: skip
    assert {name: group[name] for name in wanted} == wanted


def test_projections_of_any_seed_can_be_drawn() -> None:
    drawn = [draw_projection(seed, 10**6, 4, 64) for seed in (0, 99, 10**6, 2**31)]
    for i, one in enumerate(drawn):
        assert one.isfinite().all()
        for other in drawn[:i]:
            assert not torch.equal(one, other)


def test_the_plain_kernels_equal_the_fused_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(12, 8), (8, 12), (40, 30), (9,)]
    results = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr("rayrec.optim.apollo_update._FUSED_DEVICES", ())
            monkeypatch.setattr("rayrec.optim.random_projection._one_dnn_linear", None)
        params = parameters(shapes)
        optimizer = Apollo(
            [{"params": params[:3], "rank": 4}, {"params": params[3:], "kind": "adamw"}], weight_decay=0.1
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(10):
            set_gradients(params, generator)
            optimizer.step()
        results.append(params)
    assert relative_difference(*results) < 1e-5
