"""Batches of the benchmark's pools: histories are cut out when they are needed, preferences come as the model reads them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayrec.data.log.streams import StreamPosition
from rayrec.data.preferences.pools import Axis, Pool, Split
from rayrec.data.sequences.batches import HistoryBatch, histories, shuffled_batches
from rayrec.data.sequences.interactions import Interactions
from rayrec.data.sequences.streams import SequenceStreamConfig


def pool_batch(
    interactions: Interactions,
    pool: Pool,
    features: Tensor | None,
    length: int,
    tokens: NDArray[np.int64] | None = None,
) -> HistoryBatch:
    """The rows of a pool; features: (T, ...) by text, None = for a model that is blind to preferences.

    tokens: (U,) of all users, for models that read them; a row without history has no user either.
    """
    longest = int(np.clip(pool.positions.max(initial=1), 1, length))
    history = torch.from_numpy(histories(interactions, pool.users, pool.positions, longest))
    preference = None if features is None else features[torch.from_numpy(pool.preferences)]
    user = None if tokens is None else torch.from_numpy(np.where(pool.positions > 0, tokens[pool.users], 0))
    return HistoryBatch(
        history, torch.from_numpy(pool.targets), preference, user=user, row=torch.from_numpy(pool.users)
    )


def signed(pools: Sequence[tuple[Axis, Pool]]) -> tuple[Pool, NDArray[np.float32] | None]:
    """Their union, and 1 or -1 by row: a row with an opposite wish stands twice, its opposite with -1. None: all are 1."""
    parts, signs = [], []
    for _, pool in pools:
        parts.append(pool)
        signs.append(np.ones(len(pool), np.float32))
        against = pool.take(np.flatnonzero(pool.negatives >= 0))
        if len(against):
            parts.append(Pool.of(against.users, against.positions, against.targets, against.negatives))
            signs.append(-np.ones(len(against), np.float32))
    columns = ("users", "positions", "targets", "preferences", "negatives")
    union = Pool(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
    sign = np.concatenate(signs)
    return union, None if (sign > 0).all() else sign


def training_pool(
    pools: Mapping[tuple[Axis, Split], Pool], axes: Sequence[Axis], most: int | None, seed: int
) -> tuple[Pool, NDArray[np.float32] | None]:
    """Union of the axes' training pools; of each, ``most`` rows, the same ones for the same seed (None: all)."""
    chosen = []
    for axis in axes:
        pool = pools[axis, "train"]
        if most is not None and most < len(pool):
            pool = pool.take(np.sort(np.random.default_rng((seed, 3)).choice(len(pool), most, replace=False)))
        chosen.append((axis, pool))
    return signed(chosen)


class PoolTraining:
    """A rank's share of the rows of a pool, shuffled anew each epoch. All ranks make equally many steps."""

    def __init__(
        self, interactions: Interactions, pool: Pool, sign: NDArray[np.float32] | None, features: Tensor,
        config: SequenceStreamConfig, *, length: int, rank: int = 0, world_size: int = 1, start: StreamPosition | None = None,
    ) -> None:  # fmt: skip
        self._interactions, self._pool, self._sign, self._features = interactions, pool, sign, features
        self._config, self._length, self._rank, self._world_size = config, length, rank, world_size
        self._position = start or StreamPosition()
        self.steps_per_epoch = -(-len(pool) // config.batch_size) // world_size
        if self.steps_per_epoch == 0:
            raise ValueError(f"{len(pool):,} training rows are too few for a batch on each of {world_size} workers")

    @property
    def position(self) -> StreamPosition:
        return self._position

    def epoch_batches(self) -> Iterator[tuple[HistoryBatch, None]]:
        """The rest of the current epoch."""
        epoch, first, world = self._position.epoch, self._position.step, self._world_size
        lengths = np.minimum(self._pool.positions, self._length)
        numbers = shuffled_batches(
            len(self._pool), self._config.batch_size, seed=self._config.seed, epoch=epoch, lengths=lengths
        )
        for step, rows in enumerate(
            islice(numbers, first * world + self._rank, self.steps_per_epoch * world, world), first + 1
        ):
            ended = step == self.steps_per_epoch
            self._position = StreamPosition(epoch + 1, 0) if ended else StreamPosition(epoch, step)
            batch = pool_batch(self._interactions, self._pool.take(rows), self._features, self._length)
            sign = None if self._sign is None else torch.from_numpy(self._sign[rows])
            yield HistoryBatch(batch.history, batch.target, batch.preference, sign), None

    def close(self) -> None:
        """Nothing is held open."""


class JudgedPool:
    """A rank's share of the rows of a pool in their order; each ``epoch_batches()`` is one pass."""

    def __init__(
        self, interactions: Interactions, pool: Pool, features: Tensor | None, config: SequenceStreamConfig, *, length: int,
        rank: int = 0, world_size: int = 1, tokens: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        self._interactions, self._features, self._length, self._tokens = interactions, features, length, tokens
        self._pool = pool.take(np.arange(rank, len(pool), world_size))
        self._size = config.evaluation_batch_size

    def epoch_batches(self) -> Iterator[HistoryBatch]:
        for start in range(0, len(self._pool), self._size):
            rows = np.arange(start, min(start + self._size, len(self._pool)))
            yield pool_batch(self._interactions, self._pool.take(rows), self._features, self._length, self._tokens)

    def close(self) -> None:
        """Nothing is held open."""
