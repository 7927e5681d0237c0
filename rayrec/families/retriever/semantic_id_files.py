"""Semantic IDs of a catalogue on disk, with the tokenizer that made them and the standardized embeddings that they stand for.

<folder>/semantic_ids.json        config, level sizes, encoder, report
<folder>/semantic_ids.safetensors codes (N, M) int64 and embeddings (N, E) float32, row i for item i + 1
<folder>/tokenizer.safetensors    for new items
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayrec.families.retriever.split_config import SplitConfig
from rayrec.files import whole_folder, write_text_atomically
from rayrec.retrieval.semantic_ids import SemanticIdReport, SemanticIds
from rayrec.retrieval.semantic_tokenizer import SemanticTokenizer, TokenizedItems, TokenizerConfig
from rayrec.typed_json import ConfigError, from_json, to_json

SEMANTIC_IDS_FILE = "semantic_ids.json"


@dataclass(frozen=True)
class SemanticIdRecord:
    """What ``semantic_ids.json`` holds.

    encoder: which text encoder made the embeddings, or "attributes" or "cooccurrence".
    catalogue: fingerprint of the items that they are of; None = made before there were fingerprints.
    split: whose training part told which items are seen, and what co-occurs; None = made before that was kept.
    """

    tokenizer: TokenizerConfig
    level_sizes: tuple[int, ...]
    dim: int
    encoder: str
    report: SemanticIdReport
    catalogue: str | None = None
    split: SplitConfig | None = None
    format: int = 1


@dataclass(frozen=True)
class SavedSemanticIds:
    """A folder read back."""

    record: SemanticIdRecord
    items: TokenizedItems


def write_semantic_ids(
    folder: Path, items: TokenizedItems, encoder: str, catalogue: str, split: SplitConfig | None = None
) -> Path:
    """Write, whole or not at all, replacing earlier IDs. catalogue: fingerprint of the items. split: as in the record.

    Raises UserError for a folder of anything else.
    """
    with whole_folder(folder, SEMANTIC_IDS_FILE) as partial:
        save_file({"codes": items.ids.codes, "embeddings": items.embeddings}, partial / "semantic_ids.safetensors")
        state = {name: value.contiguous() for name, value in items.tokenizer.state_dict().items()}
        save_file(state, partial / "tokenizer.safetensors")
        record = SemanticIdRecord(
            items.tokenizer.config,
            items.ids.level_sizes,
            items.embeddings.shape[1],
            encoder,
            items.report,
            catalogue,
            split,
        )
        write_text_atomically(partial / SEMANTIC_IDS_FILE, to_json(record))
    return folder


def read_semantic_ids(folder: Path) -> SavedSemanticIds:
    """Raises ConfigError that names the file and what is wrong with it."""
    for name in (SEMANTIC_IDS_FILE, "semantic_ids.safetensors", "tokenizer.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name}: no such file; make it with python -m jobs.semantic_ids")
    record = from_json(SemanticIdRecord, (folder / SEMANTIC_IDS_FILE).read_bytes(), str(folder / SEMANTIC_IDS_FILE))
    try:
        tensors = load_file(folder / "semantic_ids.safetensors")
        ids = SemanticIds(tensors["codes"], record.level_sizes)
        tokenizer = SemanticTokenizer(record.dim, record.tokenizer)
        tokenizer.load_state_dict(load_file(folder / "tokenizer.safetensors"))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{folder}: {error}") from None
    if tensors["embeddings"].shape != (ids.num_items, record.dim):
        raise ConfigError(f"{folder}: embeddings {tuple(tensors['embeddings'].shape)} for {ids.num_items} items")
    return SavedSemanticIds(record, TokenizedItems(tokenizer.eval(), ids, tensors["embeddings"], record.report))
