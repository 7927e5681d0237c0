"""The bundle of a retriever: see ``rayrec.bundle``; beside config and weights it holds the items' names.

Semantic IDs, text embeddings and which items training saw are buffers of the model; the tokenizer of new items lies with them in
``model.safetensors``. <bundle>/items.json: names, item i + 1 at place i.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayrec.bundle import CONFIG, BundleError, BundleMetadata, Parts, load_model, read_metadata
from rayrec.families.retriever.preferences import SavedPreferences, empty_prompts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.retrieval.retriever import Retriever
from rayrec.retrieval.searching import Method
from rayrec.retrieval.semantic_tokenizer import SemanticTokenizer, TokenizerConfig
from rayrec.typed_json import ConfigError, from_json, from_plain, to_json

ITEMS = "items.json"


@dataclass(frozen=True)
class SavedIds:
    """What builds the buffers of a model with semantic IDs, and its tokenizer, again. dim: of the text embeddings."""

    level_sizes: tuple[int, ...]
    dim: int
    encoder: str
    tokenizer: TokenizerConfig


@dataclass(frozen=True)
class SavedRetriever:
    """What ``model_config`` of the bundle's config.json holds. ids: None for a model that reads none.

    catalogue: fingerprint of the items; None in bundles from before there were fingerprints.
    preferences: None for a model that is blind to them.
    validated: the objective over all validation targets by each method that the model has, where it has several; None in bundles
    from before the method was chosen by it.
    """

    retrieval: RetrievalConfig
    num_items: int
    ids: SavedIds | None
    catalogue: str | None = None
    preferences: SavedPreferences | None = None
    validated: Mapping[Method, float] | None = None

    def by_default_first(self, methods: Sequence[Method]) -> tuple[Method, ...]:
        """The methods of the model, what answers unless another is asked for first: the best on validation.

        Without validated methods hybrid before dense before generative, as it was before there was a choice.
        """
        ranks, order = self.validated or {}, ("hybrid", "dense", "generative")
        return tuple(sorted(methods, key=lambda m: (-ranks.get(m, 0.0), order.index(m))))


@dataclass(frozen=True)
class ItemNames:
    names: tuple[str, ...]


class RetrieverModules(nn.Module):
    """The model and, where there are semantic IDs, their tokenizer."""

    def __init__(self, model: Retriever[Any], tokenizer: SemanticTokenizer | None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer


@dataclass(frozen=True)
class RetrieverBundle:
    """A loaded bundle in evaluation mode. names: (N,), item i + 1 at place i."""

    path: Path
    saved: SavedRetriever
    model: Retriever[Any]
    tokenizer: SemanticTokenizer | None
    names: tuple[str, ...]
    metadata: BundleMetadata


def retriever_parts(modules: RetrieverModules, saved: SavedRetriever, names: tuple[str, ...]) -> Parts:
    """names: of the items, item i + 1 at place i."""
    return Parts("retriever", modules, saved, {ITEMS: to_json(ItemNames(names), indent=None)})


def load_retriever(folder: Path | str, device: torch.device | str = "cpu") -> RetrieverBundle:
    """Read and check a bundle. Raises BundleError that says what is wrong; nothing in it is ever unpickled or executed."""
    folder = Path(folder)
    metadata = read_metadata(folder, "retriever", (ITEMS,))
    try:
        saved = from_plain(SavedRetriever, dict(metadata.model_config), f"{folder / CONFIG}: model_config")
        names = from_json(ItemNames, (folder / ITEMS).read_bytes(), str(folder / ITEMS)).names
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if len(names) != saved.num_items:
        raise BundleError(f"{folder / ITEMS}: {len(names):,} names for {saved.num_items:,} items")
    modules = load_model(lambda: _skeleton(saved), folder, metadata).to(device).eval()
    return RetrieverBundle(folder, saved, modules.model, modules.tokenizer, names, metadata)


def _skeleton(saved: SavedRetriever) -> RetrieverModules:
    """Modules of the right shapes, to load weights into."""
    architecture, ids, rows = saved.retrieval.architecture, saved.ids, saved.num_items + 1
    seen, counts = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)
    if not architecture.needs_semantic_ids:
        return RetrieverModules(architecture.build(Catalogue(saved.num_items, seen, counts, None)), None)
    if ids is None:
        raise BundleError(f"a {saved.retrieval.model} without semantic IDs")
    tokens = torch.zeros(rows, len(ids.level_sizes), dtype=torch.int64)
    features = ItemFeatures(tokens, sum(ids.level_sizes) + 1, torch.zeros(rows, ids.dim), seen)
    items, reads = Catalogue(saved.num_items, seen, counts, features), architecture.reads_preferences
    if reads is not None:
        if saved.preferences is None:
            raise BundleError(f"a {saved.retrieval.model} without what reads its preferences")
        read = empty_prompts(saved.preferences, saved.num_items, saved.retrieval) if reads == "tokens" else None
        items = replace(items, preference_dim=saved.preferences.dim, prompts=read)
    model = architecture.build(items)
    return RetrieverModules(model, SemanticTokenizer(ids.dim, ids.tokenizer))
