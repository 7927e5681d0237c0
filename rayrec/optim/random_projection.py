"""Gaussian random projections that are drawn again from a seed instead of being stored, and the product with a gradient.

A projection depends on (seed, period, rank, size) only, so all matrices with the same smaller dimension share one, and a
checkpoint needs no more than the seed.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[int, int, int, int], Tensor]

# oneDNN's float32 product uses the widest vector units of every x86 CPU and all threads, even for one column.
_one_dnn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_ROWS = 16  # of a matrix whose columns are summed at a time: they stay in the first cache
_WORTH_A_CALL = 1 << 19  # elements of a matrix from where, for one column, its start-up time is regained


def draw_projection(seed: int, period: int, rank: int, size: int) -> Tensor:
    """(rank, size) float32 on the CPU with entries N(0, 1/rank): the same on every worker, device and restart."""
    mixed = 0
    for part in (seed, period, rank, size):
        mixed = (mixed * 1_000_003 + part + 1) % (2**63)
    generator = torch.Generator().manual_seed(mixed)
    return torch.randn(rank, size, generator=generator).div_(math.sqrt(rank))


class ProjectionCache:
    """Projections in use, one a (seed, rank, size) and device; those of earlier periods are dropped."""

    def __init__(self, draw: Draw = draw_projection) -> None:
        self.draw = draw
        self._held: dict[tuple[object, ...], dict[int, Tensor]] = {}

    def get(self, seed: int, period: int, rank: int, size: int, like: Tensor) -> Tensor:
        """(rank, size) of the dtype and on the device of ``like``."""
        periods = self._held.setdefault((seed, rank, size, like.dtype, like.device), {})
        projection = periods.get(period)
        if projection is None:
            projection = self.draw(seed, period, rank, size)
            if projection.shape != (rank, size):
                raise ValueError(f"the projection has shape {tuple(projection.shape)}, not {(rank, size)}")
            projection = projection.to(like.device, like.dtype).contiguous()
            while len(periods) > 1:  # parameters that missed steps may still be one period behind
                del periods[min(periods)]
            periods[period] = projection
        return projection

    @property
    def bytes(self) -> int:
        """Memory of what is held."""
        return sum(p.nbytes for periods in self._held.values() for p in periods.values())


def project(gradient: Tensor, projection: Tensor, *, fused: bool = True) -> Tensor:
    """Project the smaller dimension of one (m, n) matrix: G Pᵀ (m, r) when m >= n, else P G (r, n); P is (r, min(m, n)).

    fused: may call oneDNN directly. Otherwise one row of P is sums of products, which a compiler takes in one pass together with
    the norms (``block_sum``).
    """
    rows, columns = gradient.shape
    if not fused and len(projection) == 1:
        if rows >= columns:
            return (gradient * projection).sum(1, keepdim=True)
        return block_sum(gradient * projection.t()).unsqueeze(0)
    if fused and _one_dnn_linear is not None and gradient.dtype == torch.float32 and gradient.device.type == "cpu":
        if rows >= columns:
            if len(projection) > 1 or gradient.numel() >= _WORTH_A_CALL:
                return _one_dnn_linear(gradient, projection, None, "none", [], "")
        elif len(projection) > 1:
            return _one_dnn_linear(projection, gradient.t(), None, "none", [], "")
    if rows >= columns:
        return gradient @ projection.t()
    return projection @ gradient


def block_sum(matrix: Tensor) -> Tensor:
    """Sums (n,) of the columns of (m, n), by blocks of rows: a compiled loop down whole columns would wait for memory."""
    rows, columns = matrix.shape
    if rows % _ROWS:
        return matrix.sum(0)
    return matrix.view(-1, _ROWS, columns).sum(1).sum(0)


def project_stack(gradients: Tensor, projection: Tensor) -> Tensor:
    """``project`` for a contiguous stack (k, m, n) of matrices: (k, m, r) or (k, r, n)."""
    stack, rows, columns = gradients.shape
    if rows >= columns:
        return (gradients.view(stack * rows, columns) @ projection.t()).view(stack, rows, -1)
    return torch.matmul(projection, gradients)
