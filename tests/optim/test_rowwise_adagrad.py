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
    torch.testing.assert_close(train(gradients, sparse=False, weight_decay=weight_decay), expected)


def test_parameters_that_are_no_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tables, not shape \(2, 3, 4\)"):
        RowwiseAdagrad([nn.Parameter(torch.zeros(2, 3, 4))])
