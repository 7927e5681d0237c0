"""Reads slices of row groups and packs them: the work of a read task, in a Ray worker or in a thread. Imports no torch."""

import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.log import LogError, check_columns
from rayrec.data.log.packing import PackedRows, needed_columns, pack
from rayrec.data.log.schema import CategoricalFeature, Feature, LogSchema, SequenceFeature
from rayrec.data.log.stream_plan import Slice
from rayrec.data.log.value_checks import ValueProblem, check_values


@dataclass(frozen=True)
class SliceReader:
    """What is read of each slice, and checked. Small when pickled: vocabularies stay behind."""

    schema: LogSchema
    extras: tuple[str, ...] = ()
    threads: bool = False  # decode columns in parallel

    @property
    def row_bytes(self) -> int:
        """Bytes of a packed row."""
        schema = self.schema
        values = len(schema.dense) + len(schema.categorical) + len(schema.tasks) + (schema.weight is not None)
        return 4 * (values + sum(f.max_length for f in schema.sequences)) + 8 * len(self.extras)

    def read(self, slices: Iterable[Slice]) -> Iterator[PackedRows]:
        """One block a slice, in order. Raises LogError naming the file when it cannot be read or is not what was planned, and
        column and row (in the file, from 1) of a value that must not be in a log."""
        columns = needed_columns(self.schema, self.extras)
        path, file = "", None
        try:
            for piece in slices:
                group = piece.group
                try:
                    if file is None or path != group.path:
                        if file is not None:
                            file.close()
                        path, file = group.path, _open(group.path)
                        check_columns(path, file.schema_arrow, self.schema)
                    _check_unchanged(file, piece)
                    table = file.read_row_group(group.index, columns=columns, use_threads=self.threads)
                except (pa.ArrowException, OSError) as error:
                    reason = " ".join(str(error).split())
                    raise LogError(
                        f"{group.path}: row group {group.index} cannot be read (file truncated, damaged or removed): {reason}"
                    ) from None
                rows = table.slice(piece.start, piece.rows)
                try:
                    check_values(rows, self.schema)
                    packed = pack(rows, self.schema, extras=self.extras)
                except ValueProblem as problem:
                    before = sum(file.metadata.row_group(i).num_rows for i in range(group.index)) + piece.start
                    raise LogError(f"{group.path}: row {before + problem.row + 1}, {problem.what}") from None
                except LogError as error:
                    raise LogError(f"{group.path}: {error}") from None
                yield packed
        finally:
            if file is not None:
                file.close()

    def without_vocabularies(self) -> "SliceReader":
        return replace(self, schema=self.schema.with_features(tuple(map(_bare, self.schema.features))))


def read_in_background(reader: SliceReader, slices: Iterable[Slice], ahead: int) -> Generator[PackedRows]:
    """``reader.read(slices)`` by a thread that stays at most ``ahead`` blocks ahead. Closing the iterator ends the thread."""
    ready: queue.Queue[PackedRows | BaseException | None] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: PackedRows | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for block in reader.read(slices):
                put(block)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed over to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=produce, name="rayrec-reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def _open(path: str) -> pq.ParquetFile:
    while True:
        found = _identity(path)
        file = pq.ParquetFile(path, metadata=_footer(path, *found))
        if _identity(path) == found:  # else another file took its place meanwhile, and this footer may be of either
            return file
        file.close()


def _identity(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=32)
def _footer(path: str, *identity: int) -> pq.FileMetaData:
    """A shuffled epoch comes back to a file again and again, and its footer is a millisecond's work. Of few files at once: one
    of 16 row groups of 40 columns takes .6 MB."""
    return pq.read_metadata(path)


def _check_unchanged(file: pq.ParquetFile, piece: Slice) -> None:
    group = piece.group
    found = file.metadata.row_group(group.index).num_rows if group.index < file.metadata.num_row_groups else None
    if found != group.rows:
        raise LogError(
            f"{group.path}: changed while it was being read: row group {group.index} had {group.rows} rows, now "
            f"{'it is gone' if found is None else found}"
        )


def _bare(feature: Feature) -> Feature:
    """The feature with nothing of its vocabulary but the number of ids."""
    if isinstance(feature, CategoricalFeature | SequenceFeature) and feature.vocabulary is not None:
        return replace(feature, vocabulary=None, encoding="hash", buckets=max(1, len(feature.vocabulary)))
    return feature
