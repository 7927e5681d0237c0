"""Small steps from raw columns to those of a schema, on distinct values where that is faster. Bad values come out null or as they
are: the checks that follow name them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.log.raw_columns import Integers

_HOUR = 3_600_000
_DAY = 24 * _HOUR


def trimmed(table: pa.Table) -> pa.Table:
    """All columns (strings) without white space around the values, dictionary-encoded."""
    columns = {}
    for name in table.column_names:
        encoded = table.column(name).combine_chunks().dictionary_encode()
        values = pc.utf8_trim_whitespace(encoded.dictionary)
        columns[name] = pa.DictionaryArray.from_arrays(encoded.indices, values)
    return pa.table(columns)


def replaced(column: pa.ChunkedArray | pa.DictionaryArray, names: Mapping[str, str]) -> pa.DictionaryArray:
    """Values exchanged by name; those not named stay."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    values = pa.array([names.get(value, value) for value in encoded.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(encoded.indices, values)


def one_of(column: pa.ChunkedArray | pa.DictionaryArray, positive: frozenset[str]) -> pa.Array:
    """1.0 where the value is one of ``positive``, else 0.0; null stays null."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    values = pa.array(
        [None if v is None else float(v in positive) for v in encoded.dictionary.to_pylist()], pa.float64()
    )
    return values.take(encoded.indices)


def hour_of_day(times: Integers, utc_offset_hours: int = 0) -> pa.Array:
    """0 to 23 in local time, of milliseconds since 1970."""
    local = times.values + utc_offset_hours * _HOUR
    return pa.array((local % _DAY // _HOUR).astype(np.int8), mask=times.null | times.bad)


def day_of_week(times: Integers, utc_offset_hours: int = 0) -> pa.Array:
    """0 = Monday to 6 = Sunday in local time, of milliseconds since 1970 (a Thursday)."""
    local = times.values + utc_offset_hours * _HOUR
    return pa.array(((local // _DAY + 3) % 7).astype(np.int8), mask=times.null | times.bad)
