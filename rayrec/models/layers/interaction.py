"""Explicit feature interactions: the cross network of DCN-v2 and the dot products of DLRM."""

import torch
from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (Wang et al. 2021, DCN V2, equation 1). (B, N) to (B, N).

    rank: W_l = U_l V_l^T with that inner dimension (equation 2), or None for full matrices.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x).to(x0.dtype))
        return x


class DotInteraction(nn.Module):
    """Dot products of all pairs of K vectors (Naumov et al. 2019, DLRM): (B, K, d) to (B, K (K - 1) / 2)."""

    rows: Tensor
    columns: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        products = torch.bmm(vectors, vectors.transpose(1, 2))  # (B, K, K)
        return products[:, self.rows, self.columns]
