"""Tokens of prompts and their text encoder, from a folder, a hub id, "minilm", or the texts that a bundle keeps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from rayrec.text.encoder import MINILM, EncoderError, minilm_folder

NONE = -1


@dataclass(frozen=True)
class SpecialTokens:
    """first, last: what the encoder wants around a text, None = nothing. pad: fills up batches."""

    first: int | None
    last: int | None
    pad: int


@dataclass(frozen=True)
class EncoderTexts:
    """All that builds a text encoder and its tokenizer again, weights apart: JSON texts."""

    model: str
    tokenizer: str
    special: SpecialTokens


class PromptTokenizer:
    """Text to token ids without special tokens."""

    def __init__(self, texts: EncoderTexts) -> None:
        self.texts, self.special = texts, texts.special
        self._tokenizer = Tokenizer.from_str(texts.tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def matrix(self, texts: Sequence[str], most: int) -> Tensor:
        """(n, T) int64, at most ``most`` tokens of each text, NONE behind its end."""
        rows = [self.ids(text)[:most] for text in texts]
        width = max((len(row) for row in rows), default=0)
        found = torch.full((len(rows), width), NONE, dtype=torch.int64)
        for i, row in enumerate(rows):
            found[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return found

    def around(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids of "Instructions: ", of ". Items: " and of the end."""
        first = [] if self.special.first is None else [self.special.first]
        last = [] if self.special.last is None else [self.special.last]
        parts = ([*first, *self.ids("Instructions:")], self.ids(". Items:"), last)
        before, between, after = (torch.tensor(part, dtype=torch.int64) for part in parts)
        return before, between, after


def read_encoder_texts(model: str) -> EncoderTexts:
    """Raises EncoderError when there is no such encoder, or its tokenizer has no JSON form."""
    from transformers import AutoConfig, AutoTokenizer  # seconds of imports, here and below

    where = minilm_folder() if model == MINILM else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, use_fast=True)
        config = AutoConfig.from_pretrained(where)
        backend = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        raise EncoderError(f"text encoder {model!r}: {str(error).splitlines()[0]}") from None
    first = tokenizer.cls_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return EncoderTexts(json.dumps(config.to_dict()), backend, SpecialTokens(first, last, pad))


def load_text_encoder(model: str, layers: int | None) -> nn.Module:
    """The encoder with its weights, the first ``layers`` of them."""
    from transformers import AutoModel

    where = minilm_folder() if model == MINILM else model
    try:
        found = AutoModel.from_pretrained(where, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise EncoderError(f"text encoder {model!r}: {str(error).splitlines()[0]}") from None
    return _first_layers(found, layers)


def empty_text_encoder(texts: EncoderTexts, layers: int | None) -> nn.Module:
    """The same without weights, to load a bundle's into. Nothing is fetched and no code of the file is run."""
    from transformers import AutoConfig, AutoModel

    given: dict[str, Any] = json.loads(texts.model)
    kind = given.pop("model_type", None)
    if not isinstance(kind, str):
        raise EncoderError("the text encoder's config has no model_type")
    try:
        return _first_layers(AutoModel.from_config(AutoConfig.for_model(kind, **given)), layers)
    except (ValueError, TypeError) as error:
        raise EncoderError(f"text encoder of kind {kind!r}: {str(error).splitlines()[0]}") from None


def _first_layers(model: Any, layers: int | None) -> nn.Module:
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # mean states are read, not what pretraining pooled
    if layers is not None:
        holder = encoder.encoder if hasattr(encoder, "encoder") else encoder
        name = "layer" if hasattr(holder, "layer") else "block"
        stack = getattr(holder, name, None)
        if stack is None or layers > len(stack):
            raise EncoderError(f"the text encoder does not have {layers} layers")
        setattr(holder, name, stack[:layers])
    found: nn.Module = encoder
    return found
