"""The bundle of a language model: see ``rayrec.bundle``; beside config and weights it holds the tokenizer.

<bundle>/tokenizer.json   byte-level BPE in the form of the ``tokenizers`` package, which transformers reads as well

The weights are named as in transformers' ``LlamaForCausalLM``.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from rayrec.bundle import CONFIG, BundleError, BundleMetadata, Parts, load_model, read_metadata
from rayrec.models.llama import LlamaConfig, LlamaLanguageModel
from rayrec.text.tokenizer import FILE, TextTokenizer
from rayrec.typed_json import ConfigError, from_plain


@dataclass(frozen=True)
class SavedLanguageModel:
    """What ``model_config`` of the bundle's config.json holds. separator: id of the token between documents."""

    model: LlamaConfig
    separator: int


@dataclass(frozen=True)
class LanguageModelBundle:
    """A loaded bundle; ``model`` is in evaluation mode."""

    path: Path
    model: LlamaLanguageModel
    tokenizer: TextTokenizer
    metadata: BundleMetadata


def language_model_parts(model: LlamaLanguageModel, tokenizer: TextTokenizer) -> Parts:
    saved = SavedLanguageModel(model.config, tokenizer.separator)
    return Parts("language_model", model, saved, {FILE: tokenizer.json})


def load_language_model(folder: Path | str, device: torch.device | str = "cpu") -> LanguageModelBundle:
    """Read and check a bundle. Raises BundleError that says what is wrong; nothing in it is ever unpickled or executed."""
    folder = Path(folder)
    metadata = read_metadata(folder, "language_model", (FILE,))
    try:
        saved = from_plain(SavedLanguageModel, dict(metadata.model_config), f"{folder / CONFIG}: model_config")
    except ConfigError as error:
        raise BundleError(str(error)) from None
    tokenizer = TextTokenizer((folder / FILE).read_text(encoding="utf-8"), saved.separator)
    if tokenizer.vocabulary != saved.model.vocabulary:
        raise BundleError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary} tokens, the model expects {saved.model.vocabulary}"
        )
    model = load_model(lambda: LlamaLanguageModel(saved.model), folder, metadata)
    return LanguageModelBundle(folder, model.to(device).eval(), tokenizer, metadata)
