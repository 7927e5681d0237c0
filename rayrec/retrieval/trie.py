"""The trie of all items' semantic IDs as flat arrays: which tokens may follow a prefix, for whole batches of prefixes at once."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemTrie:
    """Nodes of a depth are numbered in lexicographic order of their prefixes; the root is node 0 of depth 0.

    offsets: by depth 0..M-1, (nodes of that depth + 1,) int64; node n's children are nodes offsets[n]..offsets[n + 1] - 1 of the
    next depth. tokens: by depth 0..M-1, (nodes of the next depth,) int64, the token that leads to each.
    items: (N,) int64, the item at each leaf. widest: by depth, the most children of one node.
    """

    offsets: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    items: Tensor
    widest: tuple[int, ...]

    @staticmethod
    def of(item_tokens: Tensor) -> "ItemTrie":
        """From tokens by item (N + 1, M) int64, row 0 padding, rows 1.. all different.

        Raises ValueError when two items share a tuple.
        """
        tuples = item_tokens[1:].cpu()
        _, order = torch.unique(tuples, dim=0, return_inverse=True)
        if len(order) and int(order.max()) + 1 != len(order):
            raise ValueError("two items share a tuple of tokens")
        items = torch.empty_like(order)
        items[order] = torch.arange(1, len(order) + 1)
        ordered = tuples[items - 1]  # lexicographic
        changed = torch.ones_like(ordered, dtype=torch.bool)
        changed[1:] = (ordered[1:] != ordered[:-1]).long().cumsum(1) > 0  # a prefix of that many tokens begins here
        starts = [torch.zeros(1, dtype=torch.int64), *(column.nonzero().squeeze(1) for column in changed.unbind(1))]
        offsets, tokens = [], []
        for depth, (parents, children) in enumerate(pairwise(starts)):
            bounds = torch.searchsorted(children, parents)
            offsets.append(torch.cat([bounds, torch.tensor([len(children)])]))
            tokens.append(ordered[children, depth].contiguous())
        widest = tuple(int(o.diff().max()) for o in offsets)
        return ItemTrie(tuple(offsets), tuple(tokens), items, widest)

    @property
    def depth(self) -> int:
        """M, the number of tokens of an item."""
        return len(self.tokens)

    def to(self, device: torch.device | str) -> "ItemTrie":
        return ItemTrie(
            tuple(o.to(device) for o in self.offsets),
            tuple(t.to(device) for t in self.tokens),
            self.items.to(device),
            self.widest,
        )

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of nodes (...) at ``depth``: child nodes, their tokens, and which of them exist, each (..., most children).

        Places beyond a node's own children hold node and token of some child, and False.
        """
        first, last = self.offsets[depth][nodes], self.offsets[depth][nodes + 1]
        places = torch.arange(self.widest[depth], device=nodes.device)
        found = first.unsqueeze(-1) + places
        exists = found < last.unsqueeze(-1)
        found = found.clamp_max(len(self.tokens[depth]) - 1)
        return found, self.tokens[depth][found], exists
