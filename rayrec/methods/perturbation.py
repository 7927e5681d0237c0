"""Predictions that do not turn on small changes of the input: SCR and LSPR (arXiv 2502.18478) and the perturbations they use.

SCR, self-consistency regularization:         CE(f(x), y) + strength * d(f(x), f(x'))
LSPR, small perturbation regularization:      (1 - strength) * CE(f(x), y) + strength * CE(f(x'), y)     balanced
                                              CE(f(x), y) + strength * CE(f(x'), y)                      additive

x' is x with noise on numbers and embedding vectors, and, where asked, ids dropped or swapped. Noise needs no second embedding
lookup: it is added to the embedded row. Every draw comes from a generator of its own, seeded by (seed, worker, step).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from rayrec.batch import Batch
from rayrec.methods.means import masked_cross_entropy
from rayrec.methods.method import Embedder, Method, MethodConfig, Rows, Sizes, Tasks, Term


@dataclass(frozen=True)
class PerturbationConfig(MethodConfig):
    """What is perturbed, how strongly, and what is asked of the prediction."""

    loss: Literal["lspr", "scr"] = "lspr"
    """What is asked: LSPR, the label of the original; or SCR, the same prediction."""
    strength: float = 0.5
    """lambda of the losses above; 0 is plain training, draw for draw. LSPR balanced: at most 1."""
    form: Literal["balanced", "additive"] = "balanced"
    """How LSPR's loss joins that of the originals, see the module."""
    divergence: Literal["mse", "symmetric_kl"] = "mse"
    """d of SCR: squared difference of probabilities, or the mean of both Kullback-Leibler divergences."""
    unlabeled: bool = False
    """SCR also on the rows of the unlabeled stream."""
    dense_noise: float = 0.1
    """Standard deviation of Gaussian noise on observed numbers, in standard deviations of each feature."""
    embedding_noise: float = 0.1
    """Expected length of Gaussian noise on an embedding vector, relative to the vector's."""
    feature_fraction: float = 1.0
    """Probability that a number or vector of a row gets its noise."""
    feature_dropout: float = 0.0
    """Probability that a categorical id becomes 0 (missing)"""
    category_swap: float = 0.0
    """Probability that a categorical id becomes that of another row."""
    item_drop: float = 0.0
    """Probability that an item of a sequence is left out."""
    row_fraction: float = 1.0
    """Share of a batch's rows that get a perturbed copy. Each copy counts for all rows that it stands for, so that the
    mean over an update's rows is met on average, whichever rows are drawn."""
    seed: int = 0
    """Of the draws, the same on a resumed run."""

    def __post_init__(self) -> None:
        for name in ("strength", "dense_noise", "embedding_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        for name in ("feature_dropout", "category_swap", "item_drop", "feature_fraction", "row_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.loss == "lspr" and self.form == "balanced" and self.strength > 1:
            raise ValueError(f"strength of balanced LSPR must be at most 1, not {self.strength}")
        if self.loss == "lspr" and self.unlabeled:
            raise ValueError("unlabeled is for loss scr: LSPR trains perturbed rows against their labels")
        if self.row_fraction == 0 or not (self.perturbs_ids or self.perturbs_vectors):
            raise ValueError("nothing is perturbed: a noise or probability and row_fraction must be above 0")

    @property
    def perturbs_ids(self) -> bool:
        return max(self.feature_dropout, self.category_swap, self.item_drop) > 0

    @property
    def perturbs_vectors(self) -> bool:
        return max(self.dense_noise, self.embedding_noise) > 0 and self.feature_fraction > 0

    def method(self, tasks: Tasks) -> "Perturbation | None":
        return Perturbation(self) if self.strength > 0 else None


@dataclass(frozen=True)
class PerturbedRows:
    """x (m, N), perturbed, of the given rows (m,) int64 of a batch of B; rows None = all, in order. stretch: B / m."""

    x: Tensor
    rows: Tensor | None
    stretch: float = 1.0

    def of(self, values: Tensor) -> Tensor:
        """The entries of ``values`` (B, ...) that belong to the perturbed rows: (m, ...)."""
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True)
class Compared:
    """Places of the blocks that SCR compares, m copies and their originals: those at ``chosen`` (m,) of the clean block, None =
    all. weights: (m,) of the rows, None = all 1. stretch: for how many rows a copy stands."""

    clean: int
    chosen: Tensor | None
    perturbed: int
    weights: Tensor | None
    stretch: float


class Perturbation(Method):
    """Draws perturbed copies of batches. Its only state, the number of draws, belongs into checkpoints, not into bundles."""

    def __init__(self, config: PerturbationConfig) -> None:
        super().__init__()
        self.config = config
        self.num_sizes = 1 if config.loss == "scr" else 0
        self.draws = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.draws)

    def set_extra_state(self, state: Tensor) -> None:
        self.draws = int(state)

    def sizes(self, batch: Batch, unlabeled: Batch | None) -> Tensor:
        """SCR: the weight of all rows, of the unlabeled ones too where they count. LSPR goes by the tasks' own sizes."""
        counted = [batch, *([unlabeled] if self.config.unlabeled and unlabeled is not None else [])]
        weights = [batch.labels.new_tensor(len(b)) if b.weights is None else b.weights.sum() for b in counted]
        return torch.stack(weights).sum(0, keepdim=True)[: self.num_sizes]

    def term(self, rows: Rows, batch: Batch, unlabeled: Batch | None, sizes: Sizes) -> Term:
        """Rows: the perturbed copy, for SCR also of unlabeled rows and these themselves. Raises ValueError where they lack."""
        copy = self.copy_of(rows.model, batch, rows.embedded(batch))
        clean, perturbed = rows.whole(batch), rows.add(copy.x)
        if self.config.loss == "lspr":
            return self._labeled(batch, copy, perturbed, sizes.tasks)
        weights = None if batch.weights is None else copy.of(batch.weights)
        compared = [Compared(clean, copy.rows, perturbed, weights, copy.stretch)]
        if self.config.unlabeled:
            if unlabeled is None:
                raise ValueError("perturbation.unlabeled needs an unlabeled log and unlabeled_ratio above 0")
            x = rows.embedded(unlabeled)
            copy = self.copy_of(rows.model, unlabeled, x)
            # Of a share of the rows only the copies' originals are predicted, in the copies' order.
            clean = rows.whole(unlabeled) if copy.rows is None else rows.add(copy.of(x))
            weights = None if unlabeled.weights is None else copy.of(unlabeled.weights)
            compared.append(Compared(clean, None, rows.add(copy.x), weights, copy.stretch))
        return self._consistent(compared, batch.labels.shape[1], sizes.own)

    def _labeled(self, batch: Batch, copy: PerturbedRows, perturbed: int, sizes: Tensor) -> Term:
        """LSPR: the cross-entropy of the perturbed rows over sizes (T,)."""

        def mix(losses: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
            weights = None if batch.weights is None else copy.of(batch.weights)
            logits = outputs[perturbed][:, : batch.labels.shape[1]]
            return self._mixed(
                losses, masked_cross_entropy(logits, copy.of(batch.labels), weights, sizes / copy.stretch)
            )

        return mix

    def _consistent(self, compared: Sequence[Compared], tasks: int, size: Tensor) -> Term:
        """SCR: the divergences over all copies, of labeled and unlabeled rows, each with its row's weight, over size (1,)."""

        def mix(losses: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
            total = losses.new_zeros(tasks)
            for pair in compared:
                logits, others = outputs[pair.clean][:, :tasks], outputs[pair.perturbed][:, :tasks]
                logits = logits if pair.chosen is None else logits[pair.chosen]
                apart = divergence(self.config.divergence, logits, others)  # (m, T)
                apart = apart if pair.weights is None else apart * pair.weights.unsqueeze(1)
                total = total + pair.stretch * apart.sum(0)
            return self._mixed(losses, total / size.to(total.dtype).clamp_min(1e-12))

        return mix

    def _mixed(self, losses: Tensor, perturbed: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        tasks = len(perturbed)
        mixed = perturbed_loss(self.config, losses[:tasks], perturbed)
        return torch.cat([mixed, losses[tasks:]]), {"perturbed": perturbed}

    def copy_of(self, model: Embedder, batch: Batch, x: Tensor) -> PerturbedRows:
        """A perturbed copy of (some rows of) ``batch``; x (B, N) = model.embed(batch), looked up again only if ids change."""
        config, generator = self.config, self._generator(x.device)
        rows = _some_rows(len(batch), config.row_fraction, generator)
        some = batch if rows is None else batch[rows]
        if config.perturbs_ids:
            some = perturb_ids(some, batch, config, generator)
            copy = model.embed(some)
        else:
            copy = x if rows is None else x[rows]
        if config.perturbs_vectors:
            copy = copy + noise(model, some, copy.detach(), config, generator)
        return PerturbedRows(copy, rows, len(batch) / max(len(some), 1))

    def _generator(self, device: torch.device) -> torch.Generator:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        seed = (self.config.seed % 2**16 << 48) + (rank % 2**8 << 40) + self.draws % 2**40
        self.draws += 1
        return torch.Generator(device).manual_seed(seed - 2**63)


def perturbed_loss(config: PerturbationConfig, clean: Tensor, perturbed: Tensor) -> Tensor:
    """The loss by task (T,). clean: cross-entropies (T,). perturbed: for LSPR those of the perturbed rows, for SCR the mean
    divergences (T,)."""
    if config.loss == "lspr" and config.form == "balanced":
        return (1 - config.strength) * clean + config.strength * perturbed
    return clean + config.strength * perturbed


def divergence(kind: Literal["mse", "symmetric_kl"], logits: Tensor, others: Tensor) -> Tensor:
    """Elementwise divergence of two Bernoulli predictions given by logits of equal shape; gradients reach both.

    (KL(p, q) + KL(q, p)) / 2 of two Bernoulli distributions is (p - q) * (logit p - logit q) / 2.
    """
    difference = logits.sigmoid() - others.sigmoid()
    return difference.square() if kind == "mse" else 0.5 * difference * (logits - others)


def perturb_ids(some: Batch, batch: Batch, config: PerturbationConfig, generator: torch.Generator) -> Batch:
    """``some`` rows with categorical ids swapped for those of other rows of ``batch`` or set to 0, and items left out."""
    categorical = some.categorical  # (m, F)
    if config.category_swap > 0 and categorical.numel():
        donors = torch.randint(len(batch), categorical.shape, generator=generator, device=categorical.device)
        swapped = _chance(config.category_swap, categorical.shape, generator)
        categorical = torch.where(swapped, batch.categorical.gather(0, donors), categorical)
    if config.feature_dropout > 0:
        categorical = categorical.masked_fill(_chance(config.feature_dropout, categorical.shape, generator), 0)
    sequences = some.sequences
    if config.item_drop > 0:
        sequences = tuple(_drop_items(ids, config.item_drop, generator) for ids in sequences)
    return Batch(some.dense, categorical, some.labels, sequences, some.weights, some.extras)


def noise(model: Embedder, some: Batch, x: Tensor, config: PerturbationConfig, generator: torch.Generator) -> Tensor:
    """Gaussian noise (m, N) for embedded rows x (m, N): on observed numbers and embedding vectors, 0 in all other columns. The
    vectors of numbers, where a model has them, follow their numbers and have the noise of all vectors besides."""
    added = torch.zeros_like(x)
    moved: Tensor | None = None
    if config.dense_noise > 0 and some.dense.shape[1]:
        numbers = config.dense_noise * _normal(some.dense.shape, x, generator)
        numbers.masked_fill_(some.dense.isnan(), 0.0)
        if config.feature_fraction < 1:
            numbers *= _chance(config.feature_fraction, numbers.shape, generator)
        start = model.dense_columns.start
        added[:, start : start + numbers.shape[1]] = numbers  # behind them lie the missing-indicators
        moved = model.moved_numbers(some.dense, numbers)
    if config.embedding_noise > 0 and model.embedding_columns.stop > model.embedding_columns.start:
        vectors = x[:, model.embedding_columns].unflatten(1, (-1, model.embedding_dim))  # (m, K, d)
        lengths = config.embedding_noise / math.sqrt(model.embedding_dim) * vectors.norm(dim=2, keepdim=True)
        if config.feature_fraction < 1:
            lengths *= _chance(config.feature_fraction, lengths.shape, generator)
        added[:, model.embedding_columns] = _normal(vectors.shape, x, generator).mul_(lengths).flatten(1)
    if moved is not None:
        added[:, model.number_columns] += moved.to(x.dtype)
    return added


def _some_rows(rows: int, fraction: float, generator: torch.Generator) -> Tensor | None:
    if fraction == 1.0:
        return None
    count = max(1, round(fraction * rows))
    return torch.randperm(rows, generator=generator, device=generator.device)[:count]


def _drop_items(ids: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """(m, L) with items left out and the rest moved up, zeros behind."""
    kept = ids.masked_fill(_chance(probability, ids.shape, generator), 0)
    order = (kept == 0).to(torch.int8).argsort(dim=1, stable=True)
    return kept.gather(1, order)


def _normal(shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def _chance(probability: float, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Independent draws, bool: True with the given probability."""
    return torch.rand(shape, generator=generator, device=generator.device) < probability
