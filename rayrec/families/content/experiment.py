"""A content experiment from config to bundle; see ``rayrec.training.experiment``."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from rayrec.bundle import write_bundle
from rayrec.data.content import ContentLog, read_content
from rayrec.data.content.batches import ContentInputs
from rayrec.data.content.streams import ContentStreamConfig, JudgedContents, TrainingContents
from rayrec.data.content.tokens import ContentTokens, read_tokens
from rayrec.data.log.streams import StreamPosition
from rayrec.families.content.bundle import SavedContent, content_parts
from rayrec.families.content.task import ContentConfig, ContentTask, ContentVocabulary
from rayrec.models.content_inputs import ContentBatch
from rayrec.models.content_ranker import ContentRanker, ContentShape
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.loop import LoopConfig
from rayrec.training.worker import TrainingData, Worker
from rayrec.typed_json import ConfigError, to_plain

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ContentExperiment:
    """Everything that decides a trained content ranker; logged whole, and enough to repeat the run."""

    content: Path
    """Folder of jobs.import_content."""
    tokens: Path
    """Folder of jobs.tokenize_content, by the tokenizer of the encoder."""
    interest: str | None = None
    """Version of user texts that SPAR reads; None = none."""
    summary: str | None = None
    """Version of user texts that EmbSum learns to write; None = none."""
    ranker: ContentConfig = field(default_factory=ContentConfig)
    """The model and how it is judged."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-4, embeddings="adamw", embedding_learning_rate=2e-5, weight_decay=0.0
        )
    )
    """What turns gradients into steps."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            epochs=10, patience=3, gradient_clip=1.0, schedule="linear", warmup_steps=100
        )
    )
    """How long and how carefully it trains."""
    stream: ContentStreamConfig = field(default_factory=ContentStreamConfig)
    """How impressions become batches."""
    kind: Literal["content"] = field(default="content", init=False)

    def __post_init__(self) -> None:
        if self.optimizer.embeddings != "adamw":
            raise ConfigError("optimizer.embeddings must be adamw: a text encoder's table takes dense gradients")

    def absolute(self) -> "ContentExperiment":
        return replace(self, content=self.content.resolve(), tokens=self.tokens.resolve())

    def check(self) -> None:
        if self.ranker.model == "embsum" and self.ranker.embsum.summary_weight > 0 and self.summary is None:
            raise ConfigError(
                "EmbSum learns to write summaries: name a version of user texts by summary, or set its weight to 0"
            )
        if self.ranker.model == "embsum" and self.summary is not None:
            longest = (
                int(self.inputs().tokens.user_texts[self.summary].lengths.max(initial=2)) - 2
            )  # without start and end
            if self.ranker.embsum.max_summary < longest:
                raise ConfigError(
                    f"embsum.max_summary is {self.ranker.embsum.max_summary}, summaries {self.summary!r} have up to {longest} "
                    "tokens: a model taught to end them there would be cut before it does; raise it, or tokenize shorter texts"
                )
        self.task()
        self.inputs().refuse_texts_that_know("train")

    def fingerprint(self) -> str:
        """Items, histories, impressions, and the token ids of items and of the versions that are read."""
        log, tokens = _data(self.content, self.tokens)
        shown = log.impressions
        read = [tokens.user_texts[name] for name in (self.interest, self.summary) if name is not None]
        digest = hashlib.sha256((log.items.fingerprint + tokens.tokenizer.json).encode())
        digest.update("".join(shown.split.tolist()).encode())
        digest.update(np.ascontiguousarray(shown.history).tobytes())
        for lists in (log.histories, shown.candidates, shown.labels, tokens.items, *read):
            digest.update(np.ascontiguousarray(lists.offsets).tobytes())
            digest.update(np.ascontiguousarray(lists.values).tobytes())
        return digest.hexdigest()[:16]

    def inputs(self) -> ContentInputs:
        log, tokens = _data(self.content, self.tokens)
        return ContentInputs(log, tokens, self.ranker.max_history, self.interest, self.summary)

    def task(self) -> ContentTask:
        inputs = self.inputs()
        record = inputs.tokens.record
        shape = ContentShape(self.ranker.max_history, inputs.content_slots, inputs.interest_slots)
        return ContentTask(self.ranker, ContentVocabulary(record.vocabulary, record.start, record.end, shape))

    def data(self, worker: Worker) -> TrainingData[ContentBatch]:
        inputs, config = self.inputs(), self.stream

        def open_training(start: StreamPosition, epochs: int) -> TrainingContents:
            return TrainingContents(inputs, config, rank=worker.rank, world_size=worker.size, start=start)

        def open_evaluation(name: str, passes: int) -> JudgedContents:
            histories = config.valid_histories if name == "valid" else None
            return JudgedContents(inputs, name, config, histories=histories, rank=worker.rank, world_size=worker.size)

        return TrainingData(open_training, open_evaluation, SPLITS)

    def save_bundle(self, checkpoint: Path, folder: Path) -> Path:
        task = self.task()
        model = task.build()
        model.load_state_dict(best_weights(checkpoint))
        return self.save(model, folder, read_progress(checkpoint).evaluations)

    def save(self, model: ContentRanker, folder: Path, metrics: dict[str, dict[str, dict[str, float | None]]]) -> Path:
        """A model with these weights as a bundle."""
        tokens, log = self.inputs().tokens, self.inputs().log
        saved = SavedContent(
            self.ranker, self.task().vocabulary, log.items.fields, log.items.fingerprint, tokens.record.max_text_tokens,
            model.encoder.shape,
        )  # fmt: skip
        parts = content_parts(model, saved, tokens.tokenizer)
        return write_bundle(folder, parts, metrics=metrics, run_config=to_plain(self), overwrite=True)


@lru_cache(maxsize=2)
def _data(content: Path, tokens: Path) -> tuple[ContentLog, ContentTokens]:
    log = read_content(content)
    return log, read_tokens(tokens, log)
