"""Poly-attention (Humeau et al. 2020; SPAR, arXiv 2402.10555): k learnable codes, each a weighted mean of the inputs.

A = softmax(C tanh(H W)^T) along the inputs, output A H.
"""

import torch
from torch import Tensor, nn


class PolyAttention(nn.Module):
    """dim: d of inputs and outputs. codes: k. code_dim: p of the space in which codes meet inputs."""

    def __init__(self, dim: int, codes: int, code_dim: int) -> None:
        super().__init__()
        if min(dim, codes, code_dim) < 1:
            raise ValueError(f"dim, codes and code_dim must be at least 1, not {(dim, codes, code_dim)}")
        self.project = nn.Linear(dim, code_dim, bias=False)
        self.codes = nn.Parameter(torch.empty(codes, code_dim))
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.xavier_uniform_(self.codes)

    def keys(self, states: Tensor) -> Tensor:
        """(B, L, p) of states (B, L, d)."""
        return torch.tanh(self.project(states))

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        """(B, k, d) of states (B, L, d) and real (B, L) bool; zeros where a row has no real input."""
        scores = self.codes @ self.keys(states).transpose(1, 2)  # (B, k, L)
        weights = masked_softmax(scores, real.unsqueeze(1))
        mixed: Tensor = weights @ states
        return mixed


def masked_softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax along the last dimension over what is ``seen`` (broadcast bool); zeros where nothing is."""
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~seen, 0.0)
