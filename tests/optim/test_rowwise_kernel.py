"""The CPU's kernel of row-wise Adagrad: equal to the eager operations, which step where it does not."""

import os
import shutil
from typing import Any
from uuid import uuid4

import pytest
import torch
from torch import Tensor, nn

from rayrec.optim import OptimizerConfig, build_optimizer, compiling, rowwise_adagrad
from rayrec.optim.apollo import Apollo
from rayrec.optim.rowwise_adagrad import RowwiseAdagrad

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The gradients' shapes that the kernel is called with."""
    calls: list[tuple[int, int]] = []
    step = rowwise_adagrad._kernel()
    assert step is not None

    def counted(rows: int, columns: int, *rest: Any) -> None:
        calls.append((rows, columns))
        step(rows, columns, *rest)

    monkeypatch.setattr(rowwise_adagrad, "_kernel", lambda: counted)
    return calls


def gradients(shape: tuple[int, int], sparse: bool) -> list[Tensor]:
    """Of some steps; rows occur several times, and the last one never."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(4):
        rows = torch.randint(0, shape[0] - 1, (1, shape[0]), generator=generator)
        values = torch.randn(shape, generator=generator)
        values[rows[0] == 1] = 0.0  # looked up, without a gradient
        gradient = torch.sparse_coo_tensor(rows, values, shape, check_invariants=True)
        found.append(gradient if sparse else gradient.to_dense())
    return found


@needs_compiler
@pytest.mark.parametrize(("weight_decay", "threads"), [(0.0, 1), (0.1, 1), (0.1, 2)])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("shape", [(40, 1), (5, 3), (97, 16), (33, 37)])
def test_the_kernel_steps_as_the_eager_operations_do(
    shape: tuple[int, int], sparse: bool, weight_decay: float, threads: int, kernel_calls: list[tuple[int, int]]
) -> None:
    torch.set_num_threads(threads)  # the directory's fixture resets them
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, eager = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        RowwiseAdagrad([table], lr=0.1, weight_decay=weight_decay, by_kernel=table is ours) for table in (ours, eager)
    ]
    for gradient in gradients(shape, sparse):
        for table, optimizer in zip((ours, eager), optimizers, strict=True):
            table.grad = gradient.clone()
            optimizer.step()
    assert len(kernel_calls) == 4
    for mine, theirs in (
        (ours.detach(), eager.detach()),
        (optimizers[0].state[ours]["sum"], optimizers[1].state[eager]["sum"]),
    ):
        assert (mine - theirs).norm() < 1e-6 * theirs.norm()
    assert torch.equal(ours[-1], start[-1])


@needs_compiler
def test_what_is_not_contiguous_float32_is_left_to_the_eager_operations(kernel_calls: list[tuple[int, int]]) -> None:
    tables = [nn.Parameter(torch.ones(6, 4, dtype=torch.float64)), nn.Parameter(torch.ones(4, 6).t())]
    for table in tables:
        table.grad = torch.ones_like(table)
    RowwiseAdagrad(tables, by_kernel=True).step()
    assert not kernel_calls
    assert all((table < 1).all() for table in tables)


@needs_compiler
def test_sums_of_another_type_are_left_to_the_eager_operations(kernel_calls: list[tuple[int, int]]) -> None:
    table = nn.Parameter(torch.ones(6, 4))
    optimizer = RowwiseAdagrad([table], by_kernel=True)
    for _ in range(2):
        table.grad = torch.ones(6, 4)
        optimizer.step()
        (state,) = optimizer.state.values()
        (name,) = (name for name, value in state.items() if torch.is_tensor(value) and value.shape == (6,))
        state[name] = state[name].double()
    assert len(kernel_calls) == 1
    torch.testing.assert_close(state[name], torch.full((6,), 2.0, dtype=torch.float64))


@needs_compiler
def test_without_decay_an_infinite_weight_stays_alone_in_its_row(kernel_calls: list[tuple[int, int]]) -> None:
    table = nn.Parameter(torch.ones(2, 4))
    table.data[0, 1] = torch.inf
    table.grad = torch.ones(2, 4)
    RowwiseAdagrad([table], by_kernel=True).step()
    assert len(kernel_calls) == 1
    assert table.isfinite().sum() == 7


@needs_compiler
@pytest.mark.parametrize("optimizer", ["adamw", "apollo"])
def test_a_compiled_update_takes_tables_beside_every_optimizer(
    optimizer: Any, kernel_calls: list[tuple[int, int]]
) -> None:
    for compiled in (False, True):
        table = nn.Embedding(9, 4)
        built = build_optimizer(nn.Sequential(table), OptimizerConfig(optimizer=optimizer), compiled=compiled)
        table(torch.tensor([1, 3, 1])).sum().backward()
        built.step()
        assert kernel_calls == [(2, 4)] * compiled


@needs_compiler
def test_tables_of_apollos_own_groups_are_the_kernels_too(kernel_calls: list[tuple[int, int]]) -> None:
    table = nn.Parameter(torch.ones(5, 3))
    table.grad = torch.ones(5, 3)
    Apollo([{"params": [table], "kind": "rowwise_adagrad"}], cpu_kernel=True).step()
    assert kernel_calls == [(5, 3)]


def test_where_the_compiler_is_missing_one_line_says_so_and_the_step_is_eager(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_told", set())
    monkeypatch.setenv("CXX", f"/nowhere/{uuid4()}/g++")  # what a compiler gave is remembered by its name
    tables = [nn.Parameter(torch.ones(5, 3)) for _ in range(2)]
    for table in tables:
        table.grad = torch.ones(5, 3)
        optimizer = RowwiseAdagrad([table], by_kernel=table is tables[0])
        for _ in range(2):
            optimizer.step()
    assert torch.equal(*tables)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("the optimizer's update is not compiled (")
    assert os.environ["CXX"] in line
