"""Generative, dense and hybrid retrieval as one model: LIGER (arXiv 2411.18814), and TIGER within it.

A T5 reads the semantic-ID tokens of the user's items. Two heads, two loss weights:
    generative   the decoder emits the tokens of the next item
    dense        the encoder's state at the last token against the projected text of every item, by cosine  (a text retriever)
Dense retriever = dense only; LIGER = both; TIGER (``rayrec.models.tiger``) = generative only, without text in the input.
LIGER's inference ranks the generative candidates and all cold items by the dense score (see ``rayrec.retrieval.hybrid``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize, pad

from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.models.known_items import KnownItems, forget_known
from rayrec.models.layers.item_softmax import full_softmax_loss, once_each, shifted_scores
from rayrec.models.t5 import DecoderCache, T5Config, T5Decoder, T5Encoder
from rayrec.models.tuple_decoding import TupleDecoding
from rayrec.retrieval.repeats import Repeats
from rayrec.retrieval.retriever import DenseHead, GenerativeHead, Growing, Personal, Retriever, items_of
from rayrec.retrieval.text_blend import Blended, TextBlend, text_query


@dataclass(frozen=True)
class LigerConfig:
    """Shape and losses of LIGER and of the dense retriever."""

    needs_semantic_ids: ClassVar[bool] = True
    reads_preferences: ClassVar[None] = None
    reads_windows: ClassVar[bool] = False

    transformer: T5Config = field(default_factory=T5Config)
    """The encoder-decoder."""
    text: bool = True
    """Item text embeddings are part of the input (the dense head needs them)."""
    generative_weight: float = 1.0
    """Of the generative loss; 0 = that head is not built."""
    dense_weight: float = 1.0
    """Of the dense loss; 0 = that head is not built."""
    temperature: float = 0.07
    """Of the cosines in the dense loss."""
    projection: tuple[int, ...] = (768, 512, 256)
    """Hidden sizes of the text's way to T5's width."""
    projection_dropout: float = 0.2
    """Between the projection's layers."""
    input_dropout: float = 0.5
    """Dropout on the input, behind the norm."""
    max_length: int = 20
    """Newest items that are read."""
    repeat_bias: bool = False
    """Learn one number that the cosines of the history's own items get on top (not in the papers), in the dense head."""
    neighbours: int = 0
    """Principal dimensions of the text in which the cosine of an item and the history's is added to the dense head's own,
    of learned weight and fading with age (not in the paper). The axes are never trained: what the text alone knows of
    unseen items stays. 0 = none."""
    unseen_budget: float | None = None
    """Answer by the dense score, that of the untrained text and a bonus for items that training never saw together
    (``rayrec.retrieval.text_blend``, not in the paper), weighed on validation when training is over: the bonus may cost this
    share of the recall@10 of seen items in the dense list, less where fewer than a tenth of the items are unseen. None = by the
    dense score alone."""
    embedding_std: float = 0.1
    """Of the token, place and level embeddings at the start: small beside the projected text, which knows more then."""
    absolute_positions: bool = True
    """Add an embedding of the item's place, counted from the newest, and one of the token's level to the input."""
    input_norm: bool = True
    """Layer norm of the input."""
    user_tokens: int = 0
    """TIGER's; a user's name is hashed to one of so many tokens, which stands before the oldest item; 0 = no users."""
    constrained_softmax: bool = False
    """In the generative head, the softmax of a level is over the codes that continue to a real item, in training as in search
    (not in the papers); false = over all tokens."""

    def __post_init__(self) -> None:
        if self.user_tokens < 0:
            raise ValueError(f"user_tokens must be at least 0, not {self.user_tokens}")
        if self.max_length < 1 or min(self.projection, default=1) < 1:
            raise ValueError("max_length and projection sizes must be at least 1")
        if not (self.temperature > 0 and self.embedding_std > 0):
            raise ValueError(
                f"temperature and embedding_std must be above 0, not {self.temperature} and {self.embedding_std}"
            )
        if min(self.generative_weight, self.dense_weight) < 0 or self.generative_weight + self.dense_weight == 0:
            raise ValueError("generative_weight and dense_weight must be at least 0, one of them above 0")
        if self.neighbours < 0 or (self.neighbours and self.dense_weight == 0):
            raise ValueError(
                "neighbours must be at least 0, and belong to the dense head: dense_weight must be above 0"
            )
        if self.unseen_budget is not None and not 0 <= self.unseen_budget < 1:
            raise ValueError(f"unseen_budget must lie in [0, 1), or be None, not {self.unseen_budget}")
        if self.unseen_budget is not None and self.dense_weight == 0:
            raise ValueError("unseen_budget belongs to the dense head: dense_weight must be above 0")
        if self.dense_weight > 0 and not self.text:
            raise ValueError("dense_weight is above 0 but text is false: the dense head scores items by their text")
        if self.constrained_softmax and self.generative_weight == 0:
            raise ValueError("constrained_softmax belongs to the generative head: generative_weight must be above 0")
        if self.repeat_bias and self.dense_weight == 0:
            raise ValueError("repeat_bias belongs to the dense head: dense_weight must be above 0")
        if not (0 <= self.input_dropout < 1 and 0 <= self.projection_dropout < 1):
            raise ValueError("input_dropout and projection_dropout must lie in [0, 1)")

    def build(self, catalogue: Catalogue) -> "Liger":
        assert catalogue.features is not None  # needs_semantic_ids
        return Liger(catalogue.features, self)


class Liger(Retriever[Tensor | Personal]):
    """See the module. Items are 1..N; histories (B, L) are left-padded with 0, newest item last."""

    item_tokens: Tensor
    item_text: Tensor
    seen: Tensor
    axes: Tensor
    blend: Tensor

    def __init__(self, items: ItemFeatures, config: LigerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = items.num_tokens
        self._known: KnownItems | None = None
        self.register_load_state_dict_post_hook(forget_known)
        width, levels = config.transformer.dim, items.tokens.shape[1]
        self.register_buffer("item_tokens", items.tokens.clone())
        self.register_buffer("item_text", items.text.clone())
        self.register_buffer("seen", items.seen.clone())
        # token 0 starts the decoder; users' tokens follow those of items, and are never emitted
        self.token_embedding = nn.Embedding(items.num_tokens + config.user_tokens, width)
        tables = [self.token_embedding]
        if config.absolute_positions:
            self.position_embedding = nn.Embedding(config.max_length, width)
            self.level_embedding = nn.Embedding(levels, width)
            tables += [self.position_embedding, self.level_embedding]
        self.input_norm = nn.LayerNorm(width) if config.input_norm else nn.Identity()
        for table in tables:
            nn.init.normal_(table.weight, std=config.embedding_std)
        self.encoder = T5Encoder(config.transformer)
        if config.text:
            self.projection = _TextProjection(items.text.shape[1], width, config)
        if config.repeat_bias:
            self.repeat = nn.Parameter(torch.zeros(()))
        if config.neighbours:
            self.register_buffer("axes", _principal_axes(items.text * items.seen.unsqueeze(1), config.neighbours))
            self.neighbour_weight = nn.Parameter(torch.ones(()))
            self.fading = nn.Parameter(0.5 ** torch.arange(config.max_length - 1, -1, -1.0))  # (L,), newest last
        if config.unseen_budget is not None:
            self.register_buffer("blend", torch.zeros(3))  # fields of TextBlend
        if config.generative_weight > 0:
            self.decoder = T5Decoder(config.transformer)
            self.head = nn.Linear(width, items.num_tokens, bias=False)
            nn.init.normal_(self.head.weight, std=width**-0.5)

    @property
    def num_items(self) -> int:
        return len(self.item_tokens) - 1

    @property
    def dense(self) -> DenseHead[Tensor | Personal] | None:
        return self if self.config.dense_weight > 0 else None

    @property
    def generative(self) -> GenerativeHead[Tensor | Personal] | None:
        return self if self.config.generative_weight > 0 else None

    @property
    def growing(self) -> Growing | None:
        return self if self.config.text else None

    @property
    def blended(self) -> Blended | None:
        return None if self.config.unseen_budget is None else self

    @property
    def unseen_budget(self) -> float:
        return self.config.unseen_budget or 0.0

    def blend_with(self, blend: TextBlend) -> None:
        self.blend = self.blend.new_tensor([blend.text, blend.decay, blend.unseen])

    def add_items(self, tokens: Tensor, text: Tensor) -> int:
        """Take in n items never seen in training by tokens (n, M) and text embeddings (n, E); returns the first one's number."""
        first = len(self.item_tokens)
        self.item_tokens = torch.cat([self.item_tokens, tokens.to(self.item_tokens)])
        self.item_text = torch.cat([self.item_text, text.to(self.item_text)])
        self.seen = torch.cat([self.seen, self.seen.new_zeros(len(tokens))])
        self._known = None
        return first

    @property
    def known(self) -> KnownItems | None:
        """The items' trie for a constrained softmax; made when first needed, since a bundle's tokens come after its model."""
        if not self.config.constrained_softmax:
            return None
        if self._known is None or self._known.nodes.device != self.item_tokens.device:
            self._known = KnownItems(self.item_tokens)
        return self._known

    def encode(self, asked: Tensor | Personal, projected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States (B, K, D) and which of them are real (B, K), for histories (B, L); K = L * M, and one more with users' tokens.

        ``projected``: text of all items (N + 1, D), when the caller has it already.
        """
        history = items_of(asked)[:, -self.config.max_length :]
        length, levels = history.shape[1], self.item_tokens.shape[1]
        x = self.token_embedding(self.item_tokens[history])  # (B, L, M, D)
        if self.config.text:
            text = self.projection(self.item_text[history]) if projected is None else projected[history]
            x = x + text.unsqueeze(2)
        if self.config.absolute_positions:
            newest_first = torch.arange(length - 1, -1, -1, device=history.device)
            x = x + self.position_embedding(newest_first)[:, None, :] + self.level_embedding.weight
        x, real = x.flatten(1, 2), (history > 0).repeat_interleave(levels, 1)
        if self.config.user_tokens:
            user = asked.user if isinstance(asked, Personal) else history.new_zeros(len(history))
            x, real = self._after_user(user, x, real)
        x = dropout(self.input_norm(x), self.config.input_dropout, self.training)
        return self.encoder(x, real), real

    def _after_user(self, user: Tensor, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, K, D) and real (B, K) with each user's token right before the first real place, (B, K + 1, D) and (B, K + 1).

        So its distance to the items, all that T5 knows of places, does not depend on padding. user: (B,), 0 = none.
        """
        x, real = pad(x, (0, 0, 1, 0)), pad(real, (1, 0))
        slot = torch.arange(real.shape[1], device=user.device) == (~real).sum(1, keepdim=True) - 1  # (B, K + 1)
        tokens = self.token_embedding((user + self.num_tokens - 1).clamp_min(0))  # (B, D)
        return torch.where(slot.unsqueeze(2), tokens.unsqueeze(1), x), real | slot & (user > 0).unsqueeze(1)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"dense": self.config.dense_weight, "generative": self.config.generative_weight}

    def loss_sizes(self, history: Tensor | Personal, target: Tensor) -> Mapping[str, Tensor]:
        return {"dense": self.seen[target].sum(), "generative": torch.tensor(len(target), device=target.device)}

    def losses(self, history: Tensor | Personal, target: Tensor) -> Mapping[str, Tensor]:
        """ "dense" and "generative", as far as there are such heads.

        Targets never seen in training take no part in the dense loss, neither do such items as its candidates.
        """
        config, parts = self.config, {}
        projected = self.projection(self.item_text) if config.dense_weight > 0 else None
        states, real = self.encode(history, projected)
        if projected is not None:
            parts["dense"] = self._dense_loss(states, projected, items_of(history), target)
        if config.generative_weight > 0:
            tokens = self.item_tokens[target]  # (B, M)
            logits = self.head(self._decode(tokens[:, :-1], self.decoder.cache(states, real)))
            known = self.known
            if known is None:
                parts["generative"] = cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
            else:
                parts["generative"] = -known.log_probabilities(logits, target).mean()
        return parts

    def query(self, history: Tensor | Personal) -> Tensor:
        """What the dense head looks for: unit vectors (B, D) of histories (B, L); with ``neighbours`` (B, D + A), the faded sum
        of the history's texts behind them, of length ``neighbour_weight``; with ``unseen_budget`` the blend's columns, see
        ``item_vectors``."""
        return self._blended_query(self.encode(history)[0], items_of(history), bonus=True)

    def _blended_query(self, states: Tensor, history: Tensor, *, bonus: bool) -> Tensor:
        query = self._query(states, history)
        if self.config.unseen_budget is None:
            return query
        weight, decay, unseen = self.blend
        asked = weight * text_query(self.item_text, history[:, -self.config.max_length :], decay)
        lift = (unseen if bonus else torch.zeros_like(unseen)).expand(len(query), 1)
        return _padded(torch.cat([query, asked, lift], 1))

    def _query(self, states: Tensor, history: Tensor) -> Tensor:
        query = normalize(states[:, -1].float(), dim=1)
        if not self.config.neighbours:
            return query
        history = history[:, -self.config.max_length :]
        kin = self._kin(self.item_text[history]) * (history > 0).unsqueeze(2)  # (B, L, A)
        faded = normalize((kin * self.fading[-history.shape[1] :].unsqueeze(1)).sum(1), dim=1)
        return torch.cat([query, self.neighbour_weight * faded], 1)

    def _kin(self, text: Tensor) -> Tensor:
        """(..., E) to unit vectors (..., A) in the principal dimensions."""
        return normalize(text.float() @ self.axes, dim=-1)

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """Unit vectors (n, D) of items ``rows`` (n,), or of all (N + 1, D); with ``neighbours`` (n, D + A), those of the text
        behind them; with ``unseen_budget`` the unit text, 1 for what training never saw, and zeros. Row 0 belongs to no item."""
        text, seen = (self.item_text, self.seen) if rows is None else (self.item_text[rows], self.seen[rows])
        vectors = self._vectors(self.projection(text), text)
        if self.config.unseen_budget is None:
            return vectors
        return _padded(torch.cat([vectors, normalize(text.float(), dim=1), (~seen).float().unsqueeze(1)], 1))

    def _vectors(self, projected: Tensor, text: Tensor) -> Tensor:
        vectors = normalize(projected.float(), dim=1)
        return torch.cat([vectors, self._kin(text)], 1) if self.config.neighbours else vectors

    def dense_scores(self, history: Tensor | Personal) -> Tensor:
        """Products (B, N + 1) of ``query`` and ``item_vectors``, the repeat bias on top if there is one; -inf for padding."""
        scores = self.query(history) @ self.item_vectors().T
        if self.config.repeat_bias:
            scores = shifted_scores(
                scores, once_each(items_of(history)[:, -self.config.max_length :]), self.repeat_shift()
            )
        scores[:, 0] = -torch.inf
        return scores

    def repeat_shift(self) -> Tensor:
        """() on top of the cosines of the history's items."""
        return self.repeat

    def repeats(self, history: Tensor | Personal) -> Repeats | None:
        if not self.config.repeat_bias:
            return None
        return Repeats(once_each(items_of(history)[:, -self.config.max_length :]), self.repeat_shift())

    def decoding(self, history: Tensor | Personal) -> TupleDecoding:
        """For ``rayrec.retrieval.beam_search``."""
        return self._decoding(*self.encode(history))

    def query_and_decoding(self, history: Tensor | Personal) -> tuple[Tensor, TupleDecoding]:
        """For the hybrid list, which holds every unseen item as it is: without the blend's bonus."""
        states, real = self.encode(history)
        return self._blended_query(states, items_of(history), bonus=False), self._decoding(states, real)

    def _decoding(self, states: Tensor, real: Tensor) -> TupleDecoding:
        cache = self.decoder.cache(states, real)
        return TupleDecoding(self.token_embedding, self.decoder, self.head, cache, self.known)

    def log_likelihood(self, history: Tensor | Personal, items: Tensor) -> Tensor:
        """log p (B, K) of the tuples of items (B, K) after histories (B, L)."""
        tokens = self.item_tokens[items]  # (B, K, M)
        cache = self.decoder.cache(*self.encode(history))
        logits = self.head(self._decode(tokens.flatten(0, 1)[:, :-1], cache))
        known = self.known
        if known is None:
            each = logits.float().log_softmax(-1).gather(2, tokens.flatten(0, 1).unsqueeze(2)).squeeze(2)
        else:
            each = known.log_probabilities(logits, items.flatten())
        return each.sum(1).view(items.shape)

    def _decode(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Decoder states (B, M, D) at each of M tokens, of which the first M - 1 are given (B, M - 1)."""
        start = tokens.new_zeros(len(tokens), 1)
        states: Tensor = self.decoder(self.token_embedding(torch.cat([start, tokens], 1)), cache)
        return states

    def _dense_loss(self, states: Tensor, projected: Tensor, history: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy () of (score + repeat bias) / temperature over the seen items."""
        rows = self.seen.nonzero().squeeze(1)
        place = torch.zeros_like(self.seen, dtype=torch.int64)  # 0: padding and cold items, which are no candidates
        place[rows] = torch.arange(1, len(rows) + 1, device=rows.device)
        known = self.seen[target]
        if not bool(known.any()):
            return states.sum() * 0.0
        temperature = self.config.temperature
        queries = self._query(states[known], history[known]) / temperature
        items = pad(self._vectors(projected[rows], self.item_text[rows]), (0, 0, 1, 0))
        shifted, shift = None, None
        if self.config.repeat_bias:
            shifted, shift = place[once_each(history[known][:, -self.config.max_length :])], self.repeat / temperature
        return full_softmax_loss(queries, items, place[target[known]], shifted=shifted, shift=shift)


def _padded(vectors: Tensor) -> Tensor:
    """(n, D) with zeros behind up to a multiple of 32, into which an index of product codes can divide them."""
    return pad(vectors, (0, -vectors.shape[1] % 32))


def _principal_axes(text: Tensor, count: int) -> Tensor:
    """(E, A) orthonormal, those along which the n embeddings (n, E) lie farthest out first; A is at most E. Rows of 0
    count for nothing."""
    return torch.linalg.eigh(text.double().T @ text.double()).eigenvectors.flip(1)[:, :count].float().contiguous()


class _TextProjection(nn.Module):
    """Text embeddings (..., E) to T5's width (..., D): a linear map plus a ReLU network."""

    def __init__(self, text: int, width: int, config: LigerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(text, width)
        layers: list[nn.Module] = []
        sizes = (text, *config.projection)
        for inner, outer in zip(sizes, config.projection, strict=False):
            layers += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(config.projection_dropout)]
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], width))

    def forward(self, text: Tensor) -> Tensor:
        projected: Tensor = self.linear(text) + self.network(text)
        return projected
