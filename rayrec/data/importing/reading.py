"""Raw files as a stream of Arrow tables: delimited text (also gzip) and Parquet, in constant memory.

A broken file raises SourceError, one sentence that names the file and, where there is one, the column.
"""

import codecs
import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.log.splitting import Split
from rayrec.errors import UserError

BLOCK_BYTES = 8 << 20
PARQUET_ROWS = 65_536


class SourceError(UserError):
    """Raw data that cannot be imported; names the file and, where there is one, the column."""


@dataclass(frozen=True)
class RejectedRow:
    """A record that is no row: its number in the file, why, and its text."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True)
class RawChunk:
    """Rows of one file as they are there. row_numbers: (n,) int64, their numbers in the file from 1 (a header is not counted,
    blank lines neither). split: what the file is for, where that is known. rejected: records that could not be rows."""

    table: pa.Table
    source: str
    row_numbers: NDArray[np.int64]
    split: Split | None = None
    rejected: tuple[RejectedRow, ...] = ()


def read_delimited(
    path: Path,
    delimiter: str,
    *,
    columns: Sequence[str] | None = None,
    split: Split | None = None,
    quoting: bool = True,
) -> Iterator[RawChunk]:
    """Rows of a text file, all columns strings, empty = null. columns: the names, where the file has no header.

    quoting: values may stand in double quotes, with delimiters and line ends in them. A record with another number of fields is
    rejected. Raises SourceError for a file that is absent, empty, damaged, not UTF-8, or whose header repeats a name.
    """
    require_file(path)
    _require_text(path)
    names = list(columns) if columns is not None else _header(path, delimiter, quoting)
    offset = 1 if columns is None else 0  # Arrow counts the header as a record
    rejected: list[RejectedRow] = []

    def reject(row: pacsv.InvalidRow) -> str:
        reason = f"wrong number of fields: {row.actual_columns} instead of {row.expected_columns}"
        rejected.append(RejectedRow((row.number or 0) - offset, reason, row.text))
        return "skip"

    last_row = 0
    parsing = pacsv.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quoting else False,
        newlines_in_values=quoting,
        invalid_row_handler=reject,
    )
    for batch in _batches(path, parsing, names, has_header=columns is None):
        gaps = np.array(sorted(r.row for r in rejected), np.int64)
        numbers = last_row + 1 + np.arange(batch.num_rows, dtype=np.int64)
        rows_before_gaps = gaps - np.arange(len(gaps)) - (last_row + 1)
        numbers += np.searchsorted(rows_before_gaps, np.arange(batch.num_rows), side="right")
        last = int(numbers[-1]) if len(numbers) else last_row
        inside = tuple(r for r in rejected if r.row < last)
        rejected[:] = [r for r in rejected if r.row >= last]
        last_row = last
        yield RawChunk(pa.Table.from_batches([batch]), str(path), numbers, split, inside)
    if rejected or last_row == 0:
        empty = pa.table({name: pa.array([], pa.string()) for name in names})
        yield RawChunk(empty, str(path), np.empty(0, np.int64), split, tuple(rejected))


def read_parquet(path: Path, columns: Sequence[str] | None = None, split: Split | None = None) -> Iterator[RawChunk]:
    """Rows of a Parquet file, row group by row group. columns: only these (default all).

    Raises SourceError for a file that is absent, empty, truncated or damaged, or lacks one of the columns.
    """
    require_file(path)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not a readable Parquet file (truncated or damaged): {_line(error)}") from None
    with file:
        names = file.schema_arrow.names
        for column in columns or ():
            if column not in names:
                raise SourceError(f"{path}: column {column!r} is absent (columns there: {', '.join(names[:50])})")
        row = 1
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=None if columns is None else list(columns)):
                numbers = np.arange(row, row + batch.num_rows, dtype=np.int64)
                row += batch.num_rows
                yield RawChunk(pa.Table.from_batches([batch]), str(path), numbers, split)
            if row == 1:
                yield RawChunk(file.schema_arrow.empty_table(), str(path), np.empty(0, np.int64), split)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path}: damaged Parquet file, after row {row - 1:,}: {_line(error)}") from None


def require_file(path: Path) -> None:
    """Raises SourceError when there is no such file, or nothing in it."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty")


def find_files(source: Path, *patterns: str) -> tuple[Path, ...]:
    """``source`` itself when it is a file, else the files of that folder that match the patterns, sorted, each once.

    Raises SourceError when there is none.
    """
    if source.is_file():
        return (source,)
    found = sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    if not found:
        what = "no such file or folder" if not source.exists() else f"no file {' or '.join(patterns)} in this folder"
        raise SourceError(f"{source}: {what}")
    return tuple(found)


def first_line(path: Path) -> str:
    """The first line of a text file (also gzip) that is not blank. Raises SourceError for a file that is absent or damaged."""
    require_file(path)
    _require_text(path)
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            return next((line for line in file if line.strip()), b"").decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: damaged: {error}") from None


def _require_text(path: Path) -> None:
    """Look at the beginning only: a file of another kind is told from text by it."""
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            codecs.getincrementaldecoder("utf-8")().decode(file.read(1 << 16))
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text (byte {error.start:,})") from None
    except (OSError, EOFError) as error:
        raise SourceError(f"{path}: damaged: {error}") from None


def _header(path: Path, delimiter: str, quoting: bool) -> list[str]:
    line = first_line(path)
    try:
        names = next(
            csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE), []
        )
    except csv.Error as error:
        raise SourceError(f"{path}: damaged: {error}") from None
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SourceError(f"{path}: column {repeated[0]!r} is there more than once")
    return names


def _batches(
    path: Path, parsing: pacsv.ParseOptions, names: list[str], *, has_header: bool
) -> Iterator[pa.RecordBatch]:
    rows = 0
    try:
        with pa.input_stream(path, compression="gzip" if _is_gzip(path) else None, buffer_size=1 << 20) as stream:
            reader = pacsv.open_csv(
                stream,
                # single-threaded: only then Arrow knows the numbers of the records it rejects
                pacsv.ReadOptions(
                    use_threads=False, block_size=BLOCK_BYTES, column_names=None if has_header else names
                ),
                parsing,
                pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
                ),
            )
            for batch in reader:
                rows += batch.num_rows
                if batch.num_rows:
                    yield batch
    except pa.ArrowInvalid as error:
        text = _line(error)
        column = re.search(r"In CSV column #(\d+).*UTF8", text)
        if column:
            name = names[int(column.group(1))]
            raise SourceError(f"{path}: column {name!r} is not UTF-8 text, after row {rows:,}") from None
        if rows == 0 and "Empty CSV" in text:
            raise SourceError(f"{path}: the file holds no rows") from None
        raise SourceError(f"{path}: cannot be read after row {rows:,}: {text}") from None
    except OSError as error:
        raise SourceError(f"{path}: damaged after row {rows:,}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
