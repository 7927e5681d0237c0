"""The bundle of a content ranker: see ``rayrec.bundle``; beside config and weights it holds the tokenizer.

<bundle>/tokenizer.json: what turns texts into ids. The pretrained encoder's shape stands in config.json, so that neither a hub
nor the encoder's folder is needed to load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rayrec.bundle import CONFIG, WEIGHTS, BundleError, BundleMetadata, Parts, load_model, read_metadata
from rayrec.data.content.batches import ContentInputs
from rayrec.data.content.log import TextField
from rayrec.families.content.task import ContentConfig, ContentVocabulary, build_model
from rayrec.models.content_ranker import ContentRanker
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.typed_json import ConfigError, from_plain

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class SavedContent:
    """What ``model_config`` of the bundle's config.json holds.

    fields: of an item's text. items: fingerprint of the items. max_text_tokens: of a user's text.
    encoder: the pretrained encoder's own config; None for one from scratch.
    """

    ranker: ContentConfig
    vocabulary: ContentVocabulary
    fields: tuple[TextField, ...]
    items: str
    max_text_tokens: int
    encoder: Mapping[str, Any] | None


@dataclass(frozen=True)
class ContentBundle:
    """A loaded bundle in evaluation mode."""

    path: Path
    saved: SavedContent
    model: ContentRanker
    tokenizer: ContentTokenizer
    metadata: BundleMetadata

    @property
    def weights(self) -> str:
        """16 digits of the weights' SHA-256: embeddings of this model stand under them."""
        return self.metadata.sha256[WEIGHTS][:16]

    def refuse_other_inputs(self, inputs: ContentInputs, where: Path) -> None:
        """Raises ConfigError for tokens of another tokenizer, or longer ones than the model was made for."""
        if inputs.tokens.tokenizer != self.tokenizer:
            raise ConfigError(f"{where}: tokens of another tokenizer than that of {self.path}")
        trained = self.saved.vocabulary.shape
        if inputs.content_slots > trained.content_slots or inputs.interest_slots > trained.interest_slots:
            raise ConfigError(
                f"{where}: items of up to {inputs.content_slots} tokens and users' texts of up to "
                f"{inputs.interest_slots}; {self.path} reads up to {trained.content_slots} and {trained.interest_slots}"
            )


def content_parts(model: ContentRanker, saved: SavedContent, tokenizer: ContentTokenizer) -> Parts:
    return Parts("content", model, saved, {TOKENIZER: tokenizer.json})


def load_content_ranker(folder: Path | str, device: torch.device | str = "cpu") -> ContentBundle:
    """Read and check a bundle. Raises BundleError that says what is wrong; nothing in it is ever unpickled or executed."""
    folder = Path(folder)
    metadata = read_metadata(folder, "content", (TOKENIZER,))
    try:
        saved = from_plain(SavedContent, dict(metadata.model_config), f"{folder / CONFIG}: model_config")
    except ConfigError as error:
        raise BundleError(str(error)) from None
    model = load_model(lambda: build_model(saved.ranker, saved.vocabulary, saved.encoder), folder, metadata)
    model.to(device).eval()
    v = saved.vocabulary
    tokenizer = ContentTokenizer((folder / TOKENIZER).read_text(encoding="utf-8"), v.start, v.end, v.size)
    return ContentBundle(folder, saved, model, tokenizer, metadata)
