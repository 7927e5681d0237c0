"""Row-wise Adagrad: its formula, and the same from sparse and dense gradients on any device."""

import pytest
import torch
from torch import Tensor, nn

from rayrec.optim import rowwise_adagrad
from rayrec.optim.rowwise_adagrad import RowwiseAdagrad


def train(gradients: list[Tensor], *, sparse: bool, weight_decay: float) -> Tensor:
    table = nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = RowwiseAdagrad([table], lr=0.1, weight_decay=weight_decay)
    for gradient in gradients:
        table.grad = gradient.to_sparse(1) if sparse else gradient
        optimizer.step()
    return table.detach()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sparse_dense_and_whole_table_updates_follow_the_formula(
    weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(6, 3, generator=generator) for _ in range(4)]
    for step, gradient in enumerate(gradients):
        gradient[step] = 0.0
        gradient[5] = 0.0
    expected, sums = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6)
    for gradient in gradients:
        for row in range(6):
            if gradient[row].any():
                g = gradient[row] + weight_decay * expected[row]
                sums[row] += g.square().mean()
                expected[row] -= 0.1 * g / (sums[row].sqrt() + 1e-8)
    for sparse in (True, False):
        torch.testing.assert_close(train(gradients, sparse=sparse, weight_decay=weight_decay), expected)
    monkeypatch.setattr(rowwise_adagrad, "_CHEAP_TO_LOOK_AT", ())
    for sparse in (True, False):
        torch.testing.assert_close(train(gradients, sparse=sparse, weight_decay=weight_decay), expected)


def test_at_a_learning_rate_of_0_a_table_stays_and_its_sums_go_on() -> None:
    table = nn.Parameter(torch.ones(2, 3))
    optimizer = RowwiseAdagrad([table], lr=0.0)
    table.grad = torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    optimizer.step()
    assert torch.equal(table, torch.ones(2, 3))
    assert optimizer.state[table]["sum"].tolist() == [4.0, 0.0]


def test_parameters_that_are_no_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tables, not shape \(2, 3, 4\)"):
        RowwiseAdagrad([nn.Parameter(torch.zeros(2, 3, 4))])


def test_with_one_column_it_is_torch_adagrad() -> None:
    ours, reference = (nn.Parameter(torch.linspace(-1, 1, 6).unsqueeze(1)) for _ in range(2))
    optimizers = RowwiseAdagrad([ours], lr=0.3, eps=1e-10), torch.optim.Adagrad([reference], lr=0.3, eps=1e-10)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        ours.grad = torch.randn(6, 1, generator=generator)
        reference.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, reference)


def test_a_row_looked_up_twice_takes_one_step_with_the_sum_of_its_gradients() -> None:
    tables = []
    for rows, values in (([3, 1, 3], [[1.0, 2.0], [5.0, 6.0], [3.0, -1.0]]), ([1, 3], [[5.0, 6.0], [4.0, 1.0]])):
        table = nn.Parameter(torch.ones(4, 2))
        optimizer = RowwiseAdagrad([table], lr=0.1)
        table.grad = torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(values), (4, 2), check_invariants=True)
        optimizer.step()
        tables.append((table.detach(), optimizer.state[table]["sum"]))
    for ours, expected in zip(*tables, strict=True):
        torch.testing.assert_close(ours, expected)
    table, sums = tables[0]
    assert torch.equal(table[[0, 2]], torch.ones(2, 2))  # untouched, and so are their accumulators
    assert torch.equal(sums[[0, 2]], torch.zeros(2))
    torch.testing.assert_close(sums[3], torch.tensor((4.0**2 + 1.0**2) / 2))


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("given", ["sparse", "dense", "elsewhere"])
def test_weight_decay_leaves_rows_without_a_gradient_alone(
    given: str, by_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1 has a gradient; row 2 was looked up and has none."""
    if given == "elsewhere":
        monkeypatch.setattr(rowwise_adagrad, "_CHEAP_TO_LOOK_AT", ())
    table = nn.Parameter(torch.ones(4, 2))
    table.grad = torch.sparse_coo_tensor([[1, 2]], [[1.0, 1.0], [0.0, 0.0]], (4, 2), check_invariants=True)
    if given != "sparse":
        table.grad = table.grad.to_dense()
    RowwiseAdagrad([table], lr=0.1, weight_decay=0.5, by_kernel=by_kernel).step()
    assert torch.equal(table.detach()[[0, 2, 3]], torch.ones(3, 2))
    torch.testing.assert_close(table.detach()[1], torch.full((2,), 0.9))
