"""The user's own data: a table of events (user, item, timestamp) and a table of items with text, as Parquet, CSV or TSV.

Users and items are text and stay as they are written (0007 is not 7, "NA" is a name), but for blanks around them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.importing.own_tables import as_names
from rayrec.data.importing.reading import RawChunk, SourceError, read_delimited, read_parquet
from rayrec.data.importing.table import delimiter_of
from rayrec.data.log.raw_columns import ColumnTypeError
from rayrec.data.log.times import TimeSpelling
from rayrec.data.sequences.events import EventFilter, ItemDescriptions, sequences_of_events
from rayrec.data.sequences.interactions import InteractionsError, SequenceData


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns."""

    user: str = "user"
    """Name of the user's column."""
    item: str = "item"
    """Name of the item's column."""
    timestamp: str = "timestamp"
    """Name of the time's column."""
    item_text: tuple[str, ...] = ("text",)
    """Text columns of the items table, joined as sentences."""
    item_attributes: tuple[str, ...] = ()
    """Columns whose values become attributes (brand, category)."""
    item_title: str | None = None
    """Column of titles."""


@dataclass(frozen=True)
class TableText:
    """How text files are written."""

    delimiter: str | None = None
    """Default: a comma for .csv, a tab for .tsv (each also .gz)."""
    quoting: bool = True
    """Values may stand in double quotes, with delimiters and line ends in them."""
    encoding: str = "utf-8"
    """As Python names it: latin-1, cp1252, utf-16, ..."""
    max_characters: int = 10_000
    """Longer texts of items are cut."""


_FORMAT, _TIMES = TableText(), TimeSpelling()


def read_table(
    events: Path | str,
    items: Path | str | None,
    columns: TableColumns,
    event_filter: EventFilter,
    *,
    text: TableText = _FORMAT,
    times: TimeSpelling = _TIMES,
    keep_cold: bool = False,
) -> SequenceData:
    """Read ``.parquet``, ``.csv`` or ``.tsv`` files; what is left out is counted in the notes by reason.

    times: how the timestamp is written. Timestamps are kept in milliseconds since 1970 when they are times, or numbers of a named
    unit; other numbers only order the events and stay as they are. keep_cold: items of the items table without an event stay too.
    Raises InteractionsError naming file and column.
    """
    events = Path(events)
    wanted = (columns.user, columns.item, columns.timestamp)
    users: list[pa.Array] = []
    bought: list[pa.Array] = []
    moments: list[pa.Array] = []
    left_out: Counter[str] = Counter()
    units: dict[str, int] = {}
    blanks, kind, example = 0, pa.null(), None
    for chunk in _chunks(events, wanted, text):
        left_out.update(rejected.reason for rejected in chunk.rejected)
        for name, names in ((columns.user, users), (columns.item, bought)):
            known, stripped = _names(events, name, chunk.table.column(name))
            names.append(known)
            blanks += stripped
        column = chunk.table.column(columns.timestamp)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        milliseconds, good = _times(events, columns.timestamp, column, times, chunk.row_numbers, units, left_out)
        if len(column):
            example = column[0].as_py() if example is None else example
        moments.append(pa.array(milliseconds, mask=~good))
    if units.keys() >= {"s", "ms"}:
        raise InteractionsError(
            f"{events}: column {columns.timestamp!r} mixes units: row {units['s']:,} looks like seconds, row {units['ms']:,} "
            "like milliseconds; write it in one of them"
        )
    if moments and all(part.null_count == len(part) for part in moments):
        raise InteractionsError(
            f"{events}: column {columns.timestamp!r} is {kind}, expected whole numbers or timestamps (row 1: {example!r:.80}); "
            "--times.unit or --times.format say how times are written"
        )
    described = _items(Path(items), columns, text, left_out) if items is not None else ItemDescriptions({}, {})
    data = sequences_of_events(
        pa.chunked_array(users, pa.dictionary(pa.int32(), pa.string())),
        pa.chunked_array(bought, pa.dictionary(pa.int32(), pa.string())),
        pa.chunked_array(moments, pa.int64()),
        event_filter,
        described,
        events.name,
        left_out=left_out,
        keep_cold=keep_cold,
    )
    return replace(data, notes={**data.notes, "ids_with_blanks": blanks})


def _chunks(file: Path, wanted: Sequence[str], text: TableText) -> Iterator[RawChunk]:
    """The wanted columns. Raises InteractionsError when the file is broken or one is missing."""
    try:
        if file.suffix == ".parquet":
            if file.is_file() and file.stat().st_size:
                _require(file, wanted, pq.read_schema(file).names)
            yield from read_parquet(file, tuple(dict.fromkeys(wanted)))
        else:
            delimiter = delimiter_of(file, text.delimiter)
            for chunk in read_delimited(file, delimiter, quoting=text.quoting, encoding=text.encoding):
                _require(file, wanted, chunk.table.column_names)
                yield chunk
    except (SourceError, pa.ArrowException, OSError) as error:
        message = str(error) if isinstance(error, SourceError) else f"{file}: not a readable Parquet file: {error}"
        raise InteractionsError(message) from None


def _require(file: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    for name in wanted:
        if name not in there:
            raise InteractionsError(f"{file}: column {name!r} is missing; found {', '.join(there[:50])}")


def _names(file: Path, name: str, column: pa.ChunkedArray) -> tuple[pa.DictionaryArray, int]:
    """Names (n,), null or empty where there is none, and how many had blanks around them."""
    try:
        codes, blanks = as_names(column)
    except ColumnTypeError as error:
        raise InteractionsError(f"{file}: column {name!r} {error}") from None
    if codes.bad.any():
        row = int(np.flatnonzero(codes.bad)[0])
        raise InteractionsError(
            f"{file}: column {name!r} holds {column[row].as_py()!r}, which is neither text nor whole"
        )
    index = pa.array(codes.index, pa.int32(), mask=codes.index < 0)
    return pa.DictionaryArray.from_arrays(index, codes.values), blanks


def _times(
    file: Path,
    name: str,
    column: pa.ChunkedArray,
    spelling: TimeSpelling,
    numbers: NDArray[np.int64],
    units: dict[str, int],
    left_out: Counter[str],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Times (n,), and which of them are there and right. units: the first row that looks like each unit."""
    try:
        times = spelling.read(column)
    except ColumnTypeError as error:
        raise InteractionsError(f"{file}: column {name!r} {error}") from None
    good = ~(times.null | times.bad)
    left_out[f"{name}: is no time"] += int(times.bad.sum())
    if spelling == _TIMES:
        whole = pa.types.is_integer(column.type) or pa.types.is_string(column.type)
        for unit, low in (("s", 10**9 * 0.63), ("ms", 10**12 * 0.63)) if whole else ():
            like = good & (times.values >= low) & (times.values < 6.6 * low)
            if unit not in units and like.any():
                units[unit] = int(numbers[like.argmax()])
    else:
        for what, _, rows in spelling.outside(times):
            left_out[f"{name}: {what}"] += int(rows.sum())
            good &= ~rows
    return times.values, good


def _items(file: Path, columns: TableColumns, text: TableText, left_out: Counter[str]) -> ItemDescriptions:
    """Texts, attributes and titles by item. Raises InteractionsError for an item that is there twice."""
    titled = () if columns.item_title is None else (columns.item_title,)
    wanted = (columns.item, *columns.item_text, *columns.item_attributes, *titled)
    texts: dict[str, str] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    titles: dict[str, str] = {}
    rows: dict[str, int] = {}
    for chunk in _chunks(file, wanted, text):
        left_out.update(f"items table: {rejected.reason}" for rejected in chunk.rejected)
        names = [name or None for name in _names(file, columns.item, chunk.table.column(columns.item))[0].to_pylist()]
        values = {c: chunk.table.column(c).to_pylist() for c in wanted[1:]}
        for i, (name, row) in enumerate(zip(names, chunk.row_numbers.tolist(), strict=True)):
            if name is None:
                left_out["items table: no item"] += 1
                continue
            if name in rows:
                raise InteractionsError(f"{file}: item {name!r} is there twice, in rows {rows[name]:,} and {row:,}")
            rows[name] = row
            known = [str(values[c][i]).strip().rstrip(".") for c in columns.item_text if values[c][i]]
            left_out["items table: texts cut"] += any(len(sentence) > text.max_characters for sentence in known)
            texts[name] = " ".join(f"{sentence[: text.max_characters]}." for sentence in known)
            found = [(c, values[c][i]) for c in columns.item_attributes if values[c][i] is not None]
            attributes[name] = tuple(f"{c}: {value}" for c, value in found)
            for c in titled:
                if values[c][i] is not None:
                    titles[name] = str(values[c][i])
    return ItemDescriptions(texts, attributes, titles)
