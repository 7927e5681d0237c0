"""A small LIGER bundle with random weights, and a tiny text encoder."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from rayrec.bundle import write_bundle
from rayrec.families.retriever.bundle import RetrieverModules, SavedIds, SavedRetriever, retriever_parts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import ItemFeatures
from rayrec.models.liger import Liger, LigerConfig
from rayrec.models.t5 import T5Config
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from rayrec.text.encoder import TextEncoder, TextEncoderConfig

WORDS = ["red", "blue", "green", "shoe", "lamp", "book", "tea", "pan"]
TEXTS = [f"{a} {b}" for a in WORDS for b in WORDS if a != b]  # 56 items
LIGER = LigerConfig(
    T5Config(dim=16, feed_forward=16, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1),
    projection=(8,),
    max_length=6,
)


def small_encoder(folder: Path) -> str:
    """A text encoder in a local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(shape).save_pretrained(folder)
    return str(folder)


def small_retriever(
    folder: Path, encoder: str, repeat: float | None = None, *, names: tuple[str, ...] = tuple(TEXTS), seed: int = 0
) -> Path:
    """Over 56 items with text; the last three are cold. ``repeat``: the repeat bias. names: else their texts."""
    config = replace(LIGER, repeat_bias=repeat is not None)
    items = fit_tokenizer(
        TextEncoder(TextEncoderConfig(encoder))(TEXTS), TokenizerConfig(kmeans=ResidualKMeansConfig(2, 8))
    )
    seen = torch.ones(57, dtype=torch.bool)
    seen[[0, 54, 55, 56]] = False
    text = torch.nn.functional.pad(items.embeddings, (0, 0, 1, 0))
    torch.manual_seed(seed)
    model = Liger(ItemFeatures(items.ids.item_tokens(), items.ids.num_tokens, text, seen), config)
    if repeat is not None:
        model.repeat.data.fill_(repeat)
    return write_bundle(
        folder,
        retriever_parts(
            RetrieverModules(model, items.tokenizer),
            SavedRetriever(
                RetrievalConfig(model="liger", liger=config),
                56,
                SavedIds(items.ids.level_sizes, 8, encoder, items.tokenizer.config),
            ),
            names,
        ),
        metrics={},
        run_config={},
    )
