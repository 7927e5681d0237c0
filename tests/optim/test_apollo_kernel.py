"""The CPU's kernel of APOLLO: equal to the eager operations for every shape and setting, and eager where it cannot be built."""

import shutil
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayrec.optim import OptimizerConfig, apollo_kernel, build_optimizer, compiling
from rayrec.optim.apollo import Apollo

NO_COMPILER = "/nowhere/g++"
SHAPES = ((64, 32), (32, 64), (67, 31), (31, 67), (3, 2053), (9, 2100), (5, 7), (7, 5), (8, 8), (129, 3)) + (
    (64, 32),
    (5, 7),
) * 2

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _small_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices count as large."""
    monkeypatch.setattr("rayrec.optim.apollo_stacks.STACK_LIMIT", 1000)


def matrices(shapes: Iterable[tuple[int, ...]]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step + 1)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * (1 + step % 3)  # the limiter has work


def both(
    shapes: Iterable[tuple[int, ...]], steps: int = 5, **settings: Any
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters after some steps with and without the kernel."""
    assert apollo_kernel.cpu_kernel() is not None
    settings = {"lr": 0.1, "projection_period": 2} | settings
    ours, eager = matrices(shapes), matrices(shapes)
    for params, kernel in ((ours, True), (eager, False)):
        optimizer = Apollo(params, cpu_kernel=kernel, **settings)
        for step in range(steps):
            set_gradients(params, step)
            optimizer.step()
    return ours, eager


def assert_equal(ours: Iterable[Tensor], eager: Iterable[Tensor]) -> None:
    """Each tensor to a millionth of its norm."""
    for mine, theirs in zip(ours, eager, strict=True):
        assert (mine - theirs).norm() < 1e-6 * theirs.norm()


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes that the kernel is called with."""
    calls: list[tuple[int, int]] = []
    step = apollo_kernel.cpu_kernel()
    assert step is not None

    def counted(count: int, rows: int, columns: int, *rest: Any) -> None:
        calls.append((rows, columns))
        step(count, rows, columns, *rest)

    monkeypatch.setattr("rayrec.optim.apollo.cpu_kernel", lambda: counted)
    return calls


@needs_compiler
@pytest.mark.parametrize(
    ("norm_growth", "weight_decay", "threads"), [(None, 0.0, 1), (None, 0.1, 1), (1.01, 0.1, 1), (1.01, 0.1, 2)]
)
@pytest.mark.parametrize(("scale_type", "rank"), [("tensor", 1), ("tensor", 3), ("channel", 2), ("channel", 3)])
def test_the_kernel_steps_as_the_eager_operations_do(
    scale_type: Any, rank: int, norm_growth: float | None, weight_decay: float, threads: int
) -> None:
    torch.set_num_threads(threads)  # the directory's fixture resets them
    settings = {"scale_type": scale_type, "rank": rank, "norm_growth": norm_growth, "weight_decay": weight_decay}
    assert_equal(*both(SHAPES, **settings))


@needs_compiler
def test_torchs_default_dtype_is_not_that_of_what_the_kernel_writes() -> None:
    start, gradient = torch.randn(31, 67), torch.randn(31, 67)
    steps = []
    for kernel in (True, False):
        parameter = nn.Parameter(start.clone())
        optimizer = Apollo([parameter], lr=0.1, scale_type="tensor", rank=1, cpu_kernel=kernel)
        parameter.grad = gradient.clone()
        torch.set_default_dtype(torch.bfloat16)
        try:
            optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
        steps.append(parameter.detach())
    assert_equal(steps[:1], steps[1:])


@needs_compiler
def test_one_scale_a_channel_from_one_product_each() -> None:
    """At the first step only: later on a channel whose product is near zero has a scale of rounding errors."""
    assert_equal(*both(SHAPES, steps=1, rank=1, scale_type="channel", eps=0.1))


@needs_compiler
def test_several_matrices_a_parameter_and_convolutions(kernel_calls: list[tuple[int, int]]) -> None:
    assert_equal(*both(((3, 40, 32), (3, 24, 32)), batch_dims=1, rank=2))
    assert_equal(*both(((3, 40, 32), (3, 24, 32)), batch_dims=1, rank=1, scale_type="tensor"))
    assert_equal(*both(((6, 8, 3, 3), (36, 32, 3, 3)), rank=4))
    assert {(40, 32), (24, 32), (6, 72), (36, 288)} == set(kernel_calls)


@needs_compiler
@pytest.mark.parametrize(("scale_type", "rank"), [("tensor", 1), ("channel", 2)])
def test_members_without_a_gradient_and_gradients_that_are_not_contiguous(scale_type: Any, rank: int) -> None:
    shapes = ((40, 32),) * 3 + ((24, 16),) * 3
    ours, eager = matrices(shapes), matrices(shapes)
    for params, kernel in ((ours, True), (eager, False)):
        optimizer = Apollo(params, lr=0.1, rank=rank, scale_type=scale_type, cpu_kernel=kernel)
        for step in range(4):
            set_gradients(params, step)
            params[step % 3].grad = params[4].grad = None
            params[5].grad = torch.randn((16, 24), generator=torch.Generator().manual_seed(step)).t()
            optimizer.step()
    assert_equal(ours, eager)


@needs_compiler
def test_a_state_saved_without_the_kernel_goes_on_with_it() -> None:
    params = matrices(SHAPES)
    optimizer = Apollo(params, lr=0.1, rank=1, scale_type="tensor", projection_period=2)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    other = Apollo(resumed, lr=0.1, rank=1, scale_type="tensor", projection_period=2, cpu_kernel=True)
    other.load_state_dict(optimizer.state_dict())
    for step in range(3, 6):
        for group, one in ((params, optimizer), (resumed, other)):
            set_gradients(group, step)
            one.step()
    assert_equal(resumed, params)
    for mine, theirs in zip(resumed, params, strict=True):
        for key, value in optimizer.state[theirs].items():
            torch.testing.assert_close(other.state[mine][key], value, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_what_is_not_contiguous_float32_is_left_to_the_eager_operations(kernel_calls: list[tuple[int, int]]) -> None:
    half = nn.Parameter(torch.ones(32, 16, dtype=torch.bfloat16))
    turned = nn.Parameter(torch.ones(16, 32).t())
    plain = nn.Parameter(torch.ones(48, 16))
    for parameter in (half, turned, plain):
        parameter.grad = torch.ones_like(parameter)
    optimizer = Apollo([half, turned, plain], lr=0.1, rank=1, state_dtype=torch.float32, cpu_kernel=True)
    optimizer.step()
    assert kernel_calls == [(48, 16)]
    assert all((parameter < 1).all() for parameter in (half, turned, plain))


@needs_compiler
@pytest.mark.parametrize("scale_type", ["tensor", "channel"])
@pytest.mark.parametrize("shape", [(40, 32), (16, 24)])
def test_a_zero_gradient_changes_nothing_and_a_nan_spreads_as_without_the_kernel(
    shape: tuple[int, int], scale_type: Any
) -> None:
    (parameter,) = matrices([shape])
    optimizer = Apollo([parameter], lr=0.1, rank=1, scale_type=scale_type, cpu_kernel=True)
    set_gradients([parameter], 0)
    optimizer.step()
    before, norm = parameter.detach().clone(), optimizer.state[parameter]["update_norm"].clone()
    parameter.grad = torch.zeros(shape)
    optimizer.step()
    assert torch.equal(parameter, before)
    assert torch.equal(optimizer.state[parameter]["update_norm"], norm)
    parameter.grad[0, 0] = float("nan")
    optimizer.step()
    assert parameter.isnan().all()
    assert torch.equal(optimizer.state[parameter]["update_norm"], norm)


def test_where_the_compiler_is_missing_one_line_names_it_and_the_step_is_eager(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_told", set())
    monkeypatch.setenv("CXX", NO_COMPILER)
    config = OptimizerConfig(optimizer="apollo_mini", learning_rate=0.1)
    found = []
    for compiled in (True, False):
        model = nn.ParameterList(matrices([(16, 24), (40, 32)]))
        optimizer = build_optimizer(model, config, compiled=compiled)
        set_gradients(list(model), 0)
        optimizer.step()
        found.append(list(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("the optimizer's update is not compiled (")
    assert NO_COMPILER in line


def test_a_compiler_that_fails_is_told_with_its_first_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_told", set())
    monkeypatch.setenv("CXX", "sh -c 'echo no licence >&2; exit 3'")
    assert apollo_kernel.cpu_kernel() is None
    assert "no licence" in capfd.readouterr().err
