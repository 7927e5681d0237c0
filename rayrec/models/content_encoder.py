"""The text encoder that all content rankers share: any pretrained encoder or a T5 encoder from scratch, then a projection.

A history is read in sessions of consecutive contents, each encoded on its own, so that the cost is linear in their number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rayrec.models.content_inputs import Texts
from rayrec.models.t5 import T5Config, T5Encoder
from rayrec.typed_json import ConfigError, reads_earlier

_CHUNK = 16_384  # tokens that a frozen encoder reads at once


def _at_the_whole_rate(written: dict[str, Any]) -> dict[str, Any]:
    """What was written whole before there was ``rate_share`` was trained at the whole rate; a plan that leaves it out, with other
    fields too, means the default."""
    others = {"model", "train", "top_layers", "pretrained", "session", "dim", "dropout", "t5"}
    return {"rate_share": 1.0, **written} if others <= written.keys() else written


@reads_earlier(_at_the_whole_rate)
@dataclass(frozen=True)
class ContentEncoderConfig:
    """The encoder of texts."""

    model: str = "minilm"
    """Either "minilm", a folder or hub id of an encoder or encoder-decoder, or "t5_scratch": ``t5`` with fresh weights."""
    train: Literal["all", "top", "none"] = "all"
    """What of it is trained: all, its ``top_layers`` only, or nothing."""
    top_layers: int = 2
    """How many layers train "top" trains."""
    pretrained: bool = True
    """False = the same shape with random weights (an ablation)."""
    rate_share: float = 0.2
    """Of the learning rate for a pretrained encoder under AdamW, its table aside: SPAR's new layers learn five times as fast."""
    session: int = 5
    """Contents read together (choice: 5); one that does not fit is cut to its share of the encoder's positions."""
    dim: int = 200
    """d, to which token states are projected."""
    dropout: float = 0.1
    """Dropout on projected states."""
    t5: T5Config = field(
        default_factory=lambda: T5Config(dim=128, encoder_layers=2, decoder_layers=2, heads=4, head_dim=32)
    )
    """Shape of ``model`` t5_scratch."""

    def __post_init__(self) -> None:
        if min(self.session, self.dim, self.top_layers) < 1:
            raise ValueError("encoder session, dim and top_layers must be at least 1")
        if not 0 < self.rate_share <= 1:
            raise ValueError(f"encoder rate_share must lie in (0, 1], not {self.rate_share}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"encoder dropout must lie in [0, 1), not {self.dropout}")
        if self.model == SCRATCH and self.train != "all":
            raise ValueError("an encoder from scratch must be trained whole: encoder.train is 'all'")


SCRATCH = "t5_scratch"


@dataclass(frozen=True)
class History:
    """U histories as a grid: states (U, H, L, d), real (U, H, L) bool; there (U, H) bool: which places hold a content."""

    states: Tensor
    real: Tensor
    there: Tensor


class ContentEncoder(nn.Module):
    """vocabulary: ids of the tokenizer. where: folder or hub id of the pretrained encoder.

    shape: config of a Hugging Face model as saved in a bundle: ``where`` is not looked at then, and no weights are read.

    Raises ConfigError when there is no such encoder, or when it knows fewer ids than the tokenizer.
    """

    def __init__(
        self, config: ContentEncoderConfig, vocabulary: int, where: str = "", shape: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.body: Body = (
            _Scratch(config.t5, vocabulary) if config.model == SCRATCH else _Pretrained(config, where, shape)
        )
        if self.body.vocabulary < vocabulary:
            raise ConfigError(
                f"encoder {config.model!r} knows {self.body.vocabulary} ids, the tokenizer has {vocabulary}"
            )
        self.project = nn.Linear(self.body.width, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self._kept: dict[int, Tensor] = {}

    @property
    def shape(self) -> Mapping[str, Any] | None:
        """What builds a pretrained body again; None for one from scratch."""
        return self.body.shape if isinstance(self.body, _Pretrained) else None

    @property
    def frozen(self) -> bool:
        return self.config.train == "none"

    def keep_states_in(self, kept: dict[int, Tensor]) -> None:
        """Share what a frozen body said: encoders with the same weights and keys, run after run, read each text once."""
        self._kept = kept

    def train(self, mode: bool = True) -> "ContentEncoder":
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def texts(self, texts: Texts) -> Tensor:
        """(N, L, d) states of texts, each read on its own; L = 0 gives (N, 0, d)."""
        if not texts.tokens.shape[1]:
            return self.project.weight.new_zeros(*texts.tokens.shape, self.config.dim)
        states = self._kept_states(texts) if self.frozen else self._body(texts.tokens, texts.real)
        return self._projected(states)

    def history(self, contents: Texts, histories: Tensor, states: Tensor | None = None) -> History:
        """The grid of histories (U, H), 1 + row of ``contents``; ``states`` (N, L, d): of ``texts(contents)`` if at hand."""
        there = histories > 0
        if self.config.session == 1:
            states = self.texts(contents) if states is None else states
            return History(front(states)[histories], front(contents.real)[histories], there)
        return self._sessions(contents, histories, there)

    def _sessions(self, contents: Texts, histories: Tensor, there: Tensor) -> History:
        session, (users, length), slots = self.config.session, histories.shape, contents.tokens.shape[1]
        rows = nn.functional.pad(histories, (0, -length % session)).view(-1, session)  # (U * sessions, S)
        real = front(contents.real)[rows] & (torch.arange(slots, device=rows.device) < self.body.positions // session)
        read = (rows > 0).any(1)
        flat_real = real[read].flatten(1)  # (K, S * L)
        tokens = front(contents.tokens)[rows[read]].flatten(1)
        longest = max(1, int(flat_real.sum(1).max())) if len(flat_real) else 1
        order = (~flat_real).int().argsort(dim=1, stable=True)[:, :longest]  # real tokens first, as they stand
        states = self._projected(self._body(tokens.gather(1, order), flat_real.gather(1, order)))  # (K, T, d)
        grid = states.new_zeros(len(tokens), session * slots, self.config.dim)
        grid = grid.scatter(1, order.unsqueeze(2).expand_as(states), states)
        full = grid.new_zeros(len(rows), session * slots, self.config.dim)
        full[read] = grid
        return History(
            full.view(users, -1, slots, self.config.dim)[:, :length], real.view(users, -1, slots)[:, :length], there
        )

    def _projected(self, states: Tensor) -> Tensor:
        found: Tensor = self.dropout(self.project(states))
        return found

    def _body(self, tokens: Tensor, real: Tensor) -> Tensor:
        """(N, L, D); a frozen body reads in chunks, without gradients."""
        if not self.frozen:
            states: Tensor = self.body(tokens, real)
            return states
        with torch.no_grad():
            rows = max(1, _CHUNK // tokens.shape[1])
            parts = [self.body(tokens[i : i + rows], real[i : i + rows]) for i in range(0, len(tokens), rows)]
            return torch.cat(parts) if parts else self.project.weight.new_zeros(*tokens.shape, self.body.width)

    def _kept_states(self, texts: Texts) -> Tensor:
        """As ``_body``, reading only texts that are new to it: a frozen encoder says the same each time, in float32 whatever the
        precision of the step that asks first. What is kept lies on the CPU."""
        keys = texts.keys.tolist()
        new = [row for row, key in enumerate(keys) if key not in self._kept]
        fresh: dict[int, Tensor] = {}
        lengths = texts.real.sum(1).tolist()
        new.sort(key=lambda row: lengths[row])
        for start in range(0, len(new), 256):
            rows = new[start : start + 256]
            longest = max(1, lengths[rows[-1]])
            with torch.autocast(texts.tokens.device.type, enabled=False):
                states = self._body(texts.tokens[rows, :longest], texts.real[rows, :longest]).cpu()
            for row, own in zip(rows, states, strict=True):
                fresh[row] = own[: max(1, lengths[row])].clone()
                if keys[row]:
                    self._kept[keys[row]] = fresh[row]
        found = [fresh[row] if row in fresh else self._kept[key] for row, key in enumerate(keys)]
        padded = pad_sequence(found, batch_first=True).to(texts.tokens.device)
        return nn.functional.pad(padded, (0, 0, 0, texts.tokens.shape[1] - padded.shape[1]))


class Body(nn.Module):
    """width: D of its states. vocabulary: ids it knows. positions: most tokens of one input."""

    width: int
    vocabulary: int
    positions: int


class _Pretrained(Body):
    """A Hugging Face encoder, or the encoder of an encoder-decoder."""

    def __init__(self, config: ContentEncoderConfig, where: str, shape: Mapping[str, Any] | None) -> None:
        from transformers import AutoConfig, AutoModel  # seconds of imports

        super().__init__()
        try:
            if shape is not None:
                made = AutoModel.from_config(AutoConfig.for_model(**shape))
            elif config.pretrained:
                made = AutoModel.from_pretrained(where, use_safetensors=True)
            else:
                made = AutoModel.from_config(AutoConfig.from_pretrained(where))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"text encoder {config.model!r}: {str(error).splitlines()[0]}") from None
        settings = made.config
        self.shape = {**settings.to_dict(), "model_type": settings.model_type}
        self.model = made.get_encoder() if settings.is_encoder_decoder else made
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # it has no part in token states
        self.width = int(settings.hidden_size)
        self.vocabulary = int(settings.vocab_size)
        self.positions = int(getattr(settings, "max_position_embeddings", None) or 4096)
        if settings.model_type in ("roberta", "xlm-roberta", "camembert"):
            self.positions -= 2  # their first position is behind the padding's
        for parameter in self.model.parameters():
            parameter.requires_grad_(config.train == "all")
            parameter.rate_share = config.rate_share  # read by rayrec.optim
        if config.train == "top":
            self._thaw(config)

    def _thaw(self, config: ContentEncoderConfig) -> None:
        stacks = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        stack = max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)
        if stack is None or config.top_layers > len(stack):
            raise ConfigError(f"text encoder {config.model!r} has no {config.top_layers} layers to train")
        for layer in stack[-config.top_layers :]:
            layer.requires_grad_(True)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        return states


class _Scratch(Body):
    """Token embeddings and a T5 encoder with fresh weights."""

    def __init__(self, config: T5Config, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, config.dim)
        nn.init.normal_(self.embed.weight, std=1.0)
        self.encoder = T5Encoder(config)
        self.width, self.vocabulary, self.positions = config.dim, vocabulary, 4096

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        states: Tensor = self.encoder(self.embed(tokens), real)
        return states


def front(rows: Tensor) -> Tensor:
    """(1 + N, ...) of rows (N, ...): zeros in front, for padding."""
    return torch.cat([torch.zeros_like(rows[:1]) if len(rows) else rows.new_zeros(1, *rows.shape[1:]), rows])
