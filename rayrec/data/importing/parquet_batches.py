"""Rows of a Parquet file in batches that are bounded by rows and by bytes.

A few kilobytes of Parquet can hold gigabytes: a long text that is repeated is stored once. So text columns stay dictionaries
until they are cut into rows that fit, and how many numbers a row group holds is looked up before it is read.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

BATCH_BYTES = 32 << 20
_NESTED_TEXT_ROWS = 256  # lists of texts cannot stay dictionaries, and their sizes are seen only when they are read


def bounded_batches(file: pq.ParquetFile, columns: Sequence[str] | None, most_rows: int) -> Iterator[pa.Table]:
    """All rows in order, at most ``most_rows`` and about ``BATCH_BYTES`` decoded bytes at a time (a row is never cut).

    file: opened with ``read_dictionary=text_columns(...)``. Raises what pyarrow raises for a damaged file.
    """
    wanted = None if columns is None else list(columns)
    for group in range(file.metadata.num_row_groups):
        rows = _rows_at_once(file, group, wanted, most_rows)
        held: list[pa.RecordBatch] = []
        for batch in file.iter_batches(rows, row_groups=[group], columns=wanted):
            held.append(batch)
            if sum(b.num_rows for b in held) + rows > most_rows or sum(b.nbytes for b in held) > BATCH_BYTES:
                yield from _cut(pa.Table.from_batches(held))
                held = []
        if held:
            yield from _cut(pa.Table.from_batches(held))


def text_columns(schema: pa.Schema) -> list[str]:
    """The columns to read as dictionaries."""
    kinds = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
    )  # fmt: skip
    return [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]


def _rows_at_once(file: pq.ParquetFile, group: int, columns: list[str] | None, most_rows: int) -> int:
    """By what the footer says of a row group: numbers and indices take 8 bytes at most."""
    metadata = file.metadata.row_group(group)
    numbers, nested_text = 0, False
    for i in range(metadata.num_columns):
        column = metadata.column(i)
        if columns is None or column.path_in_schema.split(".")[0] in columns:
            numbers += column.num_values
            nested_text |= column.physical_type == "BYTE_ARRAY" and file.schema.column(i).max_repetition_level > 0
    rows = BATCH_BYTES * max(metadata.num_rows, 1) // (8 * max(numbers, 1))
    return max(1, min(rows, most_rows, _NESTED_TEXT_ROWS if nested_text else most_rows))


def _cut(table: pa.Table) -> Iterator[pa.Table]:
    """Parts of about ``BATCH_BYTES`` once their dictionaries are decoded."""
    sizes: NDArray[np.int64] | None = None
    for column in table.columns:
        if not pa.types.is_dictionary(column.type):
            continue
        for lengths in (pc.binary_length(chunk.dictionary) for chunk in column.chunks):
            if (pc.max(lengths).as_py() or 0) * table.num_rows > BATCH_BYTES // max(table.num_columns, 1):
                of_column = _decoded_sizes(column)
                sizes = of_column if sizes is None else sizes + of_column
                break
    if sizes is None or sizes.sum() <= BATCH_BYTES:
        yield table
        return
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH_BYTES)) + 1
    bounds = [0, *ends.tolist(), table.num_rows]
    for start, end in pairwise(bounds):
        yield table.slice(start, end - start)


def _decoded_sizes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """(n,) bytes of each row's text."""
    parts = []
    for chunk in column.chunks:
        lengths = np.append(pc.fill_null(pc.binary_length(chunk.dictionary), 0).to_numpy(zero_copy_only=False), 0)
        parts.append(lengths[np.asarray(pc.fill_null(chunk.indices.cast(pa.int64()), -1))])
    return np.concatenate(parts).astype(np.int64)
