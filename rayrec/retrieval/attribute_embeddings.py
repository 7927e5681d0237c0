"""Item embeddings from attribute ids (brand, categories), the fallback where items have no text."""

import numpy as np
import torch
from torch import Tensor


def attribute_matrix(attributes: list[list[int]]) -> Tensor:
    """(N, A) sparse float32: of each item's attribute ids (from 1), weighted by inverse document frequency, rows scaled to
    length 1; empty for an item without any."""
    rows = np.repeat(np.arange(len(attributes)), [len(a) for a in attributes])
    columns = np.array([i - 1 for a in attributes for i in a], dtype=np.int64)
    count = int(columns.max(initial=0)) + 1
    weight = np.log(len(attributes) / np.maximum(np.bincount(columns, minlength=count), 1)).astype(np.float32) + 1e-3
    values = torch.from_numpy(weight[columns])
    indices = torch.from_numpy(np.stack([rows, columns]))
    norms = torch.zeros(len(attributes)).index_add_(0, indices[0], values.square()).sqrt().clamp_min(1e-12)
    return torch.sparse_coo_tensor(
        indices, values / norms[indices[0]], (len(attributes), count), check_invariants=True
    ).coalesce()


def attribute_embeddings(attributes: list[list[int]], dim: int, seed: int = 0) -> Tensor:
    """(N, dim) float32 embeddings of items by their attribute ids (from 1); zeros for an item without any.

    Rows of ``attribute_matrix`` projected on its first ``dim`` singular vectors (latent semantic analysis); zeros beyond the
    matrix's rank.
    """
    matrix = attribute_matrix(attributes)
    rank = min(dim, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(matrix, q=rank, niter=4)
    embeddings = u * s
    return torch.nn.functional.pad(embeddings, (0, dim - rank))
