"""How often a generative retriever's next code is the right one, where all codes before it are: which level loses the target."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrec.retrieval.beam_search import Decoding
from rayrec.retrieval.trie import ItemTrie


@dataclass(frozen=True)
class RightCodes:
    """Of U targets by level, each (U, M).

    first: bool, whether the target's code is the likeliest that continues the right prefix to an item; ties are against it.
    choices: int64, how many codes there were, so that a level without a choice (1) is not taken for a skill.
    """

    first: Tensor
    choices: Tensor


@torch.no_grad()
def right_codes(trie: ItemTrie, decoding: Decoding, tokens: Tensor) -> RightCodes:
    """tokens: (U, M) int64 of the users' targets. Raises ValueError for tokens that are no item's."""
    first, choices = [], []
    nodes = torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device)
    log_probabilities = decoding.first()  # (U, 1, V)
    for depth in range(trie.depth):
        right = tokens[:, depth, None]
        children, codes, exists = (part.squeeze(1) for part in trie.children(depth, nodes))  # (U, C)
        here = exists & (codes == right)
        if not bool(here.any(1).all()):
            raise ValueError(f"tokens {tokens[~here.any(1)][0].tolist()} are no item's")
        scores = log_probabilities.squeeze(1).gather(1, codes)
        own = scores[here].unsqueeze(1)
        first.append(~((scores >= own) & exists & ~here).any(1))
        choices.append(exists.sum(1))
        nodes = children[here].unsqueeze(1)
        if depth + 1 < trie.depth:
            log_probabilities = decoding.next(torch.zeros_like(nodes), right)
    return RightCodes(torch.stack(first, 1), torch.stack(choices, 1))
