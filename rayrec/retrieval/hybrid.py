"""LIGER's inference: few generative candidates and all cold items, ranked by the dense score."""

import torch
from torch import Tensor

from rayrec.retrieval.repeats import Repeats


def hybrid_ranking(
    query: Tensor, generated: Tensor, cold_items: Tensor, vectors: Tensor, k: int, repeats: Repeats | None = None
) -> tuple[Tensor, Tensor]:
    """The k best of each user's candidates: items (B, k) int64, 0 where there are fewer, and dense scores (B, k), -inf there.

    query: (B, D). generated: (B, K) items of the beam search, 0 = none. cold_items: (C,) items that training never saw, and
    candidates of every user. vectors: (N + 1, D) of all items. An item that is both counts once. K + C products a user, not N.
    repeats: of the histories, whose items get their shift.
    """
    own = (vectors[generated] @ query.unsqueeze(2)).squeeze(2)  # (B, K)
    own = own.masked_fill((generated == 0) | torch.isin(generated, cold_items), -torch.inf)
    scores = torch.cat([own, query @ vectors[cold_items].T], dim=1)
    items = torch.cat([generated, cold_items.expand(len(query), -1)], dim=1)
    if repeats is not None:
        scores = scores + repeats.hold(items) * repeats.shift
    best, places = scores.topk(min(k, scores.shape[1]), dim=1)
    found = items.gather(1, places).masked_fill(best == -torch.inf, 0)
    missing = k - found.shape[1]
    return torch.nn.functional.pad(found, (0, missing)), torch.nn.functional.pad(best, (0, missing), value=-torch.inf)
