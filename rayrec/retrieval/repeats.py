"""Scores of items that a user has taken already: what an index, which knows vectors only, cannot count."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Repeats:
    """items: (B, L) of the histories, each once a row, 0 = none. shift: () that their scores get on top of inner products."""

    items: Tensor
    shift: Tensor

    def hold(self, items: Tensor) -> Tensor:
        """(B, C) bool: which of ``items`` (B, C) are in the row's history; never 0."""
        return held(items, self.items)


def held(items: Tensor, own: Tensor) -> Tensor:
    """(B, C) bool: which of ``items`` (B, C) are among the row's ``own`` (B, L); never 0."""
    width = 1 + max(_largest(items), _largest(own))
    offset = torch.arange(len(items), device=items.device).unsqueeze(1) * width
    return torch.isin(items + offset, own + offset) & (items > 0)


def count_repeats(
    query: Tensor, vectors: Tensor, repeats: Repeats, items: Tensor, scores: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best items (B, k), 0 where there are fewer, and their scores, of ``items`` (B, C) that an index found by the inner
    products ``scores`` (B, C) and the history's own items.

    query: (B, D). vectors: (N + 1, D) of all items. Exact when the index's answer is, and holds the best k + L of each row.
    """
    own = (vectors[repeats.items] @ query.unsqueeze(2)).squeeze(2).float() + repeats.shift
    own = own.masked_fill(repeats.items == 0, -torch.inf)
    both = torch.cat([scores.masked_fill(repeats.hold(items) | (items < 1), -torch.inf), own], 1)
    best, places = both.topk(min(k, both.shape[1]), 1)
    found = torch.cat([items, repeats.items], 1).gather(1, places)
    return found.masked_fill(best == -torch.inf, 0), best


def _largest(items: Tensor) -> int:
    return int(items.max()) if items.numel() else 0
