"""T small networks of one shape as stacked parameters: the towers of all tasks, or the experts of a mixture."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class StackedLinear(nn.Module):
    """T linear layers in one parameter: input (B, I) for all or (T, B, I) one each, output (T, B, O).

    One input expanded to (T, B, I) costs one product too, gives the same bits as (B, I), and gets a gradient for each slot.
    """

    def __init__(self, stack: int, width: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(stack, width, size))
        self.bias = nn.Parameter(torch.empty(stack, 1, size))
        bound = 1 / math.sqrt(width)  # as nn.Linear
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        shared = x.dim() == 2 or len(self.weight) == 1 or x.stride(0) == 0
        if not shared:
            return torch.baddbmm(self.bias, x, self.weight)
        # one product with all T matrices side by side: half the time of T products with copies of x
        product: Tensor = x @ self.joined() if x.dim() == 2 else _SharedProduct.apply(x, self.joined())  # (B, T * O)
        return self.stacked(product)

    def joined(self) -> Tensor:
        """All matrices side by side, (I, T * O)."""
        stack, width, size = self.weight.shape
        return self.weight.permute(1, 0, 2).reshape(width, stack * size)

    def stacked(self, product: Tensor) -> Tensor:
        """The output (T, B, O) of the product (B, T * O) with ``joined()``."""
        return product.view(-1, len(self.weight), self.weight.shape[2]).transpose(0, 1) + self.bias


class _SharedProduct(torch.autograd.Function):
    """x (T, B, I), one input expanded T times, times joined (I, T * O): (B, T * O), computed once and as the same product that an
    unexpanded x would get; backward gives each slot of x the gradient through its own O columns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, joined: Tensor) -> Tensor:
        product = x[0] @ joined
        ctx.save_for_backward(x[0].to(product.dtype), joined.to(product.dtype))  # lower precision under autocast
        ctx.shape, ctx.dtypes = x.shape, (x.dtype, joined.dtype)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        row, joined = ctx.saved_tensors
        stack, batch, width = ctx.shape
        size = joined.shape[1] // stack
        by_slot = gradient.view(batch, stack, size).transpose(0, 1)  # (T, B, O)
        weights = joined.view(width, stack, size).permute(1, 2, 0)  # (T, O, I)
        return torch.bmm(by_slot, weights).to(ctx.dtypes[0]), (row.t() @ gradient).to(ctx.dtypes[1])


class _ProductBeside(torch.autograd.Function):
    """x (B, I + K) and joined (I, J) to x[:, :I] @ joined, in joined's dtype, and the last K columns, in x's; their gradients go
    back in one piece."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, joined: Tensor) -> tuple[Tensor, Tensor]:
        width = len(joined)
        left = x[:, :width].to(joined.dtype)
        ctx.save_for_backward(left, joined)
        ctx.dtype = x.dtype
        return left @ joined, x[:, width:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, at_rest: Tensor) -> tuple[Tensor, Tensor]:
        left, joined = ctx.saved_tensors
        width = len(joined)
        at_x = at_rest.new_empty(len(left), width + at_rest.shape[1], dtype=ctx.dtype)
        if joined.dtype == ctx.dtype:
            torch.mm(gradient, joined.t(), out=at_x[:, :width])
        else:
            at_x[:, :width] = gradient @ joined.t()
        at_x[:, width:] = at_rest
        return at_x, left.t() @ gradient


class StackedFeedForward(nn.Module):
    """T feed-forward networks: each layer linear, ReLU, dropout; then, with ``out``, a last linear layer of that size."""

    def __init__(
        self, stack: int, width: int, sizes: Sequence[int], *, out: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = nn.ModuleList()
        for size in sizes:
            self.hidden.append(StackedLinear(stack, width, size))
            width = size
        self.dropout = nn.Dropout(dropout)
        self.last = None if out is None else StackedLinear(stack, width, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I) shared or (T, B, I) to (T, B, O)."""
        for layer in self.hidden:
            x = self.dropout(layer(x).relu())
        return x if self.last is None else self.last(x)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, I + K) to (T, B, O) of the first I columns, and the other K as they are."""
        layers = [layer for layer in (*self.hidden, self.last) if isinstance(layer, StackedLinear)]
        joined, device = layers[0].joined(), x.device.type
        if torch.is_autocast_enabled(device):
            joined = joined.to(torch.get_autocast_dtype(device))
        product, rest = _ProductBeside.apply(x, joined)
        x = layers[0].stacked(product)
        for i, layer in enumerate(layers):
            x = layer(x) if i else x
            x = self.dropout(x.relu()) if i < len(self.hidden) else x
        return x, rest
