"""Histories from a ranking log: what users clicked there, so that a retriever learns from the same rows as the rankers."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.data.log import Log
from rayrec.data.log.schema import CategoricalFeature
from rayrec.data.sequences.events import EventFilter, ItemDescriptions, sequences_of_events
from rayrec.data.sequences.interactions import InteractionsError, SequenceData


@dataclass(frozen=True)
class LogEvents:
    """Which rows of a log are events: those whose label of ``task`` is 1, in the order of the log's timestamp."""

    user: str
    """Categorical feature that names the user; a vocabulary's ids become its values again, hashed ones stay numbers."""
    item: str
    """Categorical feature that names the item, alike."""
    task: str
    """Whose positive label makes a row an event."""
    attributes: tuple[str, ...] = ()
    """Categorical features of the item that describe it (category, brand)."""


def read_log_events(log: Log, events: LogEvents, event_filter: EventFilter) -> SequenceData:
    """Events of all splits. Raises InteractionsError that names the feature, task or timestamp that the log lacks."""
    schema, wanted = log.schema, (events.user, events.item, *events.attributes)
    known = {feature.name: feature for feature in schema.categorical}
    for name in wanted:
        if name not in known:
            raise InteractionsError(
                f"{log.path}: no categorical feature is called {name!r}; there are {', '.join(known)}"
            )
    if events.task not in schema.task_names:
        raise InteractionsError(
            f"{log.path}: no task is called {events.task!r}; there are {', '.join(schema.task_names)}"
        )
    if schema.timestamp is None:
        raise InteractionsError(f"{log.path}: its rows have no timestamp to put them in order")
    columns = [*wanted, schema.timestamp, events.task]
    files = [file for split in log.splits for file in log.files(split)]
    tables = [pq.read_table(file, columns=columns, filters=pc.field(events.task) == 1) for file in files]
    table = pa.concat_tables(tables).filter(pc.field(events.user) > 0).filter(pc.field(events.item) > 0)
    names = {name: _names(known[name], table.column(name)) for name in wanted}
    described = [f"{name}: " for name in events.attributes]
    attributes = {
        item: tuple(prefix + value for prefix, value in zip(described, values, strict=True))
        for item, *values in zip(*(names[name].to_pylist() for name in (events.item, *events.attributes)), strict=True)
    }
    return sequences_of_events(
        names[events.user],
        names[events.item],
        table.column(schema.timestamp).cast(pa.int64()),
        event_filter,
        ItemDescriptions({}, attributes if events.attributes else {}),
        log.path.name,
    )


def _names(feature: CategoricalFeature, codes: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values that codes of 1 and more stand for."""
    if feature.vocabulary is None:
        return pc.binary_join_element_wise(feature.name, codes.cast(pa.string()), "-")
    return pa.array(feature.vocabulary, pa.string()).take(pc.subtract(codes, 1))
