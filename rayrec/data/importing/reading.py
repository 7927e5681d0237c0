"""Raw files as a stream of Arrow tables: delimited text (also gzip) and Parquet, in constant memory.

A broken file raises SourceError, one sentence that names the file and, where there is one, the column.
"""

import codecs
import csv
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.importing.parquet_batches import bounded_batches, text_columns
from rayrec.data.importing.quotes import MANY_LINES, STRAY, holds_rows, open_quote, quote_behind_blank
from rayrec.data.log.splitting import Split
from rayrec.errors import UserError

BLOCK_BYTES = 8 << 20
PARQUET_ROWS = 65_536
_DELIMITERS = (",", ";", "\t", "|")


_OTHER_ENCODING = "say its encoding, --encoding latin-1 or cp1252 for files of western offices"


class SourceError(UserError):
    """Raw data that cannot be imported; names the file and, where there is one, the column.

    option: the options of an import that may help, told behind ``problem``.
    """

    def __init__(self, problem: str, option: str = "") -> None:
        super().__init__(f"{problem}; {option}" if option else problem)
        self.problem = problem


@dataclass(frozen=True)
class RejectedRow:
    """A record that is no row, or a line of one: its number in the file, why, its text, and what may help."""

    row: int
    reason: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class RawChunk:
    """Rows of one file as they are there. row_numbers: (n,) int64, their numbers in the file from 1 (a header is not counted,
    blank lines neither). split: what the file is for, where that is known. rejected: records that could not be rows.
    over_lines: rows of the table with a value over more than one line."""

    table: pa.Table
    source: str
    row_numbers: NDArray[np.int64]
    split: Split | None = None
    rejected: tuple[RejectedRow, ...] = ()
    over_lines: int = 0


def read_delimited(
    path: Path,
    delimiter: str,
    *,
    columns: Sequence[str] | None = None,
    split: Split | None = None,
    quoting: bool = True,
    encoding: str = "utf-8",
    prose: bool = False,
) -> Iterator[RawChunk]:
    """Rows of a text file, all columns strings, empty = null. columns: the names, where the file has no header.

    quoting: values may stand in double quotes, with delimiters and line ends in them. A record with another number of fields is
    rejected, and so are the lines of a value that holds what look like rows, but in ``prose``. Raises SourceError for a file that
    is absent, empty, damaged or not of that encoding, with a quote that is never closed, or a header that repeats a name or has
    another delimiter.
    """
    require_file(path)
    encoding = _text_encoding(encoding)
    _require_text(path, encoding)
    names = list(columns) if columns is not None else _header(path, delimiter, quoting, encoding)
    if quoting:
        _require_quotes_at_once(path, delimiter, encoding)
    offset = 1 if columns is None else 0  # Arrow counts the header as a record
    rejected: list[RejectedRow] = []

    def reject(row: pacsv.InvalidRow) -> str:
        reason = f"wrong number of fields: {row.actual_columns} instead of {row.expected_columns}"
        lines = row.text.splitlines()
        if len(lines) > 1:
            reason = f"wrong number of fields in a record of several lines, perhaps {STRAY}"
        hint = _guessed(row.text, delimiter, row.expected_columns) or "" if row.actual_columns == 1 else ""
        rejected.extend(RejectedRow((row.number or 0) - offset, reason, line, hint) for line in lines)
        return "skip"

    last_row, last_lines = 0, 0
    parsing = pacsv.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quoting else False,
        newlines_in_values=quoting,
        invalid_row_handler=reject,
    )
    for batch in _batches(path, parsing, names, encoding, has_header=columns is None):
        gaps = np.unique(np.array([r.row for r in rejected], np.int64))
        numbers = last_row + 1 + np.arange(batch.num_rows, dtype=np.int64)
        rows_before_gaps = gaps - np.arange(len(gaps)) - (last_row + 1)
        numbers += np.searchsorted(rows_before_gaps, np.arange(batch.num_rows), side="right")
        last = int(numbers[-1]) if len(numbers) else last_row
        inside = tuple(r for r in rejected if r.row < last)
        rejected[:] = [r for r in rejected if r.row >= last]
        last_row = last
        if batch.schema.names != names:
            raise SourceError(
                f"{path}: the header reads as {names!r:.80}, or as {batch.schema.names!r:.80}; name columns plainly"
            )
        table = pa.Table.from_batches([batch.rename_columns([name.strip() for name in batch.schema.names])])
        lines = _line_ends(table) if quoting else np.zeros(table.num_rows, np.int64)
        last_lines = int(lines[-1])
        swallowed = () if prose else _swallowed(table, lines, numbers, delimiter)
        if swallowed:
            kept = ~np.isin(numbers, [row.row for row in swallowed])
            table, numbers, lines = table.filter(pa.array(kept)), numbers[kept], lines[kept]
        yield RawChunk(table, str(path), numbers, split, (*inside, *swallowed), int((lines > 0).sum()))
    if quoting:
        if rejected and rejected[-1].row > last_row:
            last_lines = sum(row.row == rejected[-1].row for row in rejected) - 1
        _require_closed(path, delimiter, encoding, last_lines)
    if rejected or last_row == 0:
        empty = pa.table({name.strip(): pa.array([], pa.string()) for name in names})
        yield RawChunk(empty, str(path), np.empty(0, np.int64), split, tuple(rejected))


def read_parquet(path: Path, columns: Sequence[str] | None = None, split: Split | None = None) -> Iterator[RawChunk]:
    """Rows of a Parquet file, in batches bounded by rows and by bytes, text as dictionaries. columns: only these (default all).

    Raises SourceError for a file that is absent, empty, truncated or damaged, lacks one of the columns, or holds text that is not
    UTF-8.
    """
    require_file(path)
    try:
        with pq.ParquetFile(path) as footer:
            texts = text_columns(footer.schema_arrow)
        file = pq.ParquetFile(path, read_dictionary=texts)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not a readable Parquet file (truncated or damaged): {_line(error)}") from None
    with file:
        names = file.schema_arrow.names
        for column in columns or ():
            if column not in names:
                raise SourceError(f"{path}: column {column!r} is absent (columns there: {', '.join(names[:50])})")
        row = 1
        try:
            for table in bounded_batches(file, columns, PARQUET_ROWS):
                table = _without_views(table)
                _require_utf8(path, table, row)
                numbers = np.arange(row, row + table.num_rows, dtype=np.int64)
                row += table.num_rows
                yield RawChunk(table, str(path), numbers, split)
            if row == 1:
                yield RawChunk(file.schema_arrow.empty_table(), str(path), np.empty(0, np.int64), split)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path}: damaged Parquet file, after row {row - 1:,}: {_line(error)}") from None


def _without_views(table: pa.Table) -> pa.Table:
    """Lists of texts as plain strings, which Arrow computes with."""
    for at, field in enumerate(table.schema):
        if pa.types.is_list(field.type) and pa.types.is_string_view(field.type.value_type):
            table = table.set_column(at, field.name, table.column(at).cast(pa.list_(pa.string())))
    return table


def _require_utf8(path: Path, table: pa.Table, first_row: int) -> None:
    """Raises SourceError for the first text that is not UTF-8, which Parquet does not check."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_primitive(column.type):
            continue
        try:
            for chunk in column.chunks:
                values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
                if not (pa.types.is_string(values.type) and _is_ascii(values)):
                    values.validate(full=True)
        except pa.ArrowInvalid:
            row = next((i for i, value in enumerate(column) if not _is_utf8(value)), None)
            if row is not None:
                raise SourceError(f"{path}: column {name!r}, row {first_row + row:,}: text that is not UTF-8") from None


def _is_ascii(texts: pa.StringArray) -> bool:
    """A look at their bytes, fifty times as fast as Arrow's: a row group's dictionary comes again with each of its batches."""
    data = texts.buffers()[2]
    return data is None or int(np.frombuffer(data, np.uint8).max(initial=0)) < 128


def _is_utf8(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


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


def first_line(path: Path, encoding: str = "utf-8") -> str:
    """The first line of a text file (also gzip) that is not empty. Raises SourceError for a file that is absent or damaged."""
    require_file(path)
    encoding = _text_encoding(encoding)
    _require_text(path, encoding)
    try:
        return next((line for line in _text_lines(path, encoding) if line.strip("\r\n")), "")
    except (OSError, EOFError, UnicodeError) as error:
        raise SourceError(f"{path}: damaged: {error}") from None


def _text_encoding(name: str) -> str:
    """ "utf-8" for all its names, others as they are. Raises SourceError for what is no encoding of text."""
    try:
        "".encode(name)  # hex, base64 and zip are codecs too, of bytes
        codecs.getincrementaldecoder(name)
        return "utf-8" if codecs.lookup(name).name in ("utf-8", "utf-8-sig") else name
    except (LookupError, ValueError):
        raise SourceError(
            f"{name!r} is no encoding of text that Python knows (known: utf-8, latin-1, cp1252, ...)"
        ) from None


def _require_text(path: Path, encoding: str) -> None:
    """Look at the beginning only: a file of another kind is told from text by it."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            start = file.read(1 << 16)
            decoder.decode(start)
    except UnicodeError as error:
        utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        where = f" (byte {error.start:,})" if isinstance(error, UnicodeDecodeError) else ""
        advice = "it looks like --encoding utf-16" if utf16 else _OTHER_ENCODING
        raise SourceError(f"{path}: not {encoding.upper()} text{where}", advice) from None
    except (OSError, EOFError) as error:
        raise SourceError(f"{path}: damaged: {error}") from None


def _require_quotes_at_once(path: Path, delimiter: str, encoding: str) -> None:
    """Looks at the first lines only. Raises SourceError for blanks between delimiters and quotes."""
    line = None
    with suppress(OSError, EOFError, UnicodeError):  # told when the rows are read
        line = quote_behind_blank(islice(_text_lines(path, encoding), 1000), delimiter)
    if line is not None:
        raise SourceError(
            f"{path}: line {line:,}: a quote behind a blank opens no value; take the blanks behind delimiters away",
            "or give --no-quoting if quotes are part of the values",
        )


def _text_lines(path: Path, encoding: str) -> Iterator[str]:
    with (
        gzip.open(path) if _is_gzip(path) else path.open("rb") as file,
        io.TextIOWrapper(file, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="\n") as lines,
    ):
        yield from lines


def _guessed(line: str, delimiter: str, columns: int) -> str | None:
    """Which other delimiter a line of one value seems to have, where it gives that many columns (0: any number)."""
    counts = {other: line.count(other) for other in _DELIMITERS if other != delimiter and other in line}
    likely = max(counts, key=counts.__getitem__, default=None)
    if likely is None or delimiter in line or (columns and counts[likely] + 1 != columns):
        return None
    return f"its values seem to stand between {likely!r}, not {delimiter!r}: say so by --delimiter"


def _line_ends(table: pa.Table) -> NDArray[np.int64]:
    """(n,) most line ends in a value of each row (strings); looked at by bytes first, since there are hardly ever any."""
    most = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        for chunk in column.chunks:
            data = chunk.buffers()[2]
            if data is not None and (np.frombuffer(data, np.uint8) == ord("\n")).any():
                found = pc.fill_null(pc.count_substring(column, "\n"), 0).to_numpy()
                most = np.maximum(most, found)
                break
    return most


def _swallowed(
    table: pa.Table, lines: NDArray[np.int64], numbers: NDArray[np.int64], delimiter: str
) -> tuple[RejectedRow, ...]:
    """The lines of values that hold what look like rows, each as a rejected row of its record."""
    found = []
    for row in np.flatnonzero(lines >= MANY_LINES):
        values = [value or "" for value in table.slice(int(row), 1).to_pylist()[0].values()]
        if any(holds_rows(value, delimiter, table.num_columns) for value in values):
            text = delimiter.join(values)
            found += [RejectedRow(int(numbers[row]), f"lines {STRAY}", line) for line in text.splitlines()]
    return tuple(found)


def _require_closed(path: Path, delimiter: str, encoding: str, last_lines: int) -> None:
    """Raises SourceError, naming the line, when the last record (with that many line ends in it) lies in a quote without an end.

    The whole file is looked through only when the record has more than one line; else its last line alone.
    """
    line: int | None
    if last_lines:
        line = open_quote(_text_lines(path, encoding), delimiter)
    elif _is_gzip(path) or encoding != "utf-8":
        return
    else:
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, BLOCK_BYTES), io.SEEK_END)
            end = file.read().rstrip(b"\r\n")
        if open_quote([end[end.rfind(b"\n") + 1 :].decode("utf-8", "replace")], delimiter) is None:
            return
        line = sum(1 for _ in _text_lines(path, encoding))
    if line is not None:
        raise SourceError(
            f"{path}: line {line:,}: a quote is opened and never closed",
            "if quotes are part of the values, give --no-quoting",
        )


def _header(path: Path, delimiter: str, quoting: bool, encoding: str) -> list[str]:
    line = first_line(path, encoding)
    if line and not line.strip():
        raise SourceError(f"{path}: its first line holds blanks alone, expected the names of the columns")
    if "\r" in line.rstrip("\r\n"):
        raise SourceError(f"{path}: its lines end in a carriage return alone; write them with line feeds")
    if quoting and open_quote([line], delimiter) is not None:
        raise SourceError(
            f"{path}: a quote is opened in the header and not closed on its line; the name of a column holds no line end",
            "if quotes are part of the names, give --no-quoting",
        )
    try:
        names = next(
            csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE), []
        )
    except csv.Error as error:
        raise SourceError(f"{path}: damaged: {error}") from None
    if len(names) == 1 and (guess := _guessed(names[0], delimiter, 0)):
        raise SourceError(f"{path}: the header is one column, {names[0]!r:.80}", guess)
    stripped = [name.strip() for name in names]
    repeated = sorted({name for name in stripped if stripped.count(name) > 1})
    if repeated:
        raise SourceError(
            f"{path}: column {repeated[0]!r} is there more than once (columns there: {', '.join(stripped[:50])})"
        )
    return names


def _batches(
    path: Path, parsing: pacsv.ParseOptions, names: list[str], encoding: str, *, has_header: bool
) -> Iterator[pa.RecordBatch]:
    rows = 0
    try:
        with pa.input_stream(path, compression="gzip" if _is_gzip(path) else None, buffer_size=1 << 20) as stream:
            reader = pacsv.open_csv(
                stream,
                # single-threaded: only then Arrow knows the numbers of the records it rejects
                pacsv.ReadOptions(
                    use_threads=False,
                    block_size=BLOCK_BYTES,
                    column_names=None if has_header else names,
                    encoding="utf8" if encoding == "utf-8" else encoding,
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
            raise SourceError(
                f"{path}: column {name!r} is not UTF-8 text, after row {rows:,}", _OTHER_ENCODING
            ) from None
        if rows == 0 and "Empty CSV" in text:
            raise SourceError(f"{path}: the file holds no rows") from None
        if "straddling" in text:
            _require_closed(path, parsing.delimiter, encoding, 1 if parsing.quote_char else 0)
            stray = "a stray quote? if quotes are part of the values, give --no-quoting" if parsing.quote_char else ""
            raise SourceError(
                f"{path}: a row is longer than {BLOCK_BYTES >> 20} MiB, after row {rows:,}", stray
            ) from None
        raise SourceError(f"{path}: cannot be read after row {rows:,}: {text}") from None
    except UnicodeError as error:
        raise SourceError(f"{path}: not {encoding.upper()} text after row {rows:,}: {error}") from None
    except OSError as error:
        raise SourceError(f"{path}: damaged after row {rows:,}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
