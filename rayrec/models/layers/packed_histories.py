"""The real positions of a batch of histories, packed: what runs on positions alone never multiplies padding."""

import math

import torch
from torch import Tensor

from rayrec.models.layers.item_softmax import once_each


class PackedHistories:
    """Where the T real positions of a batch of left-padded histories (B, L) lie."""

    def __init__(self, history: Tensor) -> None:
        length = history.shape[1]
        self.shape, self.history = history.shape, history
        self.real = history > 0  # (B, L)
        self.items = history[self.real]  # (T,)
        self.flat = self.real.flatten().nonzero().squeeze(1)  # (T,)
        self.position = (self.real.cumsum(1) - 1)[self.real]  # (T,) counted from the oldest item
        causal = torch.ones(length, length, dtype=torch.bool, device=history.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=history.device)  # padding sees itself, so that no row is empty
        visible = (causal & self.real.unsqueeze(1)) | own  # (B, L, L)
        self.bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, -math.inf).unsqueeze(1)

    def before(self) -> Tensor:
        """(T, L) the items that each real position has read, its own among them, each once; the rest is 0."""
        return self._up_to_here(once_each(self.history))

    def read(self) -> Tensor:
        """(T, L) the items that each real position has read, its own among them; 0 behind it."""
        return self._up_to_here(self.history)

    def newest(self) -> Tensor:
        """(T, L) bool: where each real position's own item stands in ``read``."""
        length = self.shape[1]
        return torch.arange(length, device=self.flat.device) == (self.flat % length).unsqueeze(1)

    def _up_to_here(self, history: Tensor) -> Tensor:
        length = self.shape[1]
        row, column = self.flat // length, self.flat % length
        return history[row] * (torch.arange(length, device=self.flat.device) <= column.unsqueeze(1))

    def spread(self, x: Tensor) -> Tensor:
        """(T, C) to (B, L, C), zeros at padding."""
        return x.new_zeros(self.shape.numel(), x.shape[1]).index_copy(0, self.flat, x).view(*self.shape, -1)

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, C) to (T, C)."""
        return x.flatten(0, 1)[self.flat]
