"""From item embeddings to semantic IDs, and the same for new items: prepare, quantize, resolve collisions.

What the quantizer sees is either the standardized embeddings in full width, or unit vectors in few principal dimensions: text
embeddings differ in direction more than in length, and in few directions; the rest is noise that leaves the later levels of
residual k-means nearly unused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig, ResidualQuantizer, fit_residual_kmeans
from rayrec.retrieval.rqvae import RqVae, RqVaeConfig, fit_rqvae
from rayrec.retrieval.semantic_ids import SemanticIdReport, SemanticIds, report, resolve_collisions, standardize
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class TokenizerConfig:
    """How item vectors become codes."""

    method: Literal["kmeans", "rqvae"] = "kmeans"
    """"kmeans" (residual k-means: seconds) or "rqvae"; only the settings of the chosen one matter."""
    components: int | None = None
    """Principal dimensions of the unit vectors that are quantized; None = standardized embeddings in full width, which
    is what tokenizers of before there was a choice did."""
    kmeans: ResidualKMeansConfig = field(default_factory=ResidualKMeansConfig)
    """Settings of ``method`` kmeans."""
    rqvae: RqVaeConfig = field(default_factory=RqVaeConfig)
    """Settings of ``method`` rqvae."""

    def __post_init__(self) -> None:
        if self.components is not None and self.components < 1:
            raise ValueError(f"components must be at least 1, not {self.components}")

    @property
    def levels(self) -> int:
        return self.kmeans.levels if self.method == "kmeans" else self.rqvae.levels

    @property
    def codebook_size(self) -> int:
        return self.kmeans.codebook_size if self.method == "kmeans" else self.rqvae.codebook_size


def recommended_tokenizer() -> TokenizerConfig:
    """What collided least of the ways tried (benchmarks/RESULTS.md): few principal dimensions, own codes on the last level."""
    return TokenizerConfig(components=32, kmeans=ResidualKMeansConfig(own_last=True))


class SemanticTokenizer(nn.Module):
    """mean, deviation: (E,), what embeddings are standardized by. Build one and load a state, or use ``fit_tokenizer``.

    center (E,), axes (E, C): of the principal dimensions of unit vectors, where there are ``components``.
    """

    mean: Tensor
    deviation: Tensor
    center: Tensor
    axes: Tensor

    def __init__(self, dim: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        width = dim
        if config.components is not None:
            width = min(config.components, dim)
            self.register_buffer("center", torch.zeros(dim))
            self.register_buffer("axes", torch.zeros(dim, width))
        self.quantizer: ResidualQuantizer | RqVae
        if config.method == "kmeans":
            self.quantizer = ResidualQuantizer(torch.zeros(config.levels, config.codebook_size, width))
        else:
            self.quantizer = RqVae(width, config.rqvae)

    def standardized(self, embeddings: Tensor) -> Tensor:
        """(N, E) raw embeddings as the models take them."""
        return (embeddings - self.mean) / self.deviation

    def prepared(self, embeddings: Tensor) -> Tensor:
        """(N, C) raw embeddings (N, E) as the quantizer takes them."""
        if self.config.components is None:
            return self.standardized(embeddings)
        return (normalize(embeddings) - self.center) @ self.axes

    def encode(self, embeddings: Tensor) -> Tensor:
        """Codes (N, M) int64 of raw embeddings (N, E): on each level the nearest codeword."""
        return self.quantizer.encode(self.prepared(embeddings))


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
    *,
    seen: Tensor | None = None,
) -> TokenizedItems:
    """Fit on raw embeddings (N, E), row i for item i + 1. ``progress``: see ``fit_rqvae``.

    seen: (N,) bool, the items that the tokenizer is fitted to, so that cold ones stay as new to it as they will be; None = all.
    Raises ConfigError when fewer than two items are seen or an embedding is not finite, DivergedError when an RQ-VAE runs away.
    """
    embeddings = embeddings.float().cpu()
    seen = torch.ones(len(embeddings), dtype=torch.bool) if seen is None else seen
    fitted = embeddings[seen]
    if len(fitted) < 2:
        raise ConfigError(f"items that occur in training: {len(fitted)}; a tokenizer is fitted to two at least")
    if not (finite := embeddings.isfinite().all(1)).all():
        raise ConfigError(f"the embedding of item {int((~finite).nonzero()[0]) + 1} holds a value that is not finite")
    tokenizer = SemanticTokenizer(embeddings.shape[1], config)
    _, mean, deviation = standardize(fitted)
    tokenizer.mean.copy_(mean)
    tokenizer.deviation.copy_(deviation)
    if config.components is not None:
        unit = normalize(fitted)
        tokenizer.center.copy_(unit.mean(0))
        axes = torch.linalg.svd(unit - tokenizer.center, full_matrices=False).Vh[: tokenizer.axes.shape[1]].T
        tokenizer.axes[:, : axes.shape[1]] = axes
    prepared = tokenizer.prepared(embeddings)
    if config.method == "kmeans":
        found = fit_residual_kmeans(prepared[seen], config.kmeans)
        tokenizer.quantizer = found.quantizer
        codes = found.quantizer.encode(prepared)
        codes[seen] = found.codes
    else:
        tokenizer.quantizer = fit_rqvae(prepared[seen], config.rqvae, progress)
        codes = tokenizer.quantizer.eval().encode(prepared)
    tokenizer.eval()
    ids = resolve_collisions(codes, config.codebook_size)
    found_report = report(ids, prepared, tokenizer.quantizer.reconstructions(codes))
    return TokenizedItems(tokenizer, ids, tokenizer.standardized(embeddings), found_report)
