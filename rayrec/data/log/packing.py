"""Rows of a log as few matrices instead of forty columns: made in the read tasks, passed zero-copy through Arrow.

Knows NumPy and Arrow only, so that Ray's read workers start without importing torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayrec.data.log import LogError
from rayrec.data.log.schema import LogSchema

# Columns are interleaved so many rows at a time: what is written stays in a core's cache until all columns have come.
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class PackedRows:
    """n rows. Same columns as ``rayrec.batch.Batch``, with ids as int32.

    dense (n, D) float32, NaN = missing; categorical (n, F) int32; labels (n, T) float32, NaN = not observed;
    sequences: (n, L_i) int32 each; weights (n,) float32 or None; extras: (n,) each, any integer or float type.
    Arrays may be read-only views of shared memory.
    """

    dense: NDArray[np.float32]
    categorical: NDArray[np.int32]
    labels: NDArray[np.float32]
    sequences: tuple[NDArray[np.int32], ...] = ()
    weights: NDArray[np.float32] | None = None
    extras: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, rows: slice) -> "PackedRows":
        """Views of a range of rows."""
        return PackedRows(
            self.dense[rows],
            self.categorical[rows],
            self.labels[rows],
            tuple(ids[rows] for ids in self.sequences),
            None if self.weights is None else self.weights[rows],
            {name: column[rows] for name, column in self.extras.items()},
        )

    @staticmethod
    def concatenate(parts: Sequence["PackedRows"]) -> "PackedRows":
        """Rows of all parts in order; the very same object when there is but one."""
        first = parts[0]
        if len(parts) == 1:
            return first
        return PackedRows(
            np.concatenate([p.dense for p in parts]),
            np.concatenate([p.categorical for p in parts]),
            np.concatenate([p.labels for p in parts]),
            tuple(np.concatenate([p.sequences[i] for p in parts]) for i in range(len(first.sequences))),
            None if first.weights is None else np.concatenate([p.weights for p in parts if p.weights is not None]),
            {name: np.concatenate([p.extras[name] for p in parts]) for name in first.extras},
        )

    def to_arrow(self) -> pa.Table:
        """One column a matrix (fixed-size lists), without copying."""
        matrices = {"dense": self.dense, "categorical": self.categorical, "labels": self.labels}
        matrices |= {f"sequence {i}": ids for i, ids in enumerate(self.sequences)}
        columns = {name: _list_column(matrix) for name, matrix in matrices.items() if matrix.shape[1] > 0}
        if self.weights is not None:
            columns["weights"] = pa.array(self.weights)
        columns |= {f"extra {name}": pa.array(column) for name, column in self.extras.items()}
        return pa.table(columns)

    @staticmethod
    def from_arrow(table: pa.Table, schema: LogSchema, extras: Sequence[str]) -> "PackedRows":
        """The inverse of ``to_arrow``; without copying when the table has one chunk."""

        def matrix(name: str, width: int, dtype: type) -> NDArray:
            if width == 0:
                return np.empty((table.num_rows, 0), dtype)
            return _single_chunk(table, name).flatten().to_numpy(zero_copy_only=True).reshape(table.num_rows, width)

        return PackedRows(
            matrix("dense", len(schema.dense), np.float32),
            matrix("categorical", len(schema.categorical), np.int32),
            matrix("labels", len(schema.tasks), np.float32),
            tuple(matrix(f"sequence {i}", f.max_length, np.int32) for i, f in enumerate(schema.sequences)),
            None if schema.weight is None else _single_chunk(table, "weights").to_numpy(),
            {name: _single_chunk(table, f"extra {name}").to_numpy() for name in extras},
        )


class RowQueue:
    """Blocks of any sizes in, exactly as many rows as asked for out."""

    def __init__(self, blocks: Iterator[PackedRows]) -> None:
        self._blocks = blocks
        self._rest: PackedRows | None = None

    def await_first(self) -> None:
        """Returns when rows are at hand, or none will come."""
        if self._rest is None:
            self._rest = next(self._blocks, None)

    def parts(self, rows: int) -> Iterator[PackedRows]:
        """The next ``rows`` rows as views of the blocks that they came in."""
        while rows > 0:
            block = next(self._blocks) if self._rest is None else self._rest
            part = block[:rows]
            self._rest = block[rows:] if len(block) > rows else None
            rows -= len(part)
            yield part

    def take(self, rows: int) -> PackedRows:
        """The next ``rows`` rows."""
        return PackedRows.concatenate(list(self.parts(rows)))


def needed_columns(schema: LogSchema, extras: Sequence[str] = (), *, labels: bool = True) -> list[str]:
    """The columns a batch is made of. Raises LogError when an extra is no number of this log."""
    numbers = [*schema.extras, *(name for name in (schema.timestamp, schema.request_id) if name is not None)]
    for name in extras:
        if name not in numbers:
            raise LogError(
                f"log {schema.name!r}: {name!r} cannot be an extra of its batches; numeric columns beside features and "
                f"labels: {', '.join(numbers) or 'none'}"
            )
    columns = [f.name for f in schema.dense] + [f.name for f in schema.categorical] + [f.name for f in schema.sequences]
    if labels:
        columns += [task.column for task in schema.tasks]
        columns += [] if schema.weight is None else [schema.weight]
    return columns + list(extras)


def pack(table: pa.Table, schema: LogSchema, *, extras: Sequence[str] = (), labels: bool = True) -> PackedRows:
    """Encoded rows (columns as ``rayrec.data.log.arrow_schema``) to matrices. Sequences keep their last ``max_length``
    ids; a label whose ``observed_when`` label is not 1 is NaN; without ``labels`` all labels are NaN and weights None.

    Raises LogError naming the column when one is absent, a weight is missing or an integer extra is missing.
    """
    present = set(table.column_names)
    absent = [name for name in needed_columns(schema, extras, labels=labels) if name not in present]
    if absent:
        raise LogError(f"log {schema.name!r}: columns are absent: {', '.join(absent)}")
    rows = table.num_rows
    weights = None
    if labels and schema.weight is not None:
        weights = _numbers(table, schema.weight)
        if np.isnan(weights).any():
            raise LogError(f"log {schema.name!r}: weight column {schema.weight!r} has missing values")
    return PackedRows(
        dense=_interleave([_numbers(table, f.name) for f in schema.dense], rows, np.float32),
        categorical=_interleave([_ids(_single_chunk(table, f.name)) for f in schema.categorical], rows, np.int32),
        labels=_labels(table, schema) if labels else np.full((rows, len(schema.tasks)), np.nan, np.float32),
        sequences=tuple(_padded(_single_chunk(table, f.name), f.max_length) for f in schema.sequences),
        weights=weights,
        extras={name: _extra(table, name, schema) for name in extras},
    )


def _single_chunk(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _list_column(matrix: NDArray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def _numbers(table: pa.Table, name: str) -> NDArray[np.float32]:
    column = _single_chunk(table, name)
    if column.null_count and pa.types.is_float32(column.type):
        return _nan_where_null(column)
    return column.to_numpy(zero_copy_only=False)


def _nan_where_null(column: pa.FloatArray) -> NDArray[np.float32]:
    """In a third of the time of ``fill_null``: all bits set are a NaN."""
    validity, values = column.buffers()
    byte, first = divmod(column.offset, 8)
    bits = np.frombuffer(validity, np.uint8, (first + len(column) + 7) // 8, byte)
    missing = np.unpackbits(~bits, bitorder="little")[first : first + len(column)].view(np.int8)
    stored = np.frombuffer(values, np.int32, len(column), 4 * column.offset)
    return (np.negative(missing).astype(np.int32) | stored).view(np.float32)  # -1 has all bits set


def _ids(column: pa.Array) -> NDArray[np.int32]:
    return (column.fill_null(0) if column.null_count else column).to_numpy(zero_copy_only=False)


def _extra(table: pa.Table, name: str, schema: LogSchema) -> NDArray[np.generic]:
    column = _single_chunk(table, name)
    if column.null_count and pa.types.is_integer(column.type):
        raise LogError(f"log {schema.name!r}: integer column {name!r} has missing values and cannot be an extra")
    return column.to_numpy(zero_copy_only=False)


def _interleave(columns: Sequence[NDArray], rows: int, dtype: type) -> NDArray:
    """(rows, len(columns)) of equally long columns."""
    matrix: NDArray = np.empty((rows, len(columns)), dtype)
    block: NDArray = np.empty((len(columns), min(rows, _CHUNK_ROWS)), dtype)
    for start in range(0, rows, _CHUNK_ROWS):
        chunk = matrix[start : start + _CHUNK_ROWS]
        for j, column in enumerate(columns):
            block[j, : len(chunk)] = column[start : start + _CHUNK_ROWS]
        chunk[:] = block[:, : len(chunk)].T  # one strided copy instead of one a column
    return matrix


def _labels(table: pa.Table, schema: LogSchema) -> NDArray[np.float32]:
    labels = _interleave([_numbers(table, task.column) for task in schema.tasks], table.num_rows, np.float32)
    observed = {task.name: labels[:, j] == 1 for j, task in enumerate(schema.tasks)}
    for j, task in enumerate(schema.tasks):
        if task.observed_when is not None:
            labels[~observed[task.observed_when], j] = np.nan
    return labels


def _padded(column: pa.ListArray, length: int) -> NDArray[np.int32]:
    """(rows, length): the last ``length`` ids of each list, zeros behind."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    if column.null_count:
        lengths[column.is_null().to_numpy(zero_copy_only=False)] = 0
    kept = np.minimum(lengths, length)
    inside = np.arange(length) < kept[:, None]  # (rows, length)
    ids = _ids(column.values)
    padded = np.zeros((len(column), length), np.int32)
    padded[inside] = ids[((offsets[1:] - kept)[:, None] + np.arange(length))[inside]]
    return padded
