"""Mender: a generative retriever that is steered by a preference in plain words (arXiv 2412.08604).

MenderEmb   a frozen text encoder has embedded the preference (one vector) and the items (one each) beforehand
MenderTok   a text encoder reads preference and titles as one prompt; frozen, adapted by LoRA, or tuned whole
Both        a linear map, then a decoder from scratch of TIGER's shape that attends to it and emits the tokens of the next item
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.models.layers.lora import adapt
from rayrec.models.layers.remembered_states import RememberedStates
from rayrec.models.prompt import NONE, Prompt
from rayrec.models.t5 import T5Config
from rayrec.models.tuple_decoding import TupleDecoder, TupleDecoding
from rayrec.retrieval.retriever import GenerativeHead, Growing, Retriever, Steered

Tune = Literal["frozen", "lora", "full"]

_LORA = ("q", "k", "v", "o", "query", "key", "value", "attention.output.dense")  # of T5 and of BERT


@dataclass(frozen=True)
class MenderConfig:
    """What both variants share."""

    transformer: T5Config = field(default_factory=lambda: T5Config(dropout=0.2))
    """Of the decoder; its encoder's layers are not built."""
    max_length: int = 20
    """Newest items that are read."""
    input_dropout: float = 0.1
    """On what the decoder attends to."""
    preference_dropout: float = 0.1
    """Share of training rows that get no preference, so that the model can do without one (not in the paper)."""
    ascent_limit: float = 10.0
    """Rows that should not be recommended are pushed away until they cost so many nats a token (the paper has none)."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {self.max_length}")
        if not (0 <= self.input_dropout < 1 and 0 <= self.preference_dropout <= 1):
            raise ValueError("input_dropout must lie in [0, 1), preference_dropout in [0, 1]")
        if not self.ascent_limit > 0:
            raise ValueError(f"ascent_limit must be above 0, not {self.ascent_limit}")


@dataclass(frozen=True)
class MenderEmbConfig(MenderConfig):
    """See ``MenderConfig``."""

    needs_semantic_ids: ClassVar[bool] = True
    reads_windows: ClassVar[bool] = False
    user_tokens: ClassVar[int] = 0
    reads_preferences: ClassVar[Literal["vectors"]] = "vectors"

    def build(self, catalogue: Catalogue) -> "MenderEmb":
        assert catalogue.features is not None  # needs_semantic_ids
        assert catalogue.preference_dim is not None  # reads_preferences
        return MenderEmb(catalogue.features, catalogue.preference_dim, self)


@dataclass(frozen=True)
class MenderTokConfig(MenderConfig):
    """What the token variant adds: the text encoder in the model."""

    needs_semantic_ids: ClassVar[bool] = True
    reads_windows: ClassVar[bool] = False
    user_tokens: ClassVar[int] = 0
    reads_preferences: ClassVar[Literal["tokens"]] = "tokens"

    encoder: str = "minilm"
    """Which text encoder (folder, hub id, or "minilm")."""
    layers: int | None = None
    """The first so many layers of that encoder; None = all."""
    tune: Tune = "lora"
    """What of the encoder is trained: nothing ("frozen"), low-rank additions to its attention ("lora"), everything ("full")."""
    lora_rank: int = 16
    """Rank of the low-rank additions."""
    lora_alpha: float = 1.0
    """Scale of the low-rank additions, over their rank."""
    longest: int = 256
    """Tokens of a prompt; the oldest items go first."""
    remembered: int = 0
    """Prompts whose states a frozen encoder keeps in memory while the model is trained, so that each is encoded once
    (in bfloat16; 2 bytes x tokens x width are kept); with preference_dropout above 0 a row has two."""
    pretrained: bool = True
    """False = an encoder of that shape with random weights, which only tune "full" can make use of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest < 32 or self.lora_rank < 1 or (self.layers is not None and self.layers < 1):
            raise ValueError("longest must be at least 32, lora_rank and layers at least 1")
        if self.remembered < 0 or (self.remembered > 0 and self.tune != "frozen"):
            raise ValueError("remembered must be 0, or above it with tune frozen: a trained encoder's states change")
        if not self.pretrained and self.tune != "full":
            raise ValueError("an encoder that is not pretrained needs tune full")

    def build(self, catalogue: Catalogue) -> "MenderTok":
        assert catalogue.features is not None
        assert catalogue.prompts is not None  # reads_preferences
        return MenderTok(catalogue.features, catalogue.prompts.build_encoder(), Prompt(catalogue.prompts.tokens), self)


class _Mender(Retriever[Steered]):
    """Items are 1..N; histories (B, L) are left-padded with 0, newest item last."""

    item_tokens: Tensor
    seen: Tensor

    def __init__(self, items: ItemFeatures, config: MenderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("item_tokens", items.tokens.clone())
        self.register_buffer("seen", items.seen.clone())
        self.tuples = TupleDecoder(config.transformer, items.num_tokens)

    @property
    def num_items(self) -> int:
        return len(self.item_tokens) - 1

    @property
    def generative(self) -> GenerativeHead[Steered]:
        return self

    @abstractmethod
    def encode(self, asked: Steered) -> tuple[Tensor, Tensor]:
        """What the decoder attends to: states (B, K, D) and which are real (B, K) bool."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"next_item": 1.0, "wanted": 0.0, "unwanted": 0.0}  # the latter two are told, not learned

    def loss_sizes(self, history: Steered, target: Tensor) -> Mapping[str, Tensor]:
        return dict.fromkeys(self.loss_weights, torch.tensor(len(target), device=target.device))

    def losses(self, history: Steered, target: Tensor) -> Mapping[str, Tensor]:
        """Mean over the batch of sign * cross-entropy: Mender-All's w+ CE+ - w- CE- with the weights as batch fractions."""
        each = self.tuples.cross_entropies(self.item_tokens[target], *self.encode(self._some_without(history)))
        if history.sign is None:
            return {"next_item": each.mean()}
        unwanted = history.sign < 0
        away = each.clamp_max(self.config.ascent_limit)
        signed = torch.where(unwanted, -away, each)
        parts = {"next_item": signed.mean(), "wanted": each[~unwanted].sum() / len(each)}
        return parts | {"unwanted": each[unwanted].sum() / len(each)}

    def decoding(self, history: Steered) -> TupleDecoding:
        return self.tuples.decoding(*self.encode(history))

    def log_likelihood(self, asked: Steered, items: Tensor) -> Tensor:
        """log p (B, K) of items (B, K)."""
        states, real = self.encode(asked)
        tokens = self.item_tokens[items]  # (B, K, M)
        each = [
            -self.tuples.cross_entropies(tokens[:, k], states, real) * tokens.shape[2] for k in range(items.shape[1])
        ]
        return torch.stack(each, 1)

    def _some_without(self, asked: Steered) -> Steered:
        if not (self.training and self.config.preference_dropout > 0):
            return asked
        gone = torch.rand(len(asked.history), 1, device=asked.history.device) < self.config.preference_dropout
        if asked.sign is not None:
            gone &= (asked.history > 0).any(1, keepdim=True)  # a wish without a history is all there is
        return Steered(asked.history, asked.preference.masked_fill(gone, self.no_preference), asked.sign)

    @property
    @abstractmethod
    def no_preference(self) -> int:
        """What a preference without content holds everywhere."""


class MenderEmb(_Mender):
    """Preferences: (B, P) unit vectors, zeros = none. Knows an item by its text embedding, so new ones need no training."""

    item_text: Tensor
    no_preference = 0

    def __init__(self, items: ItemFeatures, preference_dim: int, config: MenderEmbConfig) -> None:
        super().__init__(items, config)
        width = config.transformer.dim
        self.register_buffer("item_text", items.text.clone())
        self.item_map, self.preference_map = nn.Linear(items.text.shape[1], width), nn.Linear(preference_dim, width)
        self.position_embedding = nn.Embedding(config.max_length + 1, width)  # 0: the preference; 1: the newest item
        nn.init.normal_(self.position_embedding.weight, std=0.1)
        self.input_norm = nn.LayerNorm(width)

    @property
    def growing(self) -> Growing:
        return self

    def add_items(self, tokens: Tensor, text: Tensor) -> int:
        """Take in n items by tokens (n, M) and text embeddings (n, E); returns the first one's number."""
        first = len(self.item_tokens)
        self.item_tokens = torch.cat([self.item_tokens, tokens.to(self.item_tokens)])
        self.item_text = torch.cat([self.item_text, text.to(self.item_text)])
        self.seen = torch.cat([self.seen, self.seen.new_zeros(len(tokens))])
        return first

    def encode(self, asked: Steered) -> tuple[Tensor, Tensor]:
        history = asked.history[:, -self.config.max_length :]
        x = torch.cat([self.preference_map(asked.preference).unsqueeze(1), self.item_map(self.item_text[history])], 1)
        newest_is_one = torch.arange(history.shape[1], 0, -1, device=history.device)
        places = torch.cat([newest_is_one.new_zeros(1), newest_is_one])
        x = self.input_norm(x + self.position_embedding(places))
        given = (asked.preference != 0).any(1, keepdim=True)
        return dropout(x, self.config.input_dropout, self.training), torch.cat([given, history > 0], 1)


class MenderTok(_Mender):
    """Preferences: (B, P) int64 tokens, NONE = no token.

    encoder: called with input_ids and attention_mask (B, K); gives ``last_hidden_state`` (B, K, E).
    """

    no_preference = NONE

    def __init__(self, items: ItemFeatures, encoder: nn.Module, prompt: Prompt, config: MenderTokConfig) -> None:
        super().__init__(items, config)
        self.prompt, self.text_encoder, self.tune = prompt, encoder, config.tune
        if config.tune == "frozen":
            encoder.requires_grad_(False)
        elif config.tune == "lora":
            adapt(encoder, _LORA, config.lora_rank, config.lora_alpha)
        self.map = nn.Linear(int(encoder.config.hidden_size), config.transformer.dim)  # type: ignore[union-attr, arg-type]
        self.input_norm = nn.LayerNorm(config.transformer.dim)
        self._states: Callable[[Tensor, Tensor], Tensor] = self._encoded
        if config.remembered:
            self._states = RememberedStates(self._encoded, config.remembered)

    def train(self, mode: bool = True) -> "MenderTok":
        super().train(mode)
        if self.tune == "frozen":
            self.text_encoder.eval()
        return self

    def encode(self, asked: Steered) -> tuple[Tensor, Tensor]:
        ids, real = self.prompt(asked.history[:, -self.config.max_length :], asked.preference)
        x = self.input_norm(self.map(self._states(ids, real)))
        return dropout(x, self.config.input_dropout, self.training), real

    def _encoded(self, ids: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad() if self.tune == "frozen" else nullcontext():
            states: Tensor = self.text_encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return states
