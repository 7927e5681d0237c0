"""Byte-level BPE: trained on a corpus, or read from a local tokenizer folder. No network, no pickle: one JSON text."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rayrec.errors import UserError

SEPARATOR = "<|endoftext|>"
FILE = "tokenizer.json"


class TokenizerError(UserError):
    """A tokenizer file that is absent or not usable, or a vocabulary too small to train one."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer in the JSON form of the ``tokenizers`` package. separator: id of the token put after each document."""

    json: str
    separator: int

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self.json)

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without any special token."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> TextTokenizer:
    """Byte-level BPE (every text can be encoded, nothing is unknown); texts are read once, as a stream.

    Raises TokenizerError when ``vocabulary`` leaves no room for the 256 bytes and the separator.
    """
    if vocabulary < 257:
        raise TokenizerError(f"a byte-level vocabulary needs at least 257 tokens, not {vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    separator = tokenizer.token_to_id(SEPARATOR)
    assert separator is not None  # special tokens come first
    return TextTokenizer(tokenizer.to_str(), separator)


def read_tokenizer(folder: Path | str) -> TextTokenizer:
    """``<folder>/tokenizer.json``, as transformers and this package write it.

    The separator is ``eos_token`` of ``tokenizer_config.json`` when that is there, else ``<|endoftext|>`` or ``</s>``.
    Raises TokenizerError that names the file.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        raise TokenizerError(f"{file}: no such file")
    try:
        text = file.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exceptions
        raise TokenizerError(f"{file}: not a tokenizer: {error}") from None
    candidates = [SEPARATOR, "</s>"]
    config = Path(folder) / "tokenizer_config.json"
    if config.is_file():
        try:
            named = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        except (ValueError, AttributeError) as error:
            raise TokenizerError(f"{config}: not the JSON object of a tokenizer: {error}") from None
        candidates.insert(0, str(named.get("content") if isinstance(named, dict) else named))
    for candidate in candidates:
        separator = tokenizer.token_to_id(candidate)
        if separator is not None:
            return TextTokenizer(text, int(separator))
    raise TokenizerError(f"{file}: no token to separate documents (looked for {', '.join(candidates)})")
