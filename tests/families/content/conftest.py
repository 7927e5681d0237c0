"""A small content log whose truth is in its texts, its tokens, and an experiment with a small encoder from scratch."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.content import ContentLog, ItemTexts, Lists, TextField, UserTexts, write_content
from rayrec.data.content.drawing import gather
from rayrec.data.content.streams import ContentStreamConfig
from rayrec.data.content.tokens import tokenize, write_tokens
from rayrec.families.content.experiment import ContentExperiment
from rayrec.families.content.task import ContentConfig
from rayrec.models.content_encoder import ContentEncoderConfig
from rayrec.models.embsum import EmbsumConfig
from rayrec.models.spar import SparConfig
from rayrec.models.t5 import T5Config
from rayrec.optim import OptimizerConfig
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.text.tokenizer import train_tokenizer
from rayrec.training.loop import LoopConfig

TOPICS = ("football", "cooking", "politics", "travel")
WORDS = ("game", "recipe", "vote", "beach", "win", "bake", "law", "train", "team", "spice")


def small_log(users: int = 16, seed: int = 0) -> ContentLog:
    """32 items of 4 topics; a user engages with one topic only; 2 impressions each; one user has no history."""
    random = np.random.default_rng(seed)
    titles = [f"{TOPICS[i % 4]} {' '.join(random.choice(WORDS, 1 + i % 5))}" for i in range(32)]
    items = ItemTexts.of(
        [f"n{i}" for i in range(32)], (TextField("title", "Title", 8), TextField("category", "Category", 4)),
        {"title": titles, "category": [TOPICS[i % 4] if i % 3 else "" for i in range(32)]},
    )  # fmt: skip
    histories, rows = [], []
    for user in range(users):
        own = [1 + i for i in range(32) if i % 4 == user % 4]
        other = [1 + i for i in range(32) if i % 4 != user % 4]
        histories.append([] if user == 3 else random.permutation(own)[: 2 + user % 5].tolist())
        for split in ("train", "train", "valid", "test"):
            left = [item for item in own if item not in histories[-1]]
            candidates = [int(random.choice(left)), *random.permutation(other)[: 3 + user % 3].tolist()]
            order = random.permutation(len(candidates))
            rows.append((split, user, [candidates[i] for i in order], (order == 0).astype(int).tolist()))
    texts = pa.array(["" if user == 5 else f"Likes {TOPICS[user % 4]}." for user in range(users)])
    place = np.arange(users, dtype=np.int64)
    return ContentLog(
        items, pa.array([f"u{u}" for u in range(users)]), place, place, Lists.of(histories), gather(rows),
        {"written": UserTexts("a template", texts)}, "small",
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_tokenizer() -> ContentTokenizer:
    trained = train_tokenizer([" ".join((*TOPICS, *WORDS, "Title: Category: ; Likes"))] * 3, 300)
    return ContentTokenizer(trained.json, trained.separator, trained.separator, trained.vocabulary)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: ContentTokenizer) -> tuple[Path, Path]:
    """The log and its tokens on disk."""
    folder, log = tmp_path_factory.mktemp("content"), small_log()
    return write_content(folder / "log", log), write_tokens(
        folder / "tokens", tokenize(log, small_tokenizer, "small", 16)
    )


@pytest.fixture
def experiment(folders: tuple[Path, Path]) -> ContentExperiment:
    return small_experiment(folders)


def small_experiment(folders: tuple[Path, Path]) -> ContentExperiment:
    t5 = T5Config(dim=32, feed_forward=64, heads=2, head_dim=16, encoder_layers=1, decoder_layers=1, dropout=0.0)
    encoder = ContentEncoderConfig("t5_scratch", session=2, dim=24, dropout=0.0, t5=t5)
    embsum = EmbsumConfig(4, 2, 12, decoder_layers=1, decoder_heads=2, decoder_feed_forward=48, max_summary=16)
    spar = SparConfig(user_codes=4, item_codes=2, code_dim=12, window=20, block=2)
    return ContentExperiment(
        *folders,
        interest="written",
        summary="written",
        ranker=ContentConfig("spar", encoder, spar=spar, embsum=embsum, max_history=6),
        optimizer=OptimizerConfig(
            learning_rate=1e-2, embeddings="adamw", embedding_learning_rate=1e-2, weight_decay=0.0
        ),
        loop=LoopConfig(epochs=12, patience=None),
        stream=ContentStreamConfig(token_budget=400, negatives=3),
    )
