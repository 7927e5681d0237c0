"""Ways to give items the codes of one level other than the nearest codeword: evenly over the codes, or each its own.

Nearest codewords leave few codes with most items: a level that is used unevenly tells little. Even use is an optimal transport
plan (Sinkhorn iterations, Cuturi 2013; for semantic IDs LC-Rec, Zheng et al. 2024); own codes are a linear assignment.
"""

import torch
from torch import Tensor


def balanced_codes(vectors: Tensor, codebook: Tensor, *, sharpness: float = 50.0, iterations: int = 50) -> Tensor:
    """(N,) int64: the likeliest code of each vector (N, D) in the entropic transport plan that uses all codewords (K, D) alike.

    sharpness: of the plan, in units of one over the mean squared distance; the larger, the nearer and the less even.
    """
    distances = squared_distances(vectors, codebook)  # (N, K)
    scores = -sharpness * distances / distances.mean().clamp_min(1e-12)
    columns = scores.new_zeros(len(codebook))
    for _ in range(iterations):
        rows = -(scores + columns).logsumexp(1, keepdim=True)  # the plan's rows sum to 1 / N up to a constant
        columns = -(scores + rows).logsumexp(0)
    return (scores + columns).argmax(1)


def own_codes(prefixes: Tensor, vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N,) int64: codes such that vectors (N, D) of equal prefixes (N, M) have different ones, of least total distance.

    Of more vectors with one prefix than codewords (K, D), those for which it costs least are told apart; the others take the
    nearest codeword.
    """
    from scipy.optimize import linear_sum_assignment  # a second of imports, which only making ids needs

    distances = squared_distances(vectors, codebook)
    codes = distances.argmin(1)
    _, group, counts = prefixes.unique(dim=0, return_inverse=True, return_counts=True)
    order = torch.argsort(group, stable=True)
    for rows in order.split(counts.tolist()):
        if len(rows) > 1:
            chosen, own = linear_sum_assignment(distances[rows].numpy())
            codes[rows[torch.from_numpy(chosen)]] = torch.from_numpy(own)
    return codes


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N, K) of vectors (N, D) to codewords (K, D)."""
    return (vectors.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * vectors @ codebook.T).clamp_min(0.0)
