"""Sparse gradients of embedding tables: rows that occur several times are summed, without sorting."""

import torch
from torch import Tensor


def merge_rows(gradient: Tensor) -> Tensor:
    """A sparse (V, d) gradient with each row once, in order of first appearance by no promise; returned as it is when coalesced.

    ``Tensor.coalesce`` sorts; here every position looks up one representative of its row in a table of V positions.
    """
    if gradient.is_coalesced():
        return gradient
    indices, values = gradient._indices()[0], gradient._values()  # (n,), (n, d)
    positions = torch.arange(len(indices), device=indices.device)
    representative = torch.empty(gradient.shape[0], dtype=torch.int64, device=indices.device)
    representative[indices] = positions  # any one of a row's positions, the same for all of them
    owner = representative[indices]
    kept = owner == positions
    target = kept.cumsum(0) - 1
    rows = indices[kept]
    merged = torch.zeros(len(rows), values.shape[1], dtype=values.dtype, device=values.device)
    merged.index_add_(0, target[owner], values)
    return torch.sparse_coo_tensor(rows.unsqueeze(0), merged, gradient.shape, is_coalesced=True, check_invariants=False)
