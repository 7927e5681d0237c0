"""A generative retriever over items with a depth head: one causal pass over a history learns the codes of every next item.

TIGER reads M tokens an item and encodes each prefix of a history anew. Here a position is an item,

    item = sum of its codes' embeddings / sqrt(M) + its own embedding + position,

a causal transformer gives each position a state h, and a small head beside it emits the M codes of the next item, level by level:

    logits of level m = cosine(h, embedding of each code) / temperature + repeat terms
    h <- h + norm(embedding of the emitted code);  h <- h + SwiGLU_m(norm(h))

Two things make the difference. The softmax of a level runs over the codes that continue the prefix to a real item only, in
training as in search, so that the probabilities of all items sum to 1. And each level learns how much more likely the codes
become that continue the prefix of an item of the history, and of its newest one: what SASRec's repeat bias is to a dense score.

Codes of an item that training never saw were never a target, so it is not found by them. A dense head beside the depth head
scores items by their projected text, or, for catalogues without texts, by what the model reads of them, codes and own
embedding; with it the hybrid method ranks the generated items and all unseen ones, as LIGER does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize, pad, silu

from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.models.known_items import KnownItems, forget_known
from rayrec.models.layers.item_softmax import full_softmax_loss, once_each
from rayrec.models.layers.packed_histories import PackedHistories
from rayrec.models.layers.short_attention import attend
from rayrec.retrieval.repeats import Repeats
from rayrec.retrieval.retriever import DenseHead, GenerativeHead, Growing, Retriever

_REPEAT_RATE = 5.0  # a repeat term moves by so many learning rates a step


@dataclass(frozen=True)
class DepthRetrieverConfig:
    """Shape and losses of the depth retriever."""

    needs_semantic_ids: ClassVar[bool] = True
    reads_windows: ClassVar[bool] = True
    user_tokens: ClassVar[int] = 0
    reads_preferences: ClassVar[None] = None

    dim: int = 64
    """Width of items and states."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 2
    """Attention heads of a block."""
    max_length: int = 20
    """Newest items that are read."""
    feed_forward: int = 2
    """Inner size, as a multiple of dim."""
    dropout: float = 0.2
    """Dropout on sublayer outputs and inside of the feed-forward."""
    input_dropout: float = 0.3
    """Dropout on the normed input, and on codes that the depth head reads."""
    item_dropout: float = 0.2
    """Dropout on the items' own embeddings and on their projected texts."""
    temperature: float = 0.1
    """Temperature of the depth head's cosines."""
    item_embeddings: bool = True
    """Give each item an embedding of its own beside those of its codes."""
    text_input: bool = False
    """Give each item its projected text beside its codes; without item_embeddings in their place, unseen items' too."""
    repeat_terms: bool = True
    """Learn how much likelier codes of the history's items are; in the dense head, the items themselves."""
    dense_weight: float = 0.0
    """Weight of the loss of a dense head; 0 = none."""
    dense_items: Literal["text", "input"] = "text"
    """What the dense head knows items by: their projected text, or what the model reads of them (codes, own embedding, text)."""
    dense_temperature: float = 0.07
    """Temperature of the dense head's cosines."""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "max_length", "feed_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        for name in ("dropout", "input_dropout", "item_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        for name in ("temperature", "dense_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.dense_weight >= 0:
            raise ValueError(f"dense_weight must be at least 0, not {self.dense_weight}")
        if self.dense_items == "input" and self.dense_weight == 0:
            raise ValueError("dense_items input is of a dense head: give dense_weight above 0")

    def build(self, catalogue: Catalogue) -> "DepthRetriever":
        assert catalogue.features is not None  # needs_semantic_ids
        return DepthRetriever(catalogue.features, self)


class DepthRetriever(Retriever[Tensor]):
    """See the module. Items are 1..N; histories (B, L) are left-padded with 0, newest item last."""

    item_tokens: Tensor
    item_text: Tensor
    seen: Tensor

    def __init__(self, items: ItemFeatures, config: DepthRetrieverConfig) -> None:
        super().__init__()
        self.config, self.num_tokens = config, items.num_tokens
        self.levels = items.tokens.shape[1]
        self.register_buffer("item_tokens", items.tokens.clone())
        self.register_buffer("seen", items.seen.clone())
        self._known: KnownItems | None = None
        dim = config.dim
        self.tokens = nn.Embedding(items.num_tokens, dim)
        self.positions = nn.Embedding(config.max_length, dim)
        if config.item_embeddings:
            self.items = nn.Embedding(len(items.tokens), dim)
        self.input_norm = nn.RMSNorm(dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.code_norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(self.levels - 1))
        self.depth = nn.ModuleList(_FeedForward(config) for _ in range(self.levels - 1))
        if config.repeat_terms:
            self.repeat = nn.Parameter(torch.zeros(2 * self.levels))  # any item of the history, the newest; by level
        if config.text_input:
            self.read_text = nn.Linear(items.text.shape[1], dim, bias=False)
        dense_text = config.dense_weight > 0 and config.dense_items == "text"
        if config.text_input or dense_text:
            self.register_buffer("item_text", items.text.clone())
        if config.dense_weight > 0:
            self.ask = nn.Linear(dim, dim, bias=False)
            if dense_text:
                self.text = nn.Linear(items.text.shape[1], dim, bias=False)
            if config.repeat_terms:
                self.dense_repeat = nn.Parameter(torch.zeros(()))
        self._initialize()
        self.register_load_state_dict_post_hook(forget_known)

    @property
    def num_items(self) -> int:
        return len(self.item_tokens) - 1

    @property
    def generative(self) -> GenerativeHead[Tensor]:
        return self

    @property
    def dense(self) -> DenseHead[Tensor] | None:
        return self if self.config.dense_weight > 0 else None

    @property
    def judged_by(self) -> Literal["generative"]:
        return "generative"

    @property
    def growing(self) -> Growing | None:
        return self if self.config.dense_weight > 0 else None

    def add_items(self, tokens: Tensor, text: Tensor) -> int:
        """Take in n items never seen in training by tokens (n, M) and text embeddings (n, E); returns the first one's number."""
        first = len(self.item_tokens)
        self.item_tokens = torch.cat([self.item_tokens, tokens.to(self.item_tokens)])
        if "item_text" in self._buffers:
            self.item_text = torch.cat([self.item_text, text.to(self.item_text)])
        self.seen = torch.cat([self.seen, self.seen.new_zeros(len(tokens))])
        self._known = None
        return first

    @property
    def loss_weights(self) -> Mapping[str, float]:
        codes = {f"code_{level}": 1.0 for level in range(1, self.levels + 1)}
        return codes if self.config.dense_weight == 0 else {**codes, "dense": self.config.dense_weight}

    def loss_sizes(self, history: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        size = (history[:, -self.config.max_length :] > 0).sum()
        return dict.fromkeys(self.loss_weights, size)

    def losses(self, history: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        """Mean cross-entropies () of each code given the right ones before it, over the real positions of history and target
        (B, L), both 0-padded at the left; their sum is minus the mean log-likelihood of the next item.

        "dense": among the seen items, of the dense head."""
        packed = PackedHistories(history[:, -self.config.max_length :])
        goal = target[:, -self.config.max_length :][packed.real]  # (T,)
        h = self.states(packed)
        places = self.known.places(goal)  # (T, M)
        parts = {
            f"code_{level + 1}": cross_entropy(z, places[rows, level], reduction="sum") / max(len(goal), 1)
            for level, (rows, z) in enumerate(self._teacher_forced(h, packed, goal))
        }
        if self.config.dense_weight > 0:
            parts["dense"] = self._dense_loss(h, packed, goal)
        return parts

    def query(self, history: Tensor) -> Tensor:
        """What the dense head looks for: unit vectors (B, D) of histories (B, L)."""
        return normalize(self.ask(self.newest_states(history[:, -self.config.max_length :])).float(), dim=1)

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """Unit vectors (n, D) of items ``rows`` (n,), or of all (N + 1, D); row 0 belongs to no item."""
        if self.config.dense_items == "input":
            every = torch.arange(len(self.item_tokens), device=self.item_tokens.device)
            return normalize(self._inputs(every if rows is None else rows, 0.0).float(), dim=1)
        text = self.item_text if rows is None else self.item_text[rows]
        return normalize(self.text(text).float(), dim=1)

    def repeats(self, history: Tensor) -> Repeats | None:
        if not self.config.repeat_terms:
            return None
        return Repeats(once_each(history[:, -self.config.max_length :]), self.dense_repeat)

    def decoding(self, history: Tensor) -> "DepthDecoding":
        """For ``rayrec.retrieval.beam_search``."""
        return DepthDecoding(self, history[:, -self.config.max_length :])

    @property
    def known(self) -> "KnownItems":
        """The trie of the items; made when first needed, since a bundle's tokens come after its model."""
        if self._known is None or self._known.nodes.device != self.item_tokens.device:
            self._known = KnownItems(self.item_tokens)
        return self._known

    def states(self, packed: PackedHistories) -> Tensor:
        """(T, D) of the real positions, row by row of the batch."""
        config = self.config
        x = self._inputs(packed.items, config.item_dropout if self.training else 0.0)
        x = self.input_norm(x + self.positions(packed.position))
        x = dropout(x, config.input_dropout, self.training)
        for block in self.blocks:
            x = block(x, packed)
        return x

    def _inputs(self, items: Tensor, rate: float) -> Tensor:
        """(n, D) of items (n,): codes, own embedding, text, the last two with dropout of ``rate``."""
        config = self.config
        x: Tensor = self.tokens(self.item_tokens[items]).sum(1) * self.levels**-0.5
        if config.item_embeddings:  # those of items that training never saw are noise
            seen = self.seen[items]
            x = x + dropout(self.items(items * seen) * seen.unsqueeze(1), rate, rate > 0)
        if config.text_input:
            x = x + dropout(self.read_text(self.item_text[items]), rate, rate > 0)
        return x

    def newest_states(self, history: Tensor) -> Tensor:
        """(B, D) at the newest item of each history (B, L); zeros where it is empty."""
        packed = PackedHistories(history)
        states = self.states(packed)
        if not len(states):
            return states.new_zeros(len(history), self.config.dim)
        last = packed.real.sum(1).cumsum(0) - 1  # packed row of each history's newest item
        return states[last.clamp_min(0)].masked_fill(~packed.real.any(1, keepdim=True), 0.0)

    def descend(self, h: Tensor, tokens: Tensor, level: int) -> Tensor:
        """The state (..., D) of the next level after ``tokens`` (...) were emitted at ``level`` by states (..., D)."""
        code = dropout(self.code_norms[level](self.tokens(tokens)), self.config.input_dropout, self.training)
        h = h + code
        deeper: Tensor = h + dropout(self.depth[level](h), self.config.dropout, self.training)
        return deeper

    def logits(self, h: Tensor, level: int, marks: tuple[Tensor, Tensor] | None) -> Tensor:
        """(..., K) of the codes of a level, from states (..., D). marks: (..., K) which are of the history, of its newest."""
        codes = normalize(self.tokens.weight[self.known.slices[level]], dim=1)
        scores = (normalize(h, dim=-1) @ codes.T).float() / self.config.temperature
        if marks is not None:
            shift = _REPEAT_RATE * self.repeat[2 * level : 2 * level + 2]
            scores = scores + marks[0] * shift[0] + marks[1] * shift[1]
        return scores

    def marks(self, matching: Tensor, history: Tensor, newest: Tensor, level: int) -> tuple[Tensor, Tensor] | None:
        """Codes (..., K) of a level that continue the prefix of an item of the history, and of the newest one, as 0 and 1.

        matching: (..., L) which items of ``history`` (..., L) have the prefix. newest: (..., L) where the newest one stands.
        """
        if not self.config.repeat_terms:
            return None
        codes = self.known.slices[level]
        own = self.item_tokens[history][..., level] - codes.start  # (..., L)
        size = codes.stop - codes.start
        blank = torch.zeros(*matching.shape[:-1], size + 1, device=history.device)
        found = [
            blank.scatter(-1, own.masked_fill(~some, size), 1.0)[..., :size] for some in (matching, matching & newest)
        ]
        return found[0], found[1]

    def _dense_loss(self, h: Tensor, packed: PackedHistories, goal: Tensor) -> Tensor:
        """Cross-entropy () of (cosine + repeat) / temperature over the seen items, which all goals in training are."""
        rows = self.seen.nonzero().squeeze(1)
        place = torch.zeros_like(self.seen, dtype=torch.int64)  # 0: padding and unseen items, which are no candidates
        place[rows] = torch.arange(1, len(rows) + 1, device=rows.device)
        items = pad(self.item_vectors(rows), (0, 0, 1, 0))
        queries = normalize(self.ask(h).float(), dim=1) / self.config.dense_temperature
        shifted, shift = None, None
        if self.config.repeat_terms:
            shifted, shift = place[packed.before()], self.dense_repeat / self.config.dense_temperature
        return full_softmax_loss(queries, items, place[goal], shifted=shifted, shift=shift)

    def _teacher_forced(self, h: Tensor, packed: PackedHistories, goal: Tensor) -> list[tuple[Tensor, Tensor]]:
        """By level, the positions (t,) whose goal's prefix goes on in several ways, and their logits (t, C) of its children,
        -inf where there are fewer than C.

        A code that alone can follow has probability 1 and teaches nothing; behind a position's last choice no state is made.
        """
        known, choices = self.known, self.known.choices(goal)  # (T, M)
        rows = torch.arange(len(goal), device=goal.device)
        read, newest = packed.read(), packed.newest()  # (T, L) each
        matching, found = read > 0, []
        for level in range(self.levels):
            deciding = choices[rows, level].nonzero().squeeze(1)
            marks = None
            if self.config.repeat_terms:
                marks = self.marks(matching[deciding], read[deciding], newest[deciding], level)
            scores = self.logits(h[deciding], level, marks)
            nodes = known.nodes[goal[rows[deciding]], level]
            among = known.among_children(scores, level, nodes, known.slices[level].start)
            found.append((rows[deciding], among))
            if level + 1 < self.levels:
                left = choices[rows, level + 1 :].any(1).nonzero().squeeze(1)
                rows, read, newest = rows[left], read[left], newest[left]
                tokens = self.item_tokens[goal[rows]][:, level]  # (t,)
                matching = matching[left] & (self.item_tokens[read][..., level] == tokens.unsqueeze(1))
                h = self.descend(h[left], tokens, level)
        return found

    def _initialize(self) -> None:
        dim = self.config.dim
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=dim**-0.5)
        if self.config.item_embeddings:
            nn.init.normal_(self.items.weight, std=0.1 * dim**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for module in self.blocks.modules():
            if isinstance(module, _Block):
                for last in (module.output, module.feed_forward.contract):
                    nn.init.normal_(last.weight, std=last.in_features**-0.5 / math.sqrt(2 * self.config.layers))


class DepthDecoding:
    """Decoding in progress: one state and one node of the trie a beam; the history is read once."""

    def __init__(self, model: DepthRetriever, history: Tensor) -> None:
        self._model, self._level = model, 0
        self._h = model.newest_states(history).unsqueeze(1)  # (U, W, D)
        self._history = history.unsqueeze(1)  # (U, 1, L)
        self._matching = self._history > 0  # (U, W, L)
        self._newest = torch.zeros_like(self._matching)
        self._newest[..., -1] = self._matching[..., -1]
        self._nodes = torch.zeros(len(history), 1, dtype=torch.int64, device=history.device)

    def first(self) -> Tensor:
        return self._log_probabilities()

    def next(self, parents: Tensor, tokens: Tensor) -> Tensor:
        model, level = self._model, self._level
        own = model.item_tokens[self._history][..., level]  # (U, 1, L)
        chosen = parents.unsqueeze(2)
        self._matching = self._matching.gather(1, chosen.expand(-1, -1, self._matching.shape[2]))
        self._matching = self._matching & (own == tokens.unsqueeze(2))
        self._nodes = model.known.child(level, self._nodes.gather(1, parents), tokens)
        h = self._h.gather(1, chosen.expand(-1, -1, self._h.shape[2]))
        self._h = model.descend(h, tokens, level)
        self._level += 1
        return self._log_probabilities()

    def _log_probabilities(self) -> Tensor:
        """(U, W, V) of the next token; those of codes that lead to no item mean nothing."""
        model, level = self._model, self._level
        width = self._nodes.shape[1]
        history, newest = (x.expand(-1, width, -1) for x in (self._history, self._newest))
        scores = model.logits(self._h, level, model.marks(self._matching, history, newest, level))  # (U, W, K)
        codes = model.known.slices[level]
        among = model.known.among_children(scores, level, self._nodes, codes.start)
        found = scores.new_full((*scores.shape[:2], model.num_tokens), -torch.inf)
        found[..., codes] = scores - among.logsumexp(2, keepdim=True)
        return found


class _Block(nn.Module):
    """Pre-norm attention and SwiGLU on packed positions."""

    def __init__(self, config: DepthRetrieverConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.RMSNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.output = nn.Linear(config.dim, config.dim, bias=False)
        self.feed_forward = _FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, packed: PackedHistories) -> Tensor:
        spread = packed.spread(self.query_key_value(self.norm(x))).unflatten(2, (3, self.heads, -1))  # (B, L, 3, H, d)
        query, key, value = spread.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, packed.bias, scale=query.shape[-1] ** -0.5)
        x = x + self.dropout(self.output(packed.pack(mixed.transpose(1, 2).flatten(2))))
        output: Tensor = x + self.dropout(self.feed_forward(x))
        return output


class _FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) behind a norm; the residual is the caller's."""

    def __init__(self, config: DepthRetrieverConfig) -> None:
        super().__init__()
        inner = config.feed_forward * config.dim
        self.norm = nn.RMSNorm(config.dim)
        self.expand = nn.Linear(config.dim, 2 * inner, bias=False)
        self.contract = nn.Linear(inner, config.dim, bias=False)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(self.norm(x)).chunk(2, -1)
        output: Tensor = self.contract(dropout(silu(gate) * value, self.dropout, self.training))
        return output
