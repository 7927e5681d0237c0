"""Batches of a content log epoch by epoch: histories of like length together under a token budget, resumable at any step.

A training example is a positive of an impression against ``negatives`` of the same impression; positives of one history come
together, up to ``positives``, so that a history is encoded once for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrec.data.content.batches import ContentInputs
from rayrec.data.content.log import ContentError
from rayrec.data.log.streams import StreamPosition
from rayrec.models.content_inputs import ContentBatch

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ContentStreamConfig:
    """How impressions become batches."""

    token_budget: int = 65_536
    """Slots of histories a batch, rows x longest history x longest text: bounds memory whatever the lengths."""
    negatives: int = 4
    """k of the loss, drawn anew in each epoch among an impression's own."""
    positives: int = 8
    """Most of one history a batch."""
    max_histories: int = 64
    """Most histories a batch."""
    valid_histories: int | None = None
    """Judge so many in validation, the same each time; None = all."""
    seed: int = 0
    """Of the shuffling and of the negatives."""

    def __post_init__(self) -> None:
        sizes = ("token_budget", "negatives", "positives", "max_histories", "valid_histories")
        if any(value is not None and value < 1 for value in (getattr(self, name) for name in sizes)) or self.seed < 0:
            raise ValueError(f"{', '.join(sizes)} must be at least 1, seed at least 0")


def budget_batches(lengths: Rows, slots: int, config: ContentStreamConfig) -> list[slice]:
    """Cuts sorted lengths (R,) of histories into batches: each within the budget, or of one row that alone is beyond it."""
    cuts, start = [], 0
    for row in range(1, len(lengths) + 1):
        full = row == len(lengths) or row - start >= config.max_histories
        if full or (row + 1 - start) * max(1, int(lengths[row])) * slots > config.token_budget:
            cuts.append(slice(start, row))
            start = row
    return cuts


class TrainingContents:
    """A rank's share of the training examples; all ranks make equally many steps.

    Raises ContentError when no impression of the split has both a positive and a negative, batches are fewer than ranks, or
    texts of users know the answers.
    """

    def __init__(
        self, inputs: ContentInputs, config: ContentStreamConfig, *,
        rank: int = 0, world_size: int = 1, start: StreamPosition | None = None,
    ) -> None:  # fmt: skip
        self._inputs, self._config, self._rank, self._world_size = inputs, config, rank, world_size
        inputs.refuse_texts_that_know("train")
        self._position = start or StreamPosition()
        self._impressions, self._positives = _positives(inputs)
        if not len(self._positives):
            raise ContentError("no training impression has both a positive and a negative")
        history = inputs.log.impressions.history[self._impressions]
        order = np.argsort(history, kind="stable")
        firsts = np.flatnonzero(np.diff(history[order], prepend=-1))
        chunks = [
            order[start : min(start + config.positives, end)]
            for first, end in zip(firsts, [*firsts[1:], len(order)], strict=True)
            for start in range(first, end, config.positives)
        ]
        lengths = np.minimum(inputs.log.histories.lengths[[history[chunk[0]] for chunk in chunks]], inputs.max_history)
        by_length = np.argsort(lengths, kind="stable")
        self._chunks, self._lengths = [chunks[i] for i in by_length], lengths[by_length]
        self._cuts = budget_batches(self._lengths, inputs.content_slots, config)
        self.steps_per_epoch = len(self._cuts) // world_size
        if self.steps_per_epoch == 0:
            raise ContentError(f"{len(self._cuts)} training batches are too few for {world_size} workers")

    @property
    def position(self) -> StreamPosition:
        return self._position

    def epoch_batches(self) -> Iterator[tuple[ContentBatch, None]]:
        """The rest of the current epoch."""
        epoch, first = self._position.epoch, self._position.step
        random = np.random.default_rng((self._config.seed, epoch))
        order = np.lexsort((random.random(len(self._lengths)), self._lengths))  # equal lengths change places
        batches = random.permutation(len(self._cuts))
        for step in range(first, self.steps_per_epoch):
            number = int(batches[step * self._world_size + self._rank])
            ended = step + 1 == self.steps_per_epoch
            self._position = StreamPosition(epoch + 1, 0) if ended else StreamPosition(epoch, step + 1)
            # (seed, epoch, 0) would be (seed, epoch), that of the order
            drawn = np.random.default_rng((self._config.seed, epoch, number, 1))
            yield self._batch(order[self._cuts[number]], drawn), None

    def close(self) -> None:
        """Nothing is held open."""

    def _batch(self, chunks: Rows, random: np.random.Generator) -> ContentBatch:
        shown, k = self._inputs.log.impressions, self._config.negatives
        examples = np.concatenate([self._chunks[chunk] for chunk in chunks])
        histories, users = np.unique(shown.history[self._impressions[examples]], return_inverse=True)
        candidates = np.zeros((len(examples), 1 + k), dtype=np.int64)
        labels = np.full((len(examples), 1 + k), -1, dtype=np.int64)
        for row, example in enumerate(examples):
            impression = self._impressions[example]
            candidates[row, 0], labels[row, 0] = self._positives[example], 1
            negatives = shown.candidates[impression][shown.labels[impression] == 0]
            drawn = random.permutation(negatives)[:k]
            candidates[row, 1 : 1 + len(drawn)], labels[row, 1 : 1 + len(drawn)] = drawn, 0
        return self._inputs.batch(histories, users, candidates, labels)


class JudgedContents:
    """A rank's share of the impressions of a split; each ``epoch_batches()`` is one pass.

    Raises ContentError when texts of users know the answers.
    """

    def __init__(
        self, inputs: ContentInputs, split: str, config: ContentStreamConfig, *,
        histories: int | None = None, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        inputs.refuse_texts_that_know(split)
        self._inputs, self._config = inputs, config
        shown = inputs.log.impressions
        rows = shown.rows(split)
        judged = np.unique(shown.history[rows])
        if histories is not None and histories < len(judged):
            judged = np.sort(np.random.default_rng((config.seed, 1)).choice(judged, histories, replace=False))
        judged = judged[rank::world_size]
        lengths = np.minimum(inputs.log.histories.lengths[judged], inputs.max_history)
        order = np.argsort(lengths, kind="stable")
        self._histories = judged[order]
        self._cuts = budget_batches(lengths[order], inputs.content_slots, config)
        place = np.full(len(inputs.log.histories), -1, dtype=np.int64)
        place[self._histories] = np.arange(len(judged))
        rows = rows[place[shown.history[rows]] >= 0]
        self._rows = rows[np.argsort(place[shown.history[rows]], kind="stable")]
        self._places = place[shown.history[self._rows]]

    def epoch_batches(self) -> Iterator[ContentBatch]:
        for _, batch in self.numbered_batches():
            yield batch

    def numbered_batches(self) -> Iterator[tuple[Rows, ContentBatch]]:
        """Each batch behind the rows (B,) of the log's impressions that it holds."""
        shown = self._inputs.log.impressions
        for cut in self._cuts:
            first, last = np.searchsorted(self._places, [cut.start, cut.stop])
            rows = self._rows[first:last]
            candidates, labels = shown.candidates.padded(rows), shown.labels.padded(rows, padding=-1)
            yield (
                rows,
                self._inputs.batch(self._histories[cut], self._places[first:last] - cut.start, candidates, labels),
            )

    def close(self) -> None:
        """Nothing is held open."""


def _positives(inputs: ContentInputs) -> tuple[Rows, Rows]:
    """(E,) impression and (E,) item of each training positive that has a negative beside it."""
    shown = inputs.log.impressions
    impressions, items = [], []
    for row in shown.rows("train"):
        candidates, labels = shown.candidates[row], shown.labels[row]
        if (labels == 0).any():
            found = candidates[labels == 1]
            impressions.append(np.full(len(found), row))
            items.append(found)
    nothing = np.zeros(0, dtype=np.int64)
    return np.concatenate([nothing, *impressions]).astype(np.int64), np.concatenate([nothing, *items]).astype(np.int64)
