"""Beam search over the trie of items: only tuples that are items are ever scored, for all users and beams at once.

With as many beams as items this is scoring every item; with fewer, every result is still a real item with its exact
log-likelihood. Tuples have one fixed length, so there is no end token and no length penalty.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rayrec.retrieval.trie import ItemTrie


class Decoding(Protocol):
    """An autoregressive model of tokens in the middle of decoding U users, W beams each."""

    def first(self) -> Tensor:
        """Log-probabilities (U, 1, V) of the first token."""
        ...

    def next(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (U, W', V) of what follows when beam w continues beam parents[:, w] (U, W') by tokens (U, W')."""
        ...


@dataclass(frozen=True)
class Beams:
    """items: (U, W) int64, best first, 0 where fewer than W items were reachable. scores: (U, W) log-likelihoods, -inf there."""

    items: Tensor
    scores: Tensor


@torch.no_grad()
def beam_search(trie: ItemTrie, decoding: Decoding, beams: int) -> Beams:
    """The ``beams`` best items of each user, as far as beams of that width find them."""
    if beams < 1:
        raise ValueError(f"beams must be at least 1, not {beams}")
    log_probabilities = decoding.first()  # (U, 1, V)
    users = len(log_probabilities)
    scores = log_probabilities.new_zeros(users, 1)
    nodes = torch.zeros(users, 1, dtype=torch.int64, device=scores.device)
    for depth in range(trie.depth):
        children, tokens, exists = trie.children(depth, nodes)  # (U, W, C)
        options = scores.unsqueeze(-1) + log_probabilities.gather(2, tokens)
        options = options.masked_fill(~exists, -torch.inf).flatten(1)  # (U, W * C)
        scores, chosen = options.topk(min(beams, options.shape[1]), dim=1)
        nodes = children.flatten(1).gather(1, chosen)
        if depth + 1 < trie.depth:
            parents = chosen // children.shape[2]
            log_probabilities = decoding.next(parents, tokens.flatten(1).gather(1, chosen))
    return Beams(trie.items[nodes].masked_fill(scores == -torch.inf, 0), scores)
