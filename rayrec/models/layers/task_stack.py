"""T small networks of one shape as stacked parameters: the towers of all tasks, or the experts of a mixture."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """T linear layers in one parameter: input (B, I) for all or (T, B, I) one each, output (T, B, O)."""

    def __init__(self, stack: int, width: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(stack, width, size))
        self.bias = nn.Parameter(torch.empty(stack, 1, size))
        bound = 1 / math.sqrt(width)  # as nn.Linear
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return torch.baddbmm(self.bias, x, self.weight)
        stack, width, size = self.weight.shape
        # one product with all T matrices side by side: half the time of T products with copies of x
        joined = x @ self.weight.permute(1, 0, 2).reshape(width, stack * size)  # (B, T * O)
        return joined.view(len(x), stack, size).transpose(0, 1) + self.bias


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
