"""A language-model experiment from config to bundle; see ``rayrec.training.experiment``."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rayrec.batch import Batch
from rayrec.bundle import write_bundle
from rayrec.data.log import Log, LogError
from rayrec.data.log.schema import SequenceFeature
from rayrec.data.log.streams import LogStream, StreamConfig, StreamPosition, ZippedStreams
from rayrec.data.text_stream import TOKENIZER_FILE, TOKENS
from rayrec.families.language_model.bundle import language_model_parts
from rayrec.families.language_model.task import LanguageModellingTask
from rayrec.models.llama import SHAPES, LlamaConfig, ShapeName
from rayrec.optim import OptimizerConfig
from rayrec.text.tokenizer import TextTokenizer
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.loop import LoopConfig
from rayrec.training.worker import TrainingData, Worker
from rayrec.typed_json import to_plain


@dataclass(frozen=True)
class LanguageModelExperiment:
    """Everything that decides a trained language model; logged whole, and enough to repeat the run."""

    corpus: Path
    """Folder of token blocks, made by ``jobs.import_text``."""
    shape: ShapeName = "tiny"
    """Of the decoder, see ``rayrec.models.llama``."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(embeddings="adamw", embedding_learning_rate=1e-3)
    )
    """What turns gradients into steps."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(gradient_clip=1.0, schedule="cosine"))
    """How long and how carefully it trains."""
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(batch_size=32))
    """How blocks become batches; ``batch_size`` counts blocks of one worker."""
    kind: Literal["language_model"] = field(default="language_model", init=False)

    def absolute(self) -> "LanguageModelExperiment":
        return replace(self, corpus=self.corpus.resolve())

    def check(self) -> None:
        open_corpus(self.corpus)

    def fingerprint(self) -> str:
        return open_corpus(self.corpus)[0].fingerprint

    def task(self) -> LanguageModellingTask:
        _, tokenizer = open_corpus(self.corpus)
        return LanguageModellingTask(LlamaConfig(tokenizer.vocabulary, SHAPES[self.shape]))

    def data(self, worker: Worker) -> TrainingData[Batch]:
        log, _ = open_corpus(self.corpus)

        def open_training(start: StreamPosition, epochs: int) -> ZippedStreams:
            return ZippedStreams.open(
                log,
                None,
                0.0,
                self.stream,
                rank=worker.rank,
                world_size=worker.size,
                start=start,
                epochs=epochs,
                reading=worker.reading,
            )

        def open_evaluation(split: str, epochs: int) -> LogStream:
            config = replace(self.stream, shuffle=False, drop_last=False)
            return LogStream(
                log, split, config, rank=worker.rank, world_size=worker.size, epochs=epochs, reading=worker.reading
            )

        return TrainingData(open_training, open_evaluation, log.splits)

    def save_bundle(self, checkpoint: Path, folder: Path) -> Path:
        _, tokenizer = open_corpus(self.corpus)
        model = self.task().build()
        model.load_state_dict(best_weights(checkpoint))
        parts = language_model_parts(model, tokenizer)
        return write_bundle(
            folder, parts, metrics=read_progress(checkpoint).evaluations, run_config=to_plain(self), overwrite=True
        )


def open_corpus(folder: Path) -> tuple[Log, TextTokenizer]:
    """Open and check a corpus. Raises LogError that names the file that is wrong."""
    log = Log.open(folder)
    features = log.schema.features
    if len(features) != 1 or not isinstance(features[0], SequenceFeature) or features[0].name != TOKENS:
        raise LogError(f"{folder}: a log, but not one of token blocks; make one with python -m jobs.import_text")
    for split in ("train", "valid"):
        log.files(split)
    if not (folder / TOKENIZER_FILE).is_file():
        raise LogError(f"{folder / TOKENIZER_FILE}: no such file")
    separator = int(json.loads((folder / "import.json").read_text(encoding="utf-8"))["separator"])
    return log, TextTokenizer((folder / TOKENIZER_FILE).read_text(encoding="utf-8"), separator)
