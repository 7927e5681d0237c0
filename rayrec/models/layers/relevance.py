"""Relevance of a user's and a candidate's multi-embeddings (SPAR, arXiv 2402.10555): a weighted sum of all their inner products.

K = flatten(Gamma Lambda^T), W = softmax(flatten(Gamma gelu(Lambda W_s)^T)), score = sum(W * K).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


class Relevance(nn.Module):
    """dim: d of the embeddings."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(dim, dim, bias=False)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(B, C) of users (B, m, d) and candidates (B, C, n, d)."""
        products = torch.einsum("bmd,bcnd->bcmn", users, items).flatten(2)
        weights = torch.einsum("bmd,bcnd->bcmn", users, gelu(self.weigh(items))).flatten(2).softmax(-1)
        return (weights * products).sum(-1)
