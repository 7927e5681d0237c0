"""What stands near what in training histories: counts of neighbours, and item embeddings from them for catalogues without text.

Positive pointwise mutual information of items that stand near each other, factorized by a truncated SVD (Levy and Goldberg 2014:
what word2vec factorizes implicitly). An item without training events has no neighbours: its row is zero.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def neighbour_counts(
    items: NDArray[np.integer], users: NDArray[np.integer], num_items: int, *, window: int, power: float = 1.0
) -> Tensor:
    """(N, N) sparse float32, symmetric, zero on the diagonal: how often items i + 1 and j + 1 stand at most ``window`` places
    apart in a history, each time weighing distance ** -power.

    items, users: (E,) events in training, each user's in order and together; items from 1.
    """
    rows, columns, weights = [], [], []
    for distance in range(1, window + 1):
        same = users[distance:] == users[:-distance]
        first, second = items[:-distance][same] - 1, items[distance:][same] - 1
        apart = first != second
        rows += [first[apart], second[apart]]
        columns += [second[apart], first[apart]]
        weights += [np.full(2 * int(apart.sum()), distance**-power, dtype=np.float32)]
    indices = torch.from_numpy(np.stack([np.concatenate(rows), np.concatenate(columns)]).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(np.concatenate(weights)), (num_items, num_items), check_invariants=True
    ).coalesce()


def cooccurrence_embeddings(
    items: NDArray[np.integer],
    users: NDArray[np.integer],
    num_items: int,
    dim: int,
    *,
    window: int = 5,
    context_power: float = 0.75,
    seed: int = 0,
) -> Tensor:
    """(N, dim) float32, row i for item i + 1; zeros beyond the matrix's rank.

    items, users: (E,) events in training, each user's in order and together; items from 1. window: how far apart two items of
    a history count as neighbours, each pair weighing one over its distance. context_power: flattens how often items are
    neighbours at all, so that rare ones are not overrated.
    """
    counts = neighbour_counts(items, users, num_items, window=window)
    place, value = counts.indices(), counts.values()
    totals = torch.zeros(num_items).index_add_(0, place[0], value)
    context = totals**context_power
    information = (value / (totals[place[0]] * context[place[1]] / context.sum().clamp_min(1e-12))).log()
    positive = information > 0
    matrix = torch.sparse_coo_tensor(
        place[:, positive], information[positive], (num_items, num_items), check_invariants=True
    ).coalesce()
    rank = min(dim, num_items)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(matrix, q=rank, niter=4)
    return torch.nn.functional.pad(u * s.sqrt(), (0, dim - rank))
