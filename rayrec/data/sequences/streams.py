"""Batches of histories epoch by epoch: shuffled, sharded over ranks, resumable at any step; only the histories are stored."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rayrec.data.log.streams import StreamPosition
from rayrec.data.sequences.augmentation import AugmentationConfig, augmented
from rayrec.data.sequences.batches import (
    HistoryBatch,
    TrainingPrefixes,
    TrainingWindows,
    evaluation_batches,
    example_batch,
    shuffled_batches,
    window_batch,
)
from rayrec.data.sequences.interactions import Interactions
from rayrec.data.sequences.splits import Examples, SequenceSplit
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class SequenceStreamConfig:
    """How histories become batches."""

    batch_size: int = 256
    """Training rows a batch of one rank."""
    evaluation_batch_size: int = 512
    """Users a batch of an evaluation."""
    seed: int = 0
    """Of the shuffling and of the validation sample."""
    valid_examples: int | None = None
    """Judge so many validation targets, the same ones each time, instead of all (generative models judge slowly)."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """How training windows are changed at random; for models that train on windows (sasrec, depth)."""

    def __post_init__(self) -> None:
        examples = 1 if self.valid_examples is None else self.valid_examples
        if min(self.batch_size, self.evaluation_batch_size, examples) < 1 or self.seed < 0:
            raise ValueError("batch_size, evaluation_batch_size and valid_examples must be at least 1, seed at least 0")


class TrainingSequences:
    """A rank's share of the training windows (``windows``) or prefixes; see ``batches``. All ranks make equally many steps.

    tokens: (U,) of the users, for models that read them, which none does by windows.
    Raises ConfigError when prefixes should be augmented, or there are too few examples.
    """

    def __init__(
        self, interactions: Interactions, split: SequenceSplit, config: SequenceStreamConfig, *, length: int, windows: bool,
        rank: int = 0, world_size: int = 1, start: StreamPosition | None = None, tokens: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        if config.augmentation.on and not windows:
            raise ConfigError("stream.augmentation changes windows; this model trains on prefixes")
        self._interactions, self._config, self._length, self._tokens = interactions, config, length, tokens
        self._examples = TrainingWindows(split, length) if windows else TrainingPrefixes(split)
        self._rank, self._world_size = rank, world_size
        self._position = start or StreamPosition()
        self._lengths: NDArray[np.int64] | None = None
        if not windows:  # of which each has one target: those of like length may go together
            self._lengths = np.minimum(self._examples.locate(np.arange(len(self._examples))).positions, length)
        self.steps_per_epoch = -(-len(self._examples) // config.batch_size) // world_size
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"{len(self._examples):,} training examples are too few for a batch on each of {world_size} workers"
            )

    @property
    def position(self) -> StreamPosition:
        return self._position

    def epoch_batches(self) -> Iterator[tuple[HistoryBatch, None]]:
        """The rest of the current epoch."""
        epoch, size = self._position.epoch, self._config.batch_size
        numbers = shuffled_batches(
            len(self._examples), size, seed=self._config.seed, epoch=epoch, lengths=self._lengths
        )
        first = self._position.step
        own = islice(
            numbers, first * self._world_size + self._rank, self.steps_per_epoch * self._world_size, self._world_size
        )
        for step, rows in enumerate(own, first + 1):
            ended = step == self.steps_per_epoch
            self._position = StreamPosition(epoch + 1, 0) if ended else StreamPosition(epoch, step)
            yield self._batch(rows, (epoch, (step - 1) * self._world_size + self._rank)), None

    def close(self) -> None:
        """Nothing is held open."""

    def _batch(self, rows: NDArray[np.int64], number: tuple[int, int]) -> HistoryBatch:
        """number: epoch, and which of its batches this is: by them it is augmented, whoever makes it."""
        located, augmentation = self._examples.locate(rows), self._config.augmentation
        if isinstance(self._examples, TrainingWindows):
            change = None
            if augmentation.on:
                # (seed, epoch, 0) would be (seed, epoch), that of the order
                generator = np.random.default_rng((self._config.seed, *number, 1))
                change = partial(augmented, config=augmentation, generator=generator)
            return HistoryBatch(*window_batch(self._interactions, located, self._length, change))
        return example_batch(self._interactions, located, self._length, self._tokens)


class JudgedSequences:
    """A rank's share of the targets of one split; each ``epoch_batches()`` is one pass."""

    def __init__(
        self, interactions: Interactions, examples: Examples, config: SequenceStreamConfig, *, length: int,
        rank: int = 0, world_size: int = 1, tokens: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        self._interactions, self._config, self._length, self._tokens = interactions, config, length, tokens
        self._examples = examples.take(np.arange(rank, len(examples), world_size))

    def epoch_batches(self) -> Iterator[HistoryBatch]:
        size = self._config.evaluation_batch_size
        for _, batch in evaluation_batches(self._interactions, self._examples, self._length, size, self._tokens):
            yield batch

    def close(self) -> None:
        """Nothing is held open."""


def sample_examples(examples: Examples, count: int | None, seed: int) -> Examples:
    """``count`` of the examples, the same ones for the same seed; all of them when there are no more, or None is asked for."""
    if count is None or count >= len(examples):
        return examples
    rows = np.random.default_rng((seed, 1)).choice(len(examples), count, replace=False)
    return examples.take(np.sort(rows))
