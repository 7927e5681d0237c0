"""RQ-VAE: an autoencoder whose latent is quantized by residual codebooks (Zeghidour et al. 2021; for items: TIGER, 2023).

    z = encode(x);  r_0 = z;  code_m = argmin_k |r_m - c_mk|;  r_(m+1) = r_m - c_m[code_m];  q_m = sum of the first m codewords
    loss = |decode(z + stop(q_M - z)) - x|^2 + beta * mean_m |z - stop(q_m)|^2

Codebooks are not trained by gradients: each codeword follows an exponential moving average of the residuals assigned to it
(van den Oord et al. 2017, appendix A.1); codewords that hardly anything is assigned to restart at residuals of the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from rayrec.errors import DivergedError
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans, nearest_codes


@dataclass(frozen=True)
class RqVaeConfig:
    """An autoencoder whose middle is quantized."""

    hidden: tuple[int, ...] = (768, 512, 256)
    """Sizes of the encoder's layers before the latent (the decoder mirrors them)."""
    latent: int = 128
    """Width of what is quantized."""
    levels: int = 3
    """Codes of an item."""
    codebook_size: int = 256
    """Codes of a level."""
    commitment: float = 0.25
    """beta."""
    ema_decay: float = 0.99
    """Of the codebook's moving averages."""
    dead_below: float = 0.1
    """A codeword restarts when the moving average of its assignments falls below that many."""
    kmeans_init: bool = True
    """Start the codebooks by residual k-means on the first batch's latents."""
    dropout: float = 0.1
    """Between the encoder's layers."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 0.1
    """Of AdamW."""
    batch_size: int = 2048
    """Items a step."""
    epochs: int = 8000
    """Passes at most."""
    patience: int = 500
    """Epochs without a gain before training stops."""
    held_out: float = 0.05
    """Share of items kept out to choose the best epoch."""
    seed: int = 0
    """Of weights, order and the items held out."""

    def __post_init__(self) -> None:
        if min(*self.hidden, self.latent, self.levels, self.codebook_size, self.batch_size, self.epochs) < 1:
            raise ValueError("sizes, levels, batch_size and epochs must be at least 1")
        if not 0 < self.ema_decay < 1 or not 0 <= self.held_out < 1 or not 0 <= self.dropout < 1:
            raise ValueError("ema_decay must lie in (0, 1), held_out and dropout in [0, 1)")
        if not self.learning_rate > 0 or not min(self.commitment, self.weight_decay, self.dead_below) >= 0:
            raise ValueError("learning_rate must be above 0; commitment, weight_decay and dead_below at least 0")
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1, not {self.patience}")


@dataclass(frozen=True)
class Quantized:
    """codes (N, M) int64; sums (M, N, D): cumulative sums of the chosen codewords."""

    codes: Tensor
    sums: Tensor


class ResidualCodebooks(nn.Module):
    """codebooks (M, K, D), with the moving averages that move them: counts (M, K) and totals (M, K, D)."""

    codebooks: Tensor
    counts: Tensor
    totals: Tensor

    def __init__(self, levels: int, size: int, dim: int, decay: float, dead_below: float) -> None:
        super().__init__()
        self.decay, self.dead_below = decay, dead_below
        self.register_buffer("codebooks", nn.init.normal_(torch.empty(levels, size, dim), std=dim**-0.5))
        self.register_buffer("counts", torch.ones(levels, size))
        self.register_buffer("totals", self.codebooks.clone())

    def start_at(self, codebooks: Tensor) -> None:
        """Begin at these codewords (M, K, D), each with the weight of one assignment."""
        self.codebooks.copy_(codebooks)
        self.totals.copy_(codebooks)
        self.counts.fill_(1.0)

    @torch.no_grad()
    def quantize(self, latents: Tensor) -> Quantized:
        """Nearest codeword of what is left over, level by level, of latents (N, D)."""
        residual, codes, sums = latents, [], []
        total = torch.zeros_like(latents)
        for codebook in self.codebooks:
            codes.append(nearest_codes(residual, codebook))
            chosen = codebook[codes[-1]]
            residual, total = residual - chosen, total + chosen
            sums.append(total)
        return Quantized(torch.stack(codes, dim=1), torch.stack(sums))

    @torch.no_grad()
    def follow(self, latents: Tensor, quantized: Quantized) -> None:
        """Move every codeword towards the mean of the residuals assigned to it, and restart dead ones.

        counts <- d * counts + (1 - d) * n;  totals <- d * totals + (1 - d) * sum of residuals;  codeword = totals / counts.
        """
        before = torch.cat([torch.zeros_like(latents).unsqueeze(0), quantized.sums[:-1]])
        for level in range(len(self.codebooks)):
            residual, codes = latents - before[level], quantized.codes[:, level]
            assigned = torch.zeros_like(self.counts[level]).index_add_(0, codes, torch.ones_like(residual[:, 0]))
            summed = torch.zeros_like(self.totals[level]).index_add_(0, codes, residual)
            self.counts[level].lerp_(assigned, 1 - self.decay)
            self.totals[level].lerp_(summed, 1 - self.decay)
            self.codebooks[level] = self.totals[level] / self.counts[level].clamp_min(1e-6).unsqueeze(1)
            dead = (self.counts[level] < self.dead_below).nonzero().squeeze(1)
            if len(dead):
                fresh = residual[torch.randint(len(residual), (len(dead),), device=residual.device)]
                self.codebooks[level, dead], self.totals[level, dead] = fresh, fresh
                self.counts[level, dead] = 1.0


class RqVae(nn.Module):
    """See the module. Reads standardized embeddings (N, D)."""

    def __init__(self, dim: int, config: RqVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _layers((dim, *config.hidden, config.latent), config.dropout)
        self.decoder = _layers((config.latent, *config.hidden[::-1], dim), config.dropout)
        self.codebooks = ResidualCodebooks(
            config.levels, config.codebook_size, config.latent, config.ema_decay, config.dead_below
        )

    def loss(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(total, reconstruction, commitment) of embeddings (N, D); in training mode the codebooks follow the batch."""
        latents = self.encoder(embeddings)
        quantized = self.codebooks.quantize(latents)
        reconstruction = mse_loss(self.decoder(straight_through(latents, quantized.sums[-1])), embeddings)
        commitment = (latents - quantized.sums).square().mean()
        if self.training:
            self.codebooks.follow(latents.detach(), quantized)
        return reconstruction + self.config.commitment * commitment, reconstruction, commitment

    @torch.no_grad()
    def encode(self, embeddings: Tensor) -> Tensor:
        """Codes (N, M) int64."""
        return self.codebooks.quantize(self.encoder(embeddings)).codes

    @torch.no_grad()
    def reconstructions(self, codes: Tensor) -> list[Tensor]:
        """What the first 1, 2, ... M codes (N, M) decode to, each (N, D)."""
        chosen = torch.stack([book[codes[:, level]] for level, book in enumerate(self.codebooks.codebooks)])
        return [self.decoder(total) for total in chosen.cumsum(0)]


def _layers(sizes: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1], with ReLU and dropout between them."""
    layers: list[nn.Module] = []
    for width, size in pairwise(sizes):
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` in value, ``latents`` in gradient."""
    return latents + (quantized - latents).detach()


def fit_rqvae(
    embeddings: Tensor,
    config: RqVaeConfig,
    progress: Callable[[int, float, float], None] = lambda epoch, train, held_out: None,
) -> RqVae:
    """Train on standardized embeddings (N, D) float32; the epoch with the least loss on the held-out items is returned.

    ``progress`` is told epoch, training loss and held-out reconstruction error. The same seed gives the same model. Raises
    DivergedError when that error is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _fit(embeddings.float(), config, progress)


def _fit(embeddings: Tensor, config: RqVaeConfig, progress: Callable[[int, float, float], None]) -> RqVae:
    model = RqVae(embeddings.shape[1], config).to(embeddings.device)
    order = torch.randperm(len(embeddings))
    held = order[: int(len(order) * config.held_out)]
    train = order[len(held) :]
    judged = embeddings[held] if len(held) else embeddings
    if config.kmeans_init:
        with torch.no_grad():
            latents = model.eval().encoder(embeddings[train[: max(config.batch_size, 4 * config.codebook_size)]])
        start = ResidualKMeansConfig(config.levels, config.codebook_size, seed=config.seed)
        model.codebooks.start_at(fit_residual_kmeans(latents.cpu(), start).quantizer.codebooks.to(latents.device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_epoch, weights = float("inf"), 0, model.state_dict()
    for epoch in range(config.epochs):
        model.train()
        losses = []
        for rows in train[torch.randperm(len(train))].split(config.batch_size):
            loss, _, _ = model.loss(embeddings[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        model.eval()
        with torch.no_grad():
            error = float(model.loss(judged)[1])
        progress(epoch, float(torch.stack(losses).mean()), error)
        if not math.isfinite(error):
            raise DivergedError(f"the RQ-VAE's loss is {error} in epoch {epoch}; a lower learning_rate may help")
        if error < best:
            best, best_epoch = error, epoch
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(weights)
    return model.eval()
