"""Streams of batches from a log: shuffled, sharded over ranks, resumable at any step, bit for bit.

The order of rows comes from ``rayrec.data.log.stream_plan``; a ``Reading`` brings them. By "ray", Ray Data
tasks read and pack row groups anywhere in the cluster, all epochs in the same executions, behind the first rows, which this
process reads while those begin; "in_process", a thread of this process reads all (small models, sweep trials, tests). Both
give the same batches.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

from rayrec.batch import Batch
from rayrec.data.log import Log, LogError, read_footer
from rayrec.data.log.cluster_reader import read_by_cluster
from rayrec.data.log.collate import batch_of
from rayrec.data.log.packing import PackedRows, RowQueue, needed_columns
from rayrec.data.log.slice_reader import SliceReader, read_in_background
from rayrec.data.log.stream_plan import RowGroup, Slice, epoch_slices, rank_range, window_permutation
from rayrec.typed_json import ConfigError, reads_earlier, without


@reads_earlier(without("reader", "read_ahead"))
@dataclass(frozen=True)
class StreamConfig:
    """How rows become batches."""

    batch_size: int | None = None
    """Rows per batch of one rank; None = what fits the rank's rows, see ``fitting_batch_size``."""
    shuffle: bool = True
    """Permute row groups and, inside windows, rows; differently in each epoch. Off: file order."""
    seed: int = 0
    """Of the shuffling."""
    window_rows: int = 131_072
    """Rows permuted together, rounded to a multiple of batch_size; held in memory, packed."""
    drop_last: bool = True
    """Every batch is full and every rank makes the same number of steps (training). Off: every row once (evaluation)."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("window_rows", 1), ("seed", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"stream {name} must be at least {least}, given {getattr(self, name)}")

    def batches_per_window(self, batch_size: int) -> int:
        """Batches that are cut from rows permuted together; without shuffling each batch stands alone."""
        return max(1, round(self.window_rows / batch_size)) if self.shuffle else 1


@dataclass(frozen=True)
class Reading:
    """How rows are brought, whatever becomes of them.

    reader: "ray" or "in_process", see the module. read_ahead: row groups (65,536 rows each in imported logs) that the in-process
    reader stays ahead.
    """

    reader: Literal["ray", "in_process"] = "in_process"
    read_ahead: int = 2

    def __post_init__(self) -> None:
        if self.read_ahead < 1:
            raise ValueError(f"read_ahead must be at least 1, not {self.read_ahead}")


def fitting_batch_size(rows: int) -> int:
    """The batch size that suits a rank's ``rows`` of an epoch where none is asked for: the power of two that leaves 40 to 80
    steps, at least 32 and at most 4,096, and no more than there are rows."""
    return max(1, min(rows, 4096, max(32, 1 << max(0, (rows // 40).bit_length() - 1))))


@dataclass(frozen=True, order=True)
class StreamPosition:
    """Where a stream stands: ``step`` batches of epoch ``epoch`` were handed out."""

    epoch: int = 0
    step: int = 0


_START, _HERE = StreamPosition(), Reading()


class LogStream:
    """Batches of one rank's share of a split, epoch by epoch.

    ``epoch_batches()`` yields what is left of the current epoch; called again, it goes on with the next one. ``position`` is
    the place behind the batch yielded last; a stream made with ``start=position`` yields exactly what this one would.
    A position belongs to its log, batch size, seed, window and world size.

    rank, world_size: this worker's share. extras: numeric columns to carry along in ``Batch.extras``.
    epochs: how many there are, counted from epoch 0.
    Raises LogError when the log, the split or a column is not there, or when the split is too small for one batch per rank
    (with drop_last) or empty; while iterating, when a file is truncated or has changed. ValueError: start lies outside.
    """

    def __init__(
        self,
        log: Log,
        split: str,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        extras: Sequence[str] = (),
        start: StreamPosition = _START,
        epochs: int = 1,
        reading: Reading = _HERE,
    ) -> None:
        self.config = config
        self.reading = reading
        self.epochs = epochs
        self.rank, self.world_size = rank, world_size
        needed_columns(log.schema, extras)  # raises for an extra that is no column
        self._reader = SliceReader(log.schema, tuple(extras)).without_vocabularies()
        self._groups = _row_groups(log, split)
        total = sum(group.rows for group in self._groups)
        first, last = rank_range(total, rank, world_size, even=config.drop_last)
        self.rows = last - first  # of this rank in an epoch, those of a dropped last batch included
        self.batch_size = fitting_batch_size(self.rows) if config.batch_size is None else config.batch_size
        batches, rest = divmod(self.rows, self.batch_size)
        self.steps_per_epoch = batches if config.drop_last else batches + (rest > 0)
        if self.steps_per_epoch == 0:
            needed = f"a batch of {self.batch_size} rows" if config.drop_last else "a row"
            raise LogError(
                f"{log.path}: split {split!r} has {total} rows, too few for {needed} on each of {world_size} workers"
            )
        self._position = self._normalized(start)
        if (
            self._position > StreamPosition(epochs, 0)
            or start.step > self.steps_per_epoch
            or min(start.epoch, start.step) < 0
        ):
            raise ValueError(
                f"{start} lies outside of {epochs} epochs of {self.steps_per_epoch} steps ({log.path}, {split!r})"
            )
        self._blocks: Generator[PackedRows] | None = None
        self._batches: Generator[Batch] | None = None

    @property
    def position(self) -> StreamPosition:
        """Behind the batch yielded last."""
        return self._position

    def epoch_batches(self) -> Iterator[Batch]:
        """The rest of the current epoch. Raises ValueError when all epochs were read."""
        epoch = self._position.epoch
        yield self.next_batch()
        while self._position.epoch == epoch:
            yield self.next_batch()

    def next_batch(self) -> Batch:
        """The next batch, of the next epoch where one has ended. Raises ValueError when all epochs were read."""
        if self._position.epoch >= self.epochs:
            raise ValueError(f"all {self.epochs} epochs of this stream have been read")
        if self._batches is None:
            self._batches = self._all_batches(self._position)
        try:
            return next(self._batches)
        except BaseException:
            self.close()  # a failed stream still stands behind its last batch: asked again, it starts anew from there
            raise

    def close(self) -> None:
        """Stop reading: ends the reader's thread or Ray Data executions. The position stays."""
        batches, blocks = self._batches, self._blocks
        self._batches = self._blocks = None
        for iterator in (batches, blocks):
            if iterator is not None:
                iterator.close()

    def __enter__(self) -> "LogStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _normalized(self, position: StreamPosition) -> StreamPosition:
        return StreamPosition(position.epoch + 1, 0) if position.step == self.steps_per_epoch else position

    def _all_batches(self, start: StreamPosition) -> Generator[Batch]:
        config = self.config
        batch_size = self.batch_size
        batches_per_window = config.batches_per_window(batch_size)
        window_rows = batches_per_window * batch_size
        first_window, skipped = divmod(start.step, batches_per_window)
        self._blocks = self._read(self._slices(start.epoch, first_window * window_rows))
        rows = RowQueue(self._blocks)
        for epoch in range(start.epoch, self.epochs):
            step = start.step if epoch == start.epoch else 0
            for window in range(first_window, -(-self.rows // window_rows)):
                packed = rows.take(min(window_rows, self.rows - window * window_rows))
                order = None
                if config.shuffle:
                    order = window_permutation(config.seed, epoch, self.rank, window, len(packed))
                last = len(packed) - len(packed) % batch_size if config.drop_last else len(packed)
                for first in range(skipped * batch_size, last, batch_size):
                    picked = slice(first, min(first + batch_size, last))
                    batch = batch_of(packed, picked if order is None else order[picked])
                    step += 1
                    self._position = self._normalized(StreamPosition(epoch, step))
                    yield batch
                skipped = 0
            first_window = 0

    def _slices(self, first_epoch: int, skip_rows: int) -> Iterator[Slice]:
        config = self.config
        for epoch in range(first_epoch, self.epochs):
            yield from epoch_slices(
                self._groups,
                shuffle=config.shuffle,
                seed=config.seed,
                epoch=epoch,
                rank=self.rank,
                world_size=self.world_size,
                even=config.drop_last,
                skip_rows=skip_rows if epoch == first_epoch else 0,
            )

    def _read(self, slices: Iterator[Slice]) -> Generator[PackedRows]:
        ahead = self.reading.read_ahead
        if self.reading.reader == "ray":
            return read_by_cluster(self._reader, slices, world_size=self.world_size, ahead=ahead)
        return read_in_background(replace(self._reader, threads=True), slices, ahead)


class ZippedStreams:
    """Each labeled batch beside an unlabeled one, for as long as a labeled epoch lasts; the unlabeled epochs run on below it.

    The unlabeled batch has round(ratio * labeled batch size) rows; with ratio 0 it is None. ``unlabeled`` comes from
    ``unlabeled_beside``, which also finds its place on resuming: the labeled position is the position of both.
    Raises ValueError when the two streams do not belong together.
    """

    def __init__(self, labeled: LogStream, unlabeled: LogStream | None, ratio: float) -> None:
        if (unlabeled is None) != (ratio == 0):
            raise ValueError(f"a ratio of {ratio} goes with {'an' if ratio else 'no'} unlabeled stream")
        if unlabeled is not None:
            wanted = unlabeled_batch_size(labeled.batch_size, ratio)
            if unlabeled.batch_size != wanted:
                raise ValueError(f"unlabeled batch size must be {wanted}, given {unlabeled.batch_size}")
            if _steps_done(unlabeled) != _steps_done(labeled):
                raise ValueError(f"labeled at {labeled.position}, unlabeled at {unlabeled.position}: not the same step")
        self.labeled = labeled
        self.unlabeled = unlabeled

    @staticmethod
    def open(
        log: Log,
        unlabeled: Log | None,
        ratio: float,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: StreamPosition = _START,
        epochs: int = 1,
        extras: Sequence[str] = (),
        unlabeled_extras: Sequence[str] = (),
        reading: Reading = _HERE,
    ) -> "ZippedStreams":
        """The train split of ``log`` beside that of ``unlabeled`` (None goes with ratio 0), both from ``start``."""
        labeled = LogStream(
            log,
            "train",
            config,
            rank=rank,
            world_size=world_size,
            extras=extras,
            start=start,
            epochs=epochs,
            reading=reading,
        )
        beside = (
            None if unlabeled is None else unlabeled_beside(labeled, unlabeled, ratio=ratio, extras=unlabeled_extras)
        )
        return ZippedStreams(labeled, beside, ratio)

    @property
    def position(self) -> StreamPosition:
        return self.labeled.position

    @property
    def steps_per_epoch(self) -> int:
        return self.labeled.steps_per_epoch

    def epoch_batches(self) -> Iterator[tuple[Batch, Batch | None]]:
        """The rest of the current labeled epoch."""
        for batch in self.labeled.epoch_batches():
            yield batch, None if self.unlabeled is None else self.unlabeled.next_batch()

    def close(self) -> None:
        self.labeled.close()
        if self.unlabeled is not None:
            self.unlabeled.close()

    def __enter__(self) -> "ZippedStreams":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unlabeled_batch_size(batch_size: int, ratio: float) -> int:
    """Unlabeled rows beside ``batch_size`` labeled ones. Raises ConfigError when a positive ratio gives none."""
    rows = round(ratio * batch_size)
    if ratio < 0 or (ratio > 0 and rows == 0):
        raise ConfigError(f"an unlabeled ratio of {ratio:g} gives no rows beside batches of {batch_size}")
    return rows


def unlabeled_beside(
    labeled: LogStream, log: Log, split: str = "train", *, ratio: float, extras: Sequence[str] = ()
) -> LogStream | None:
    """The unlabeled stream for ``ZippedStreams(labeled, ..., ratio)``: same rank, seed and reader, as many epochs as needed,
    standing where the labeled stream stands. None for ratio 0."""
    if ratio == 0:
        return None
    config = replace(labeled.config, batch_size=unlabeled_batch_size(labeled.batch_size, ratio), drop_last=True)

    def stream(start: StreamPosition, epochs: int) -> LogStream:
        return LogStream(
            log,
            split,
            config,
            rank=labeled.rank,
            world_size=labeled.world_size,
            extras=extras,
            start=start,
            epochs=epochs,
            reading=labeled.reading,
        )

    steps = stream(_START, 1).steps_per_epoch
    start = StreamPosition(*divmod(_steps_done(labeled), steps))
    return stream(start, -(-labeled.epochs * labeled.steps_per_epoch // steps))


def _steps_done(stream: LogStream) -> int:
    return stream.position.epoch * stream.steps_per_epoch + stream.position.step


def _row_groups(log: Log, split: str) -> tuple[RowGroup, ...]:
    groups = []
    for file in log.files(split):
        footer = read_footer(file)
        path = str(file.resolve())
        groups += [RowGroup(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    return tuple(groups)
