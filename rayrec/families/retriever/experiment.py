"""A retriever experiment from config to bundle; see ``rayrec.training.experiment``."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from rayrec.bundle import write_bundle
from rayrec.data.log.hashing import bucket_ids, hash_strings
from rayrec.data.log.streams import StreamPosition
from rayrec.data.preferences.benchmark import Benchmark, read_benchmark
from rayrec.data.preferences.streams import JudgedPool, PoolTraining, training_pool
from rayrec.data.sequences import SequenceData, SequenceSplit, read_sequences
from rayrec.data.sequences.batches import HistoryBatch
from rayrec.data.sequences.streams import JudgedSequences, SequenceStreamConfig, TrainingSequences, sample_examples
from rayrec.families.retriever.blending import fit_blend
from rayrec.families.retriever.bundle import RetrieverModules, SavedIds, SavedRetriever, retriever_parts
from rayrec.families.retriever.preferences import PreferenceConfig, SavedPreferences, benchmark_features, prompts
from rayrec.families.retriever.semantic_id_files import SavedSemanticIds, read_semantic_ids
from rayrec.families.retriever.split_config import SplitConfig
from rayrec.families.retriever.task import RetrievalConfig, RetrievalTask
from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.optim import OptimizerConfig
from rayrec.retrieval.retriever import Retriever
from rayrec.text.prompt_tokens import EncoderTexts, read_encoder_texts
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.loop import LoopConfig
from rayrec.training.task import Summary
from rayrec.training.worker import TrainingData, Worker
from rayrec.typed_json import ConfigError, to_plain

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class RetrieverExperiment:
    """Everything that decides a trained retriever; logged whole, and enough to repeat the run."""

    sequences: Path
    """Folder of an imported sequence data set."""
    semantic_ids: Path | None = None
    """Folder of ``jobs.semantic_ids``, for models that read them."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Which items of a history are learned from, validated on and tested on."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """The model and how it is judged."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            weight_decay=0.01, embeddings="adamw", embedding_learning_rate=1e-3, embedding_weight_decay=0.01
        )
    )
    """What turns gradients into steps."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=50, patience=5, gradient_clip=1.0))
    """How long and how carefully it trains."""
    stream: SequenceStreamConfig = field(default_factory=SequenceStreamConfig)
    """How histories become batches."""
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    """For models that read them."""
    kind: Literal["retriever"] = field(default="retriever", init=False)

    def __post_init__(self) -> None:
        if self.optimizer.embeddings != "adamw":
            raise ConfigError(
                "optimizer.embeddings must be adamw: every item of a softmax gets a gradient at each step"
            )

    def absolute(self) -> "RetrieverExperiment":
        ids = None if self.semantic_ids is None else self.semantic_ids.resolve()
        given = self.preferences.benchmark
        preferences = replace(self.preferences, benchmark=None if given is None else given.resolve())
        return replace(self, sequences=self.sequences.resolve(), semantic_ids=ids, preferences=preferences)

    def check(self) -> None:
        if self.stream.augmentation.on and not self.retrieval.architecture.reads_windows:
            raise ConfigError(
                f"stream.augmentation changes the windows of sasrec and depth; {self.retrieval.model!r} trains on prefixes"
            )
        ids = self.ids()
        if (
            ids is not None
            and ids.record.split is not None
            and ids.record.split.trains_on_what_is_judged_by(self.split)
        ):
            raise ConfigError(
                f"{self.semantic_ids}: made of what {_shown(ids.record.split)} trains on, which may hold events that "
                f"{_shown(self.split)} validates or tests on; make them anew by the experiment's own split"
            )
        self.task()

    def fingerprint(self) -> str:
        """Items, events and, where they are read, users, semantic IDs with embeddings, and the preference benchmark."""
        data, ids, benchmark = _data(self.sequences), self.ids(), self.benchmark()
        digest = hashlib.sha256(data.items.fingerprint.encode())
        for part in (data.interactions.offsets, data.interactions.items):
            digest.update(np.ascontiguousarray(part).tobytes())
        users = self.user_tokens()
        if users is not None:
            digest.update(users.tobytes())
        if ids is not None:
            digest.update(ids.items.ids.codes.numpy().tobytes())
            digest.update(ids.items.embeddings.numpy().tobytes())
        if benchmark is not None:
            digest.update("\0".join(benchmark.texts).encode())
            digest.update(np.ascontiguousarray(benchmark.vectors).tobytes())
            for (axis, split), pool in benchmark.pools.items():
                digest.update(f"{axis} {split} {len(pool)}".encode())
                for column in (pool.users, pool.positions, pool.targets, pool.preferences, pool.negatives):
                    digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]

    def task(self) -> RetrievalTask:
        data = _data(self.sequences)
        items = catalogue(data, self.split.split(data), self.ids())
        benchmark = self.benchmark()
        if benchmark is not None:
            texts = self.encoder_texts()
            read = None if texts is None else prompts(texts, data.items.titles.to_pylist(), self.retrieval)
            items = replace(items, preference_dim=benchmark.card.dim, prompts=read)
        return RetrievalTask(items, self.retrieval)

    def benchmark(self) -> Benchmark | None:
        """The benchmark, where the model has use for its preferences. Raises ConfigError when its pools are of another split."""
        if self.preferences.benchmark is None or self.retrieval.architecture.reads_preferences is None:
            return None
        if self.split.method != "leave_one_out":
            raise ConfigError(
                "models that read preferences train on the benchmark's pools: split.method must be leave_one_out"
            )
        interactions = _data(self.sequences).interactions
        return read_benchmark(self.preferences.benchmark, interactions)

    def encoder_texts(self) -> EncoderTexts | None:
        """Of the text encoder in the model, if there is one."""
        reader = self.retrieval.reader
        return None if reader is None else read_encoder_texts(reader.encoder)

    def user_tokens(self) -> NDArray[np.int64] | None:
        """(U,) in 1..N, the hash of each user's name, where the model has tokens for users."""
        count = self.retrieval.architecture.user_tokens
        return bucket_ids(hash_strings(_data(self.sequences).users), count).astype(np.int64) if count else None

    def ids(self) -> SavedSemanticIds | None:
        """The semantic IDs, where the model has use for them."""
        if self.semantic_ids is None or not self.retrieval.architecture.needs_semantic_ids:
            return None
        return read_semantic_ids(self.semantic_ids)

    def data(self, worker: Worker) -> TrainingData[HistoryBatch]:
        interactions = _data(self.sequences).interactions
        architecture = self.retrieval.architecture
        split, length = self.split.split(_data(self.sequences)), architecture.max_length
        tokens = self.user_tokens()

        benchmark = self.benchmark()
        if benchmark is not None:
            return self._pools(benchmark, worker)

        def open_training(start: StreamPosition, epochs: int) -> TrainingSequences:
            return TrainingSequences(
                interactions, split, self.stream, length=length, windows=architecture.reads_windows,
                rank=worker.rank, world_size=worker.size, start=start, tokens=tokens,
            )  # fmt: skip

        def open_evaluation(name: str, passes: int) -> JudgedSequences:
            judged = split.test
            if name == "valid":
                judged = sample_examples(split.valid, self.stream.valid_examples, self.stream.seed)
            return JudgedSequences(
                interactions,
                judged,
                self.stream,
                length=length,
                rank=worker.rank,
                world_size=worker.size,
                tokens=tokens,
            )

        return TrainingData(open_training, open_evaluation, SPLITS)

    def _pools(self, benchmark: Benchmark, worker: Worker) -> TrainingData[HistoryBatch]:
        interactions, length = _data(self.sequences).interactions, self.retrieval.architecture.max_length
        features = benchmark_features(benchmark, self.retrieval, self.encoder_texts())
        assert features is not None
        most, seed = self.preferences.most_rows, self.stream.seed
        pool, sign = training_pool(benchmark.pools, self.preferences.axes, most, seed)

        def open_training(start: StreamPosition, epochs: int) -> PoolTraining:
            return PoolTraining(
                interactions, pool, sign, features, self.stream, length=length,
                rank=worker.rank, world_size=worker.size, start=start,
            )  # fmt: skip

        def open_evaluation(name: str, passes: int) -> JudgedPool:
            judged = benchmark.pools["recommendation", "valid" if name == "valid" else "test"]
            most = self.stream.valid_examples
            if name == "valid" and most is not None and most < len(judged):
                judged = judged.take(np.sort(np.random.default_rng((seed, 1)).choice(len(judged), most, replace=False)))
            return JudgedPool(
                interactions, judged, features, self.stream, length=length, rank=worker.rank, world_size=worker.size
            )

        return TrainingData(open_training, open_evaluation, SPLITS)

    def save_bundle(self, checkpoint: Path, folder: Path) -> Path:
        task, saved = self.task(), self.ids()
        model = task.build()
        model.load_state_dict(best_weights(checkpoint))
        validated, validation = None, self.data(Worker()).open_evaluation("valid", 1)
        evaluations = read_progress(checkpoint).evaluations
        if fit_blend(task, model, validation.epoch_batches) is not None:  # what was judged in training had no blend
            evaluations = {split: self._judged(task, model, split) for split in evaluations}
        if len(task.searcher(model).methods) > 1:
            validated = task.validated(model, validation.epoch_batches)
        names = tuple(_data(self.sequences).items.names.to_pylist())
        ids, tokenizer = None, None
        if saved is not None:
            record = saved.record
            ids = SavedIds(record.level_sizes, record.dim, record.encoder, record.tokenizer)
            tokenizer = saved.items.tokenizer
        kept = SavedRetriever(
            self.retrieval.forgetful(),
            task.catalogue.num_items,
            ids,
            _data(self.sequences).items.fingerprint,
            self._saved_preferences(task.catalogue),
            validated,
        )
        parts = retriever_parts(RetrieverModules(model, tokenizer), kept, names)
        return write_bundle(folder, parts, metrics=evaluations, run_config=to_plain(self), overwrite=True)

    def _judged(self, task: RetrievalTask, model: Retriever[Any], split: str) -> Summary:
        evaluation = task.evaluation()
        for batch in self.data(Worker()).open_evaluation(split, 1).epoch_batches():
            evaluation.update(task.predict(model, batch), batch)
        return evaluation.summarize()

    def _saved_preferences(self, items: Catalogue) -> SavedPreferences | None:
        benchmark = self.benchmark()
        if benchmark is None:
            return None
        width = 0 if items.prompts is None else items.prompts.tokens.titles.shape[1]
        return SavedPreferences(benchmark.card.encoder, benchmark.card.dim, self.encoder_texts(), width)


def catalogue(data: SequenceData, split: SequenceSplit, ids: SavedSemanticIds | None) -> Catalogue:
    """Items as a split's training part sees them. Raises ConfigError when the semantic IDs are of other items."""
    interactions = data.interactions
    train = split.in_training(interactions)
    counts = torch.from_numpy(np.bincount(interactions.items[train], minlength=interactions.num_items + 1))
    seen = torch.from_numpy(split.seen)
    if ids is None:
        return Catalogue(interactions.num_items, seen, counts, None)
    items = ids.items
    if items.ids.num_items != interactions.num_items:
        raise ConfigError(
            f"semantic IDs of {items.ids.num_items:,} items for sequences over {interactions.num_items:,}; make them anew"
        )
    if ids.record.catalogue not in (None, data.items.fingerprint):
        raise ConfigError(
            "semantic IDs of other items or texts than the sequences have, though as many; make them anew with jobs.semantic_ids"
        )
    text = pad(items.embeddings, (0, 0, 1, 0))
    features = ItemFeatures(items.ids.item_tokens(), items.ids.num_tokens, text, seen)
    return Catalogue(interactions.num_items, seen, counts, features)


def _shown(split: SplitConfig) -> str:
    return split.method if split.valid_from is None else f"{split.method} from {split.valid_from}"


@lru_cache(maxsize=2)
def _data(folder: Path) -> SequenceData:
    return read_sequences(folder)
