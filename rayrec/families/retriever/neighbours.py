"""Scores of all items by untrained neighbours in the history: alike in attributes, or near each other in training histories."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from rayrec.data.sequences import SequenceData, SequenceSplit
from rayrec.families.retriever.item_scores import DECAYS, Scores, text_neighbours, without_padding
from rayrec.retrieval.attribute_embeddings import attribute_matrix
from rayrec.retrieval.cooccurrence_embeddings import neighbour_counts

FLATTENINGS = (0.2, 0.3, 0.5)
WINDOW, DISTANCE_POWER = 20, 0.5


def faded(history: Tensor, num_items: int, decay: float) -> Tensor:
    """(B, N + 1) sparse: what each item of histories (B, L) weighs, ``decay`` times the next newer one; 0 = the newest alone."""
    ages = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
    weights = (torch.tensor(decay, device=history.device) ** ages).expand_as(history)
    rows, columns = (history > 0).nonzero(as_tuple=True)
    indices = torch.stack([rows, history[rows, columns]])
    size = (len(history), num_items + 1)
    return torch.sparse_coo_tensor(indices, weights[rows, columns], size, check_invariants=True).coalesce()


def attribute_neighbours(attributes: Tensor, decay: float) -> Scores:
    """Cosine of each item's attributes and the sum of those of the faded history. attributes: (N + 1, A) sparse, of unit rows."""
    rows = attributes.to_sparse_csr()

    def scores(history: Tensor) -> Tensor:
        query = torch.sparse.mm(faded(history, len(attributes) - 1, decay), attributes).to_dense()
        return without_padding((rows @ normalize(query, dim=1).T).T.contiguous())

    return scores


def cooccurrence_neighbours(similarity: Tensor, decay: float) -> Scores:
    """The sum of each item's similarity to the items of the faded history. similarity: (N + 1, N + 1) sparse."""
    num_items = len(similarity) - 1
    return lambda history: without_padding(torch.sparse.mm(faded(history, num_items, decay), similarity).to_dense())


def cooccurrence_similarity(counts: Tensor, occurrences: Tensor, flattening: float) -> Tensor:
    """counts (N + 1, N + 1), sparse, over (n_i n_j) ** flattening, the cosine at 1/2. occurrences: (N + 1,) n_i in training."""
    scale = occurrences.clamp_min(1).float() ** -flattening
    first, second = counts.indices()
    values = counts.values() * scale[first] * scale[second]
    return torch.sparse_coo_tensor(counts.indices(), values, counts.shape, is_coalesced=True, check_invariants=True)


def attribute_options(data: SequenceData) -> Mapping[str, Scores]:
    """Neighbours by attributes at each decay; none where items have no attributes."""
    given = data.items.attributes.to_pylist()
    if not any(given):
        return {}
    attributes = attribute_matrix([[], *given])  # row 0: padding
    return {f"decay {decay:g}": attribute_neighbours(attributes, decay) for decay in DECAYS}


def cooccurrence_options(data: SequenceData, split: SequenceSplit) -> Mapping[str, Scores]:
    """Neighbours by co-occurrence in the training part of the histories, at each flattening and decay."""
    events, train = data.interactions, split.in_training(data.interactions)
    users = np.repeat(np.arange(events.num_users), events.lengths)[train]
    items, size = events.items[train], events.num_items + 1
    counts = neighbour_counts(items + 1, users, size, window=WINDOW, power=DISTANCE_POWER)
    occurrences = torch.from_numpy(np.bincount(items, minlength=size))
    return {
        f"flattening {flattening:g} decay {decay:g}": cooccurrence_neighbours(similarity, decay)
        for flattening in FLATTENINGS
        for similarity in (cooccurrence_similarity(counts, occurrences, flattening),)
        for decay in DECAYS
    }


def text_options(text: Tensor) -> Mapping[str, Scores]:
    """Neighbours by text at each decay. text: (N + 1, E), row 0 of no item."""
    return {f"decay {decay:g}": text_neighbours(text, decay) for decay in DECAYS}
