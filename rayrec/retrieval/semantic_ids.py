"""Semantic IDs: each item a tuple of codes, coarse to fine, from a residual quantizer of its embedding; and what they are worth.

Items whose codes collide get a further position that counts them (0, 1, 2, ...), so every item has its own tuple (TIGER, Rajput
et al. 2023). As tokens: code + 1 + the sizes of the levels before; token 0 is padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SemanticIds:
    """codes: (N, M) int64, row i for item i + 1, each row once. level_sizes: (M,) number of codes of each level.

    Raises ValueError when a code lies outside its level or two items share a tuple.
    """

    codes: Tensor
    level_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.codes.dim() != 2 or self.codes.shape[1] != len(self.level_sizes):
            raise ValueError(f"codes of shape {tuple(self.codes.shape)} for {len(self.level_sizes)} levels")
        sizes = torch.tensor(self.level_sizes)
        if len(self.codes) and not bool(((self.codes >= 0) & (self.codes < sizes)).all()):
            raise ValueError(f"a code lies outside its level of {self.level_sizes} codes")
        if len(self.codes.unique(dim=0)) != len(self.codes):
            raise ValueError("two items share a tuple of codes")

    @property
    def num_items(self) -> int:
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        return len(self.level_sizes)

    @property
    def token_offsets(self) -> Tensor:
        """(M,) int64: what is added to a level's codes to make tokens."""
        sizes = torch.tensor((0, *self.level_sizes[:-1]))
        return sizes.cumsum(0) + 1

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, padding included."""
        return sum(self.level_sizes) + 1

    def item_tokens(self) -> Tensor:
        """(N + 1, M) int64: tokens by item number; row 0 (padding) is 0."""
        tokens = self.codes + self.token_offsets
        return torch.cat([torch.zeros(1, self.num_levels, dtype=torch.int64), tokens])


def resolve_collisions(codes: Tensor, codebook_size: int, *, smallest_last_level: int | None = None) -> SemanticIds:
    """Append the position that counts items of equal codes: (N, M) codes to ``SemanticIds`` of M + 1 levels.

    The k-th item (by item number) of a collision gets k. The last level holds max(largest collision, ``smallest_last_level``)
    codes; the latter is ``codebook_size`` unless given, which leaves room for items added later.
    """
    _, group, counts = codes.unique(dim=0, return_inverse=True, return_counts=True)
    order = torch.argsort(group, stable=True)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group)) - starts[group[order]]
    room = codebook_size if smallest_last_level is None else smallest_last_level
    last = max(int(counts.max()) if len(counts) else 1, room)
    return SemanticIds(torch.cat([codes, place.unsqueeze(1)], dim=1), (*([codebook_size] * codes.shape[1]), last))


def add_item(ids: SemanticIds, codes: Tensor) -> SemanticIds:
    """``ids`` with one more item whose first M - 1 codes are ``codes`` (M - 1,): it takes the first free last code.

    Raises ValueError when the last level has no code left for these.
    """
    mates = ids.codes[(ids.codes[:, :-1] == codes).all(1), -1]
    taken = torch.zeros(ids.level_sizes[-1], dtype=torch.bool)
    taken[mates] = True
    free = (~taken).nonzero()
    if not len(free):
        raise ValueError(f"all {ids.level_sizes[-1]} last codes behind {codes.tolist()} are taken")
    row = torch.cat([codes, free[0]]).unsqueeze(0)
    return SemanticIds(torch.cat([ids.codes, row]), ids.level_sizes)


@dataclass(frozen=True)
class SemanticIdReport:
    """reconstruction_error: mean squared error over variance of the embeddings, after each level (falls from level to level).

    usage: share of each codebook's codes that are used. perplexity: exp of the entropy of a level's code frequencies.
    collision_rate: share of items that share their codes with another one. largest_collision: most items of the same codes.
    """

    reconstruction_error: tuple[float, ...]
    usage: tuple[float, ...]
    perplexity: tuple[float, ...]
    collision_rate: float
    largest_collision: int


def weaknesses(found: SemanticIdReport, level_sizes: tuple[int, ...], num_items: int) -> list[str]:
    """What a user must know before training on these IDs, one sentence each; empty when nothing is wrong."""
    told = []
    for level, (perplexity, size) in enumerate(zip(found.perplexity, level_sizes, strict=False), 1):
        room = min(size, num_items)
        if perplexity < _LOW_PERPLEXITY * room:
            told.append(f"level {level} is used unevenly: its perplexity is {perplexity:.0f} of {room} codes")
    if found.collision_rate > _USELESS_COLLISIONS:
        told.append(
            f"{found.collision_rate:.0%} of the items share all their codes, {found.largest_collision} of them the same ones: "
            "these IDs hardly tell items apart"
        )
    return told


_LOW_PERPLEXITY = 0.25  # of the codes of a level
_USELESS_COLLISIONS = 0.5  # share of items


def report(ids: SemanticIds, embeddings: Tensor, reconstructions: list[Tensor]) -> SemanticIdReport:
    """How good ``ids`` are for embeddings (N, D) that are reconstructed as given (one (N, D) a level, cumulative)."""
    variance = (embeddings - embeddings.mean(0)).square().mean().clamp_min(1e-12)
    quantized = ids.codes[:, :-1]
    usages, perplexities = [], []
    for level, size in enumerate(ids.level_sizes[:-1]):
        frequency = torch.bincount(quantized[:, level], minlength=size).double() / max(len(quantized), 1)
        used = frequency[frequency > 0]
        usages.append(len(used) / size)
        perplexities.append(float(torch.exp(-(used * used.log()).sum())))
    counts = quantized.unique(dim=0, return_counts=True)[1]
    return SemanticIdReport(
        tuple(float((embeddings - r).square().mean() / variance) for r in reconstructions),
        tuple(usages),
        tuple(perplexities),
        float(counts[counts > 1].sum()) / max(len(quantized), 1),
        int(counts.max()) if len(counts) else 0,
    )


def standardize(embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (N, D) with mean 0 and standard deviation 1 in each column, and the mean and deviation (D,) taken."""
    mean, deviation = embeddings.mean(0), embeddings.std(0).clamp_min(1e-6)
    return (embeddings - mean) / deviation, mean, deviation
