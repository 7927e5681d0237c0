"""From item embeddings to semantic IDs, and the same for new items: standardize, quantize, resolve collisions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig, ResidualQuantizer, fit_residual_kmeans
from rayrec.retrieval.rqvae import RqVae, RqVaeConfig, fit_rqvae
from rayrec.retrieval.semantic_ids import SemanticIdReport, SemanticIds, report, resolve_collisions, standardize


@dataclass(frozen=True)
class TokenizerConfig:
    """method: "kmeans" (residual k-means: seconds) or "rqvae"; only the settings of the chosen one matter."""

    method: Literal["kmeans", "rqvae"] = "kmeans"
    kmeans: ResidualKMeansConfig = field(default_factory=ResidualKMeansConfig)
    rqvae: RqVaeConfig = field(default_factory=RqVaeConfig)

    @property
    def levels(self) -> int:
        return self.kmeans.levels if self.method == "kmeans" else self.rqvae.levels

    @property
    def codebook_size(self) -> int:
        return self.kmeans.codebook_size if self.method == "kmeans" else self.rqvae.codebook_size


class SemanticTokenizer(nn.Module):
    """mean, deviation: (E,), what embeddings are standardized by. Build one and load a state, or use ``fit_tokenizer``."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        self.quantizer: ResidualQuantizer | RqVae
        if config.method == "kmeans":
            self.quantizer = ResidualQuantizer(torch.zeros(config.levels, config.codebook_size, dim))
        else:
            self.quantizer = RqVae(dim, config.rqvae)

    def standardized(self, embeddings: Tensor) -> Tensor:
        """(N, E) raw embeddings as the quantizer and the models take them."""
        return (embeddings - self.mean) / self.deviation

    def encode(self, embeddings: Tensor) -> Tensor:
        """Codes (N, M) int64 of raw embeddings (N, E)."""
        return self.quantizer.encode(self.standardized(embeddings))


@dataclass(frozen=True)
class TokenizedItems:
    """A fitted tokenizer, the items' IDs, their standardized embeddings (N, E), and what the IDs are worth."""

    tokenizer: SemanticTokenizer
    ids: SemanticIds
    embeddings: Tensor
    report: SemanticIdReport


def fit_tokenizer(
    embeddings: Tensor,
    config: TokenizerConfig,
    progress: Callable[[int, float, float], None] = lambda epoch, train, held_out: None,
) -> TokenizedItems:
    """Fit on raw embeddings (N, E), row i for item i + 1. ``progress``: see ``fit_rqvae``."""
    scaled, mean, deviation = standardize(embeddings.float())
    tokenizer = SemanticTokenizer(scaled.shape[1], config)
    tokenizer.mean.copy_(mean)
    tokenizer.deviation.copy_(deviation)
    if config.method == "kmeans":
        tokenizer.quantizer = fit_residual_kmeans(scaled, config.kmeans)
    else:
        tokenizer.quantizer = fit_rqvae(scaled, config.rqvae, progress)
    tokenizer.eval()
    codes = tokenizer.quantizer.encode(scaled)
    ids = resolve_collisions(codes, config.codebook_size)
    return TokenizedItems(tokenizer, ids, scaled, report(ids, scaled, tokenizer.quantizer.reconstructions(codes)))
