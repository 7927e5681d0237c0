"""Which rows an epoch reads, in which order: pure functions of (row groups, seed, epoch, rank), NumPy only.

Ray Data keeps no position to resume from (ray issue 48224), so the order of rows is decided here and not by the executor:
the same arguments give the same rows forever, and resuming in the middle of an epoch is a matter of skipping.

1. An epoch is the concatenation of a split's row groups, in file order or permuted by (seed, epoch).
2. Each rank takes one contiguous range of it.
3. Consecutive windows of a rank's rows are permuted by (seed, epoch, rank, window); batches are slices of windows.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GROUP_ORDER, _WINDOW_ORDER = 0, 1  # first word of the seed sequence: the two uses of a seed never share a generator


@dataclass(frozen=True)
class RowGroup:
    """One row group of a Parquet file, ``rows`` rows long."""

    path: str
    index: int
    rows: int


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one row group."""

    group: RowGroup
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def rank_range(rows: int, rank: int, world_size: int, *, even: bool) -> tuple[int, int]:
    """[first, last) of ``rows`` that a rank reads. ``even``: all ranks read rows // world_size, the rest is dropped
    (training: ranks must step together); otherwise every row is read once and ranks may differ by one row."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, world_size = {world_size}), given {rank}")
    if even:
        share = rows // world_size
        return rank * share, (rank + 1) * share
    return rank * rows // world_size, (rank + 1) * rows // world_size


def epoch_slices(
    groups: Sequence[RowGroup],
    *,
    shuffle: bool,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    even: bool = True,
    skip_rows: int = 0,
) -> Iterator[Slice]:
    """What a rank reads in an epoch, in order, without the first ``skip_rows`` of its rows. No empty slices.

    Lazy, and whole row groups are skipped without looking at their rows: resuming costs nothing in the rows before."""
    order = list(range(len(groups)))
    if shuffle:
        order = np.random.default_rng([_GROUP_ORDER, seed, epoch]).permutation(len(groups)).tolist()
    ends = np.cumsum([groups[i].rows for i in order]).tolist()
    first, last = rank_range(ends[-1] if ends else 0, rank, world_size, even=even)
    first += skip_rows
    position = bisect_right(ends, first)  # the group that holds row ``first``
    while first < last:
        group = groups[order[position]]
        offset = ends[position] - group.rows
        stop = min(last, ends[position])
        if stop > first:
            yield Slice(group, first - offset, stop - offset)
        first, position = stop, position + 1


def window_permutation(seed: int, epoch: int, rank: int, window: int, rows: int) -> NDArray[np.int64]:
    """(rows,) the order in which the rows of one shuffle window are handed out."""
    return np.random.default_rng([_WINDOW_ORDER, seed, epoch, rank, window]).permutation(rows)
