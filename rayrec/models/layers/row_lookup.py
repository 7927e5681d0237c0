"""Rows of embedding tables by id, with gradients that hold each row once.

torch's own sparse gradients repeat a row for each time it was looked up, and what reads them must merge them. Here a batch's ids
are sorted once for all tables that they index, in the first backward pass that needs it.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, embedding_bag


class LookedUp:
    """Ids (B, F) int64 of rows, the same ones in each table asked for. A table with ``sparse`` gets a coalesced gradient."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def rows(self, table: nn.Embedding) -> Tensor:
        """(B, F, d)."""
        if self._merges(table):
            rows: Tensor = _Rows.apply(table.weight, self)
            return rows
        return embedding(self.ids, table.weight, sparse=table.sparse)

    def sums(self, table: nn.Embedding) -> Tensor:
        """(B, d): the rows of each line of ids summed."""
        if not self.ids.shape[1]:  # a bag of no ids is an error in torch
            return table.weight.new_zeros(len(self.ids), table.embedding_dim)
        if self._merges(table):
            sums: Tensor = _Sums.apply(table.weight, self)
            return sums
        return embedding_bag(self.ids, table.weight, mode="sum", sparse=table.sparse)

    def _merges(self, table: nn.Embedding) -> bool:
        return table.sparse and torch.is_grad_enabled() and self.ids.numel() > 0

    @cached_property
    def by_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (n,) that occur, ascending; positions (B * F,) in the flattened ids, row by row; where each row's begin, (n,)."""
        keys = self.ids.flatten()
        if int(keys.max()) < 2**31:  # sorted in half the time
            keys = keys.int()
        ordered, positions = keys.sort(stable=True)
        rows, counts = ordered.unique_consecutive(return_counts=True)
        return rows.to(torch.int64), positions, counts.cumsum(0) - counts

    @cached_property
    def lines(self) -> Tensor:
        """(B * F,) the line of ids that each of ``by_row``'s positions is in."""
        return self.by_row[1] // self.ids.shape[1]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, looked_up: LookedUp) -> Tensor:
        ctx.looked_up, ctx.shape = looked_up, weight.shape
        # bags of one row each: unlike a plain lookup it fetches rows ahead
        ids = looked_up.ids
        return _bags(ids.reshape(-1, 1), weight).view(*ids.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows, positions, starts = ctx.looked_up.by_row
        count, fields, dim = gradient.shape
        step = gradient.stride(0)
        with_gaps = gradient.stride()[1:] == (dim, 1) and step > fields * dim and step % dim == 0
        if with_gaps:  # as it lies: (n, d), of which some rows are not ours
            values = gradient.as_strided(((count - 1) * step // dim + fields, dim), (dim, 1))
            positions = positions + ctx.looked_up.lines * (step // dim - fields)
        else:
            values = gradient.reshape(len(positions), dim)  # (B * F, d)
        return _sparse(rows, embedding_bag(positions, values, starts, mode="sum"), ctx.shape), None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, looked_up: LookedUp) -> Tensor:
        ctx.looked_up, ctx.shape = looked_up, weight.shape
        return _bags(looked_up.ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows, _, starts = ctx.looked_up.by_row
        values = embedding_bag(ctx.looked_up.lines, gradient.contiguous(), starts, mode="sum")
        return _sparse(rows, values, ctx.shape), None


def _bags(ids: Tensor, weight: Tensor) -> Tensor:
    # a weight that wants a gradient would cost an index of each bag too, for torch's own way back
    return embedding_bag(ids, weight.detach(), mode="sum")


def _sparse(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    return torch.sparse_coo_tensor(rows.unsqueeze(0), values, shape, is_coalesced=True, check_invariants=False)
