"""Where a model's items stand in the trie of their tokens: softmaxes over the codes that continue a prefix to a real item.

With them the probabilities of all items sum to 1, and a model spends nothing on tuples that belong to no item.
"""

import torch
from torch import Tensor, nn

from rayrec.retrieval.trie import ItemTrie


class KnownItems:
    """The trie of the items' tokens, and where each item stands in it.

    slices: tokens of each level. nodes: (N + 1, M + 1) int64 node of each item's prefix by depth; row 0 is padding.
    """

    def __init__(self, item_tokens: Tensor) -> None:
        device = item_tokens.device
        trie = ItemTrie.of(item_tokens)
        tokens = item_tokens[1:]
        firsts, lasts = tokens.min(0).values.tolist(), tokens.max(0).values.tolist()
        self.slices = tuple(slice(first, last + 1) for first, last in zip(firsts, lasts, strict=True))
        self.trie = trie.to(device)
        self.nodes = torch.zeros(len(item_tokens), trie.depth + 1, dtype=torch.int64, device=device)
        nodes = torch.arange(len(self.trie.items), device=device)  # the leaves; then their parents, up to the root
        self.nodes[self.trie.items, trie.depth] = nodes
        for level in reversed(range(trie.depth)):
            nodes = torch.searchsorted(self.trie.offsets[level], nodes, right=True) - 1
            self.nodes[self.trie.items, level] = nodes

    def places(self, items: Tensor) -> Tensor:
        """(T, M) the place of each of the items' (T,) nodes among its siblings."""
        nodes = self.nodes[items]
        starts = [self.trie.offsets[level][nodes[:, level]] for level in range(self.trie.depth)]
        return nodes[:, 1:] - torch.stack(starts, 1)

    def choices(self, items: Tensor) -> Tensor:
        """(T, M) bool: whether each prefix of the items (T,), the empty one first, goes on in more than one way."""
        nodes = self.nodes[items]
        counts = [self.trie.offsets[level].diff()[nodes[:, level]] for level in range(self.trie.depth)]
        return torch.stack(counts, 1) > 1

    def child(self, level: int, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The child (...) of each of ``nodes`` (...) at depth ``level`` by its token (...); its first one where there is none."""
        children, found, exists = self.trie.children(level, nodes)
        place = ((found == tokens.unsqueeze(-1)) & exists).int().argmax(-1, keepdim=True)
        return children.gather(-1, place).squeeze(-1)

    def among_children(self, scores: Tensor, level: int, nodes: Tensor, first: int = 0) -> Tensor:
        """(..., C) of scores (..., K), of tokens ``first`` onwards: those of the children of ``nodes`` (...) at depth ``level``,
        -inf where there are fewer than C."""
        _, tokens, exists = self.trie.children(level, nodes)
        return scores.gather(-1, tokens - first).masked_fill(~exists, -torch.inf)

    def log_probabilities(self, logits: Tensor, items: Tensor) -> Tensor:
        """(T, M) log p of each code of items (T,) given those before it, from logits (T, M, V) at right prefixes."""
        nodes, places = self.nodes[items], self.places(items)
        found = [
            self.among_children(logits[:, level].float(), level, nodes[:, level])
            .log_softmax(-1)
            .gather(1, places[:, level, None])
            for level in range(self.trie.depth)
        ]
        return torch.cat(found, 1)


def forget_known(model: nn.Module, keys: object) -> None:
    """A hook behind ``load_state_dict``: loaded tokens may be those of other items."""
    model._known = None  # type: ignore[assignment]
