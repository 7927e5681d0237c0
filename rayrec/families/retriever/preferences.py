"""What a retriever that preferences steer is built, trained and stored with: the benchmark's texts in the form that it reads."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rayrec.data.preferences.benchmark import Benchmark
from rayrec.data.preferences.pools import Axis
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import Prompts
from rayrec.models.prompt import PromptTokens
from rayrec.text.encoder import EncoderError, TextEncoder, TextEncoderConfig
from rayrec.text.prompt_tokens import EncoderTexts, PromptTokenizer, empty_text_encoder, load_text_encoder

_TITLE, _PREFERENCE = 32, 128  # tokens of each that are read


@dataclass(frozen=True)
class PreferenceConfig:
    """Training with preferences."""

    benchmark: Path | None = None
    """Folder of jobs.build_preference_benchmark; its axis 1 trains and selects, as in the paper."""
    axes: tuple[Axis, ...] = ("recommendation",)
    """Whose training pools are used; all five make "Mender-All", with ascent on the opposites of axis 2."""
    most_rows: int | None = None
    """Of each axis's training pool, for small machines; None = all."""

    def __post_init__(self) -> None:
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes must be different and at least one, given {self.axes}")
        if self.most_rows is not None and self.most_rows < 1:
            raise ValueError(f"most_rows must be at least 1, not {self.most_rows}")


@dataclass(frozen=True)
class SavedPreferences:
    """What reads a preference as the model was trained to. encoder, dim: of vectors. texts: of tokens. titles: their width."""

    encoder: str
    dim: int
    texts: EncoderTexts | None = None
    titles: int = 0


def prompts(texts: EncoderTexts, titles: list[str], config: RetrievalConfig) -> Prompts:
    """For a model that is to be trained, with the encoder's weights or, not pretrained, of its shape."""
    settings, tokenizer = config.reader, PromptTokenizer(texts)
    assert settings is not None
    matrix = tokenizer.matrix(["", *titles], _TITLE)
    tokens = PromptTokens(*tokenizer.around(), matrix, texts.special.pad, settings.longest)
    if settings.pretrained:
        return Prompts(tokens, lambda: load_text_encoder(settings.encoder, settings.layers))
    return Prompts(tokens, lambda: empty_text_encoder(texts, settings.layers))


def empty_prompts(saved: SavedPreferences, num_items: int, config: RetrievalConfig) -> Prompts:
    """For a model whose weights and titles are loaded after."""
    settings, texts = config.reader, saved.texts
    assert settings is not None
    assert texts is not None
    matrix = torch.zeros(num_items + 1, saved.titles, dtype=torch.int64)
    tokens = PromptTokens(*PromptTokenizer(texts).around(), matrix, texts.special.pad, settings.longest)
    return Prompts(tokens, lambda: empty_text_encoder(texts, settings.layers))


def benchmark_features(benchmark: Benchmark, config: RetrievalConfig, texts: EncoderTexts | None) -> Tensor | None:
    """(T, ...) by text: vectors (E,), tokens (P,), or None for a model that is blind to preferences."""
    reads = config.architecture.reads_preferences
    if reads is None:
        return None
    if reads == "vectors":
        return torch.from_numpy(benchmark.vectors.copy())
    assert texts is not None
    return PromptTokenizer(texts).matrix(benchmark.texts, _PREFERENCE)


class PreferenceReader:
    """Preferences as a stored model reads them, for serving; the newest ``kept`` ones are kept as they were read.

    Raises EncoderError at once when the text encoder that the model was trained with is not there. Not thread-safe.
    """

    def __init__(self, saved: SavedPreferences, config: RetrievalConfig, kept: int = 10_000) -> None:
        self._dim, self._kept = saved.dim, kept
        self._encoder: TextEncoder | None = None
        self._tokenizer: PromptTokenizer | None = None
        if config.architecture.reads_preferences == "tokens":
            assert saved.texts is not None
            self._tokenizer = PromptTokenizer(saved.texts)
        else:
            self._encoder = TextEncoder(TextEncoderConfig(saved.encoder))
            if self._encoder.dim != saved.dim:
                raise EncoderError(
                    f"{saved.encoder!r} embeds in {self._encoder.dim} dimensions, the model reads {saved.dim}"
                )
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def read(self, preferences: Sequence[str]) -> Tensor:
        """(n, E) vectors or (n, P) tokens; "" is no preference."""
        if self._tokenizer is not None:
            return self._tokenizer.matrix(preferences, _PREFERENCE)
        assert self._encoder is not None
        new = [text for text in dict.fromkeys(preferences) if text and text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder(new), strict=True))
        found = torch.zeros(len(preferences), self._dim)
        for i, text in enumerate(preferences):
            if text:
                self._known.move_to_end(text)
                found[i] = self._known[text]
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return found
