"""SASRec (Kang and McAuley 2018, arXiv 1808.09781): a causal transformer over the user's items, trained at every position.

The loss is the softmax cross-entropy over the whole catalogue instead of the paper's one sampled negative: with it the model
is a far stronger baseline than the numbers usually quoted for it (Klenitskiy and Vasilev 2023, arXiv 2309.07602).

A plain SASRec hardly learns that people seldom take the same item twice: its newest inputs are what its states resemble most.
``repeat_bias`` gives it one parameter for that, learned from the log like all others.

Everything but attention runs on the T real positions of a batch only; padding is never multiplied. Histories are left-padded
with 0, newest item last; results do not depend on how much padding there is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from rayrec.models.catalogue import Catalogue
from rayrec.models.layers.item_softmax import full_softmax_loss, once_each, sampled_softmax_loss, shifted_scores
from rayrec.models.layers.packed_histories import PackedHistories
from rayrec.models.layers.short_attention import attend
from rayrec.retrieval.repeats import Repeats
from rayrec.retrieval.retriever import DenseHead, Retriever


@dataclass(frozen=True)
class SASRecConfig:
    """Shape and loss of SASRec."""

    needs_semantic_ids: ClassVar[bool] = False
    reads_preferences: ClassVar[None] = None
    reads_windows: ClassVar[bool] = True
    user_tokens: ClassVar[int] = 0

    dim: int = 128
    """Width of items and states."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 2
    """Attention heads of a block."""
    max_length: int = 20
    """Newest items that are read."""
    feed_forward: int = 1
    """Inner size, as a multiple of dim."""
    dropout: float = 0.5
    """Dropout on embeddings and sublayer outputs."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    sampled_items: int = 0
    """Negatives of the sampled softmax; 0 = full softmax (best, while the catalogue is below some 100,000 items)."""
    temperature: float | None = None
    """Logits are cosines of states and items over it; None = inner products."""
    repeat_bias: bool = False
    """Learn one number that logits of the history's own items get on top (not in the paper); full softmax only."""
    weighting: Literal["position", "window"] = "position"
    """Of the loss's terms: each position counts the same, or each window, that is nearly each user, whatever its
    length."""

    def __post_init__(self) -> None:
        if min(self.dim, self.layers, self.heads, self.max_length, self.feed_forward) < 1 or self.sampled_items < 0:
            raise ValueError(
                "dim, layers, heads, max_length and feed_forward must be at least 1, sampled_items at least 0"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        if not (0 <= self.dropout < 1 and 0 <= self.attention_dropout < 1):
            raise ValueError("dropout and attention_dropout must lie in [0, 1)")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, or None, not {self.temperature}")
        if self.repeat_bias and self.sampled_items:
            raise ValueError("repeat_bias needs the full softmax: sampled_items must be 0")

    def build(self, catalogue: Catalogue) -> "SASRec":
        return SASRec(catalogue.num_items, self, catalogue.counts)


class SASRec(Retriever[Tensor]):
    """Items are 1..num_items; 0 is padding. Item embeddings are input and output weights.

    counts: (N + 1,) occurrences in training, by which the negatives of a sampled softmax are drawn.
    """

    counts: Tensor | None

    def __init__(self, num_items: int, config: SASRecConfig, counts: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self._num_items = num_items
        self.register_buffer("counts", counts, persistent=False)
        self.items = nn.Embedding(num_items + 1, config.dim, padding_idx=0)
        self.positions = nn.Embedding(config.max_length, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        if config.repeat_bias:
            self.repeat = nn.Parameter(torch.zeros(()))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        with torch.no_grad():
            self.items.weight[0].zero_()

    @property
    def num_items(self) -> int:
        return self._num_items

    @property
    def dense(self) -> DenseHead[Tensor]:
        return self

    def forward(self, history: Tensor) -> Tensor:
        """The predicted next item's embedding (B, D) of histories (B, L); zeros where a history is empty."""
        places = PackedHistories(history[:, -self.config.max_length :])
        if not len(places.items):
            return self.items.weight.new_zeros(len(history), self.config.dim)
        states = self._states(places)
        last = places.real.sum(1).cumsum(0) - 1  # packed row of each history's newest item
        empty = ~places.real.any(1)
        return self._queries(states[last.clamp_min(0)].masked_fill(empty.unsqueeze(1), 0.0))

    def scores(self, history: Tensor) -> Tensor:
        """Logits (B, num_items + 1) of every item; -inf for padding."""
        logits = (self(history) @ self.item_vectors().T).float()
        if self.config.repeat_bias:
            logits = shifted_scores(logits, once_each(history[:, -self.config.max_length :]), self.repeat_shift())
        logits[:, 0] = -torch.inf
        return logits

    def query(self, history: Tensor) -> Tensor:
        queries: Tensor = self(history)
        return queries

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """What an index holds: (n, D) of items ``rows`` (n,), or (num_items + 1, D) of all."""
        vectors: Tensor = self.items.weight if rows is None else self.items.weight[rows]
        return vectors if self.config.temperature is None else normalize(vectors, dim=1)

    def repeats(self, history: Tensor) -> Repeats | None:
        if not self.config.repeat_bias:
            return None
        return Repeats(once_each(history[:, -self.config.max_length :]), self.repeat_shift())

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"next_item": 1.0}

    def loss_sizes(self, history: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        real = history[:, -self.config.max_length :] > 0
        return {"next_item": real.sum() if self.config.weighting == "position" else real.any(1).sum()}

    def losses(self, history: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        return {"next_item": self.next_item_loss(history, target, *self._negatives())}

    def next_item_loss(
        self, inputs: Tensor, targets: Tensor, sampled: Tensor | None = None, log_sampling: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy () over the real positions of inputs and targets (B, L), both 0-padded at the left, or the mean over
        rows of each row's mean.

        With ``sampled`` (S,) items and their ``log_sampling`` (num_items + 1,) the sampled softmax.
        """
        places = PackedHistories(inputs[:, -self.config.max_length :])
        queries, packed_targets = (
            self._queries(self._states(places)),
            targets[:, -self.config.max_length :][places.real],
        )
        items, weights = self.item_vectors(), None
        if self.config.weighting == "window":
            weights = (places.real / places.real.sum(1, keepdim=True).clamp_min(1))[places.real]
        if sampled is not None and log_sampling is not None:
            return sampled_softmax_loss(queries, items, packed_targets, sampled, log_sampling, weights)
        shifted, shift = (places.before(), self.repeat_shift()) if self.config.repeat_bias else (None, None)
        return full_softmax_loss(queries, items, packed_targets, shifted=shifted, shift=shift, weights=weights)

    def _negatives(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Items drawn by their popularity (S,) and the log-probability of each item to be drawn (N + 1,)."""
        count = self.config.sampled_items
        if count == 0:
            return None, None
        if self.counts is None:
            raise ValueError("a sampled softmax draws by the items' counts; none were given")
        popularity = self.counts.double() / self.counts.sum().clamp_min(1)
        sampled = torch.multinomial(popularity, count, replacement=True)
        return sampled, popularity.clamp_min(1e-12).log().float()

    def _queries(self, states: Tensor) -> Tensor:
        """(..., D): whose inner products with ``item_vectors`` are the logits."""
        temperature = self.config.temperature
        return states if temperature is None else normalize(states, dim=-1) / temperature

    def repeat_shift(self) -> Tensor:
        """() on top of the logits of the history's items; learned at the scale of cosines, or of inner products."""
        scale = self.config.dim**0.5 if self.config.temperature is None else 1 / self.config.temperature
        return self.repeat * scale

    def _states(self, places: PackedHistories) -> Tensor:
        """States (T, D) of the real positions, row by row of the batch."""
        x = self.dropout(self.items(places.items) * self.config.dim**0.5 + self.positions(places.position))
        for block in self.blocks:
            x = block(x, places)
        states: Tensor = self.norm(x)
        return states


class _Block(nn.Module):
    """Pre-norm attention and feed-forward on packed positions."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        dim, inner = config.dim, config.dim * config.feed_forward
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, places: PackedHistories) -> Tensor:
        x = x + self.dropout(self._attend(self.attention_norm(x), places))
        hidden = self.dropout(gelu(self.expand(self.feed_forward_norm(x))))
        output: Tensor = x + self.dropout(self.contract(hidden))
        return output

    def _attend(self, x: Tensor, places: PackedHistories) -> Tensor:
        spread = places.spread(self.query_key_value(x)).unflatten(2, (3, self.heads, -1))  # (B, L, 3, H, d)
        query, key, value = spread.permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        scale = 1 / math.sqrt(query.shape[-1])
        mixed = attend(query, key, value, places.bias, scale=scale, dropout_p=dropout)
        output: Tensor = self.output(places.pack(mixed.transpose(1, 2).flatten(2)))
        return output
