"""The user's own data: a table of events (user, item, timestamp) and a table of items with text, as Parquet or CSV."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from rayrec.data.sequences.events import EventFilter, ItemDescriptions, sequences_of_events
from rayrec.data.sequences.interactions import InteractionsError, SequenceData


@dataclass(frozen=True)
class TableColumns:
    """Column names. timestamp: whole numbers or timestamps. item_text: text columns of the items table, joined as sentences.

    item_attributes: columns whose values become attributes (brand, category); empty = none. item_title: of titles.
    """

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    item_text: tuple[str, ...] = ("text",)
    item_attributes: tuple[str, ...] = ()
    item_title: str | None = None


def read_table(
    events: Path | str, items: Path | str | None, columns: TableColumns, event_filter: EventFilter
) -> SequenceData:
    """Read ``.parquet`` or ``.csv`` files. Raises InteractionsError naming file and column."""
    table = _read(Path(events), (columns.user, columns.item, columns.timestamp))
    times = table.column(columns.timestamp)
    if pa.types.is_timestamp(times.type) or pa.types.is_date(times.type):
        times = times.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    elif not pa.types.is_integer(times.type):
        raise InteractionsError(
            f"{events}: column {columns.timestamp!r} is {times.type}, expected whole numbers or timestamps"
        )
    texts: dict[str, str] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    titles: dict[str, str] = {}
    if items is not None:
        titled = () if columns.item_title is None else (columns.item_title,)
        described = _read(Path(items), (columns.item, *columns.item_text, *columns.item_attributes, *titled))
        names = [str(name) for name in described.column(columns.item).to_pylist()]
        values = {c: described.column(c).to_pylist() for c in (*columns.item_text, *columns.item_attributes)}
        for row, name in enumerate(names):
            known = [str(values[c][row]).strip().rstrip(".") for c in columns.item_text if values[c][row]]
            texts[name] = " ".join(f"{text}." for text in known)
            found = [(c, values[c][row]) for c in columns.item_attributes if values[c][row] is not None]
            attributes[name] = tuple(f"{c}: {value}" for c, value in found)
        if columns.item_title is not None:
            known_titles = described.column(columns.item_title).to_pylist()
            titles = {name: str(title) for name, title in zip(names, known_titles, strict=True) if title is not None}
    descriptions = ItemDescriptions(texts, attributes, titles)
    users, bought = table.column(columns.user), table.column(columns.item)
    return sequences_of_events(users, bought, times, event_filter, descriptions, Path(events).name)


def _read(file: Path, wanted: tuple[str, ...]) -> pa.Table:
    if not file.is_file():
        raise InteractionsError(f"{file}: no such file")
    try:
        table = pq.read_table(file) if file.suffix == ".parquet" else pacsv.read_csv(file)
    except pa.ArrowInvalid as error:
        raise InteractionsError(f"{file}: {error}") from None
    for name in wanted:
        if name not in table.column_names:
            raise InteractionsError(f"{file}: column {name!r} is missing; found {', '.join(table.column_names)}")
    return table
