"""Residual k-means: level by level, cluster what the levels before left over. Seconds instead of an RQ-VAE's training."""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ResidualKMeansConfig:
    """levels codebooks of codebook_size codes each; ``iterations`` of Lloyd's algorithm a level."""

    levels: int = 3
    codebook_size: int = 256
    iterations: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.levels, self.codebook_size, self.iterations) < 1:
            raise ValueError("levels, codebook_size and iterations must be at least 1")


class ResidualQuantizer(nn.Module):
    """codebooks: (M, K, D) buffer; an embedding's code of a level is the nearest codeword to what is left over."""

    codebooks: Tensor

    def __init__(self, codebooks: Tensor) -> None:
        super().__init__()
        self.register_buffer("codebooks", codebooks)

    @torch.no_grad()
    def encode(self, embeddings: Tensor) -> Tensor:
        """Codes (N, M) int64 of embeddings (N, D)."""
        residual, codes = embeddings, []
        for codebook in self.codebooks:
            codes.append(nearest_codes(residual, codebook))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def reconstructions(self, codes: Tensor) -> list[Tensor]:
        """What the first 1, 2, ... M codes (N, M) stand for, each (N, D)."""
        chosen = torch.stack([book[codes[:, level]] for level, book in enumerate(self.codebooks)])
        return list(chosen.cumsum(0))


def fit_residual_kmeans(embeddings: Tensor, config: ResidualKMeansConfig) -> ResidualQuantizer:
    """Fit to embeddings (N, D) float32. With fewer items than codes, the codes left over repeat the mean of the residuals."""
    residual = embeddings.float().contiguous()
    codebooks = []
    for level in range(config.levels):
        clusters = min(config.codebook_size, len(residual))
        kmeans = faiss.Kmeans(
            residual.shape[1], clusters, niter=config.iterations, seed=config.seed + level,
            min_points_per_centroid=1, max_points_per_centroid=10_000_000,
        )  # fmt: skip
        kmeans.train(np.ascontiguousarray(residual.numpy()))
        centroids = torch.from_numpy(np.array(kmeans.centroids))
        spare = residual.mean(0, keepdim=True).expand(config.codebook_size - clusters, -1)
        codebook = torch.cat([centroids, spare])
        residual = residual - codebook[nearest_codes(residual, codebook)]
        codebooks.append(codebook)
    return ResidualQuantizer(torch.stack(codebooks))


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N,) int64 index of the nearest codeword (K, D) of each vector (N, D); the first one of equals."""
    # |v - c|^2 = |v|^2 - 2 v.c + |c|^2, and |v|^2 is the same for all codewords
    return (codebook.square().sum(1) - 2 * vectors @ codebook.T).argmin(1)
