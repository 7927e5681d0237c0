"""Clipping by the joint norm of dense and sparse gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from rayrec.optim import clip_gradients


def parameters_with_gradients(*, sparse: bool) -> list[nn.Parameter]:
    """A table whose row 2 is looked up twice, a matrix, and a parameter without a gradient."""
    generator = torch.Generator().manual_seed(0)
    table, matrix = (nn.Parameter(torch.randn(5, 3, generator=generator)) for _ in range(2))
    unused = nn.Parameter(torch.ones(2))
    out = embedding(torch.tensor([2, 4, 2, 0]), table, sparse=sparse)
    (out.square().sum() + (out @ matrix.T).pow(3).sum()).backward()
    return [table, matrix, unused]


def dense(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.to_dense()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("largest", [0.1, 1e6])
def test_clipping_agrees_with_torch_on_dense_gradients(sparse: bool, largest: float) -> None:
    ours, reference = parameters_with_gradients(sparse=sparse), parameters_with_gradients(sparse=False)
    norm = clip_gradients(iter(ours), largest)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(reference, largest))
    for own, other in zip(ours[:2], reference[:2], strict=True):
        torch.testing.assert_close(dense(own), dense(other))
    assert ours[2].grad is None


def test_sparse_gradients_stay_sparse_with_each_row_once() -> None:
    table, matrix, unused = parameters_with_gradients(sparse=True)
    assert table.grad is not None
    assert table.grad._nnz() == 4
    clip_gradients([table, matrix, unused], 1.0)
    assert table.grad.is_sparse
    assert sorted(table.grad._indices()[0].tolist()) == [0, 2, 4]


def test_nothing_to_clip_has_norm_zero() -> None:
    assert clip_gradients([nn.Parameter(torch.ones(2))], 1.0) == 0.0


def test_a_norm_that_is_no_number_spreads() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, float("nan"), 0.0])
    assert clip_gradients([parameter], 1.0).isnan()
    assert parameter.grad.isnan().all()
