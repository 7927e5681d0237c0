"""Residual k-means: level by level, cluster what the levels before left over. Seconds instead of an RQ-VAE's training."""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor, nn

from rayrec.retrieval.code_assignment import balanced_codes, own_codes


@dataclass(frozen=True)
class ResidualKMeansConfig:
    """levels codebooks of codebook_size codes each; ``iterations`` of Lloyd's algorithm a level."""

    levels: int = 3
    """Codes of an item."""
    codebook_size: int = 256
    """Codes of a level."""
    iterations: int = 30
    """Of k-means at each level, at most."""
    seed: int = 0
    """Of the first centers."""
    balanced: tuple[int, ...] = ()
    """Levels (from 1) whose codes are given out evenly instead of to the nearest item."""
    own_last: bool = False
    """On the last level, items with the same codes so far get different ones, as far as the codebook reaches."""

    def __post_init__(self) -> None:
        if not all(1 <= level <= self.levels for level in self.balanced):
            raise ValueError(f"balanced names levels from 1 to {self.levels}, not {self.balanced}")
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


@dataclass(frozen=True)
class FittedQuantizer:
    """The quantizer and the codes (N, M) of what it was fitted to, which balanced and own codes take from other codewords than
    ``quantizer.encode`` would."""

    quantizer: ResidualQuantizer
    codes: Tensor


def fit_residual_kmeans(embeddings: Tensor, config: ResidualKMeansConfig) -> FittedQuantizer:
    """Fit to embeddings (N, D) float32. With fewer items than codes, the codes left over repeat the mean of the residuals."""
    residual = embeddings.float().contiguous()
    codebooks: list[Tensor] = []
    codes: list[Tensor] = []
    for level in range(1, config.levels + 1):
        codebook = _centroids(residual, config, level)
        if level in config.balanced:
            for _ in range(_BALANCED_ROUNDS):
                codebook = _means(residual, balanced_codes(residual, codebook), codebook)
            chosen = balanced_codes(residual, codebook)
        else:
            chosen = nearest_codes(residual, codebook)
        if config.own_last and level == config.levels and codes:
            chosen = own_codes(torch.stack(codes, dim=1), residual, codebook)
        codebooks.append(codebook)
        codes.append(chosen)
        residual = residual - codebook[chosen]
    return FittedQuantizer(ResidualQuantizer(torch.stack(codebooks)), torch.stack(codes, dim=1))


_BALANCED_ROUNDS = 8


def _centroids(vectors: Tensor, config: ResidualKMeansConfig, level: int) -> Tensor:
    """(K, D) by Lloyd's algorithm."""
    clusters = min(config.codebook_size, len(vectors))
    kmeans = faiss.Kmeans(
        vectors.shape[1], clusters, niter=config.iterations, seed=config.seed + level - 1,
        min_points_per_centroid=1, max_points_per_centroid=10_000_000,
    )  # fmt: skip
    kmeans.train(np.ascontiguousarray(vectors.numpy()))
    spare = vectors.mean(0, keepdim=True).expand(config.codebook_size - clusters, -1)
    return torch.cat([torch.from_numpy(np.array(kmeans.centroids)), spare])


def _means(vectors: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    """(K, D) mean of each code's vectors; a code without any keeps its codeword."""
    counts = torch.bincount(codes, minlength=len(codebook)).unsqueeze(1)
    sums = torch.zeros_like(codebook).index_add_(0, codes, vectors)
    return torch.where(counts > 0, sums / counts.clamp_min(1), codebook)


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N,) int64 index of the nearest codeword (K, D) of each vector (N, D); the first one of equals."""
    # |v - c|^2 = |v|^2 - 2 v.c + |c|^2, and |v|^2 is the same for all codewords
    return (codebook.square().sum(1) - 2 * vectors @ codebook.T).argmin(1)
