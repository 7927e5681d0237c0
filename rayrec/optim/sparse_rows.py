"""Sparse gradients of embedding tables: rows that occur several times are summed."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_INT32 = 2**31


def merge_rows(gradient: Tensor) -> Tensor:
    """A sparse (V, d) gradient with each row once, in ascending order; returned as it is when coalesced.

    The same as ``Tensor.coalesce``, and faster: rows are sorted as 32-bit numbers, and each one's values are summed as
    a bag, in their order.
    """
    if gradient.is_coalesced():
        return gradient
    indices, values = gradient._indices()[0], gradient._values()  # (n,), (n, d)
    if bool((indices[1:] > indices[:-1]).all()):  # gradients lose the mark when torch hands them on
        return torch.sparse_coo_tensor(
            gradient._indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
        )
    keys = indices.int() if gradient.shape[0] < _INT32 else indices
    ordered, order = keys.sort(stable=True)
    rows, counts = ordered.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    merged = embedding_bag(order, values, starts, mode="sum")
    return torch.sparse_coo_tensor(
        rows.to(torch.int64).unsqueeze(0), merged, gradient.shape, is_coalesced=True, check_invariants=False
    )
