"""Whether the values of a log's rows are ones a model can learn from. Importers see to it; a file from elsewhere may not.

Columns are looked at as they are stored, one after another and without regard to nulls, which costs some percent of the time that
reading them takes. Only where something seems wrong the rows are looked for.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log import LogError
from rayrec.data.log.schema import LogSchema


class ValueProblem(LogError):
    """A value that must not be in a log. row: its position in the table that was checked; what: begins with the column."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f"row {row}: {what}")
        self.row, self.what = row, what

    def __reduce__(self) -> tuple[Any, ...]:  # Ray hands it from process to process
        return type(self), (self.row, self.what)


def check_values(table: pa.Table, schema: LogSchema) -> None:
    """Raises ValueProblem for the first row with a label that is not 0, 1 or null, a number that is infinite, or missing where
    the schema does not allow it, an id that the schema does not have, or a weight that is negative or infinite.

    table: rows as a log stores them, of the types that ``rayrec.data.log.check_columns`` checks. A NaN of a dense feature is a
    missing one.
    """
    for column, what, bad in _suspects(table, schema):
        row = pc.index(pc.fill_null(bad, False), True).as_py()
        if row >= 0:
            raise ValueProblem(row, f"column {column!r}: {what} (given: {table.column(column)[row].as_py()!r:.80})")


def _suspects(table: pa.Table, schema: LogSchema) -> Iterator[tuple[str, str, pa.Array | pa.ChunkedArray]]:
    """Columns in which something may be wrong, what, and in which rows it is (null = nothing)."""
    for task in schema.tasks:
        labels = table.column(task.column)
        if any(((values != 0) & (values != 1)).any() for values in _stored(labels)):
            bad = pc.and_(pc.not_equal(labels, 0), pc.not_equal(labels, 1))  # NaN equals neither
            yield task.column, "a label must be 0, 1 or null", bad
    for number in schema.dense:
        column = table.column(number.name)
        if any(np.isinf(values).any() for values in _stored(column)):
            yield number.name, "a number must be finite", pc.is_inf(column)
        if not number.allow_missing and (
            column.null_count or any(np.isnan(values).any() for values in _stored(column))
        ):
            missing = pc.is_null(column, nan_is_null=True)
            yield number.name, "a number is missing, which the schema does not allow", missing
    for category in schema.categorical:
        ids = table.column(category.name)
        if _outside(ids, category.size):
            yield (
                category.name,
                f"an id must be at least 0 and below {category.size}",
                _rows_outside(ids, category.size),
            )
    for sequence in schema.sequences:
        lists, size = table.column(sequence.name), schema.encoder_of(sequence).size
        ids = pc.list_flatten(lists)
        if _outside(ids, size):
            rows = pc.filter(pc.list_parent_indices(lists), _rows_outside(ids, size)).to_numpy()
            bad = pa.array(np.isin(np.arange(len(lists)), rows))
            yield sequence.name, f"ids must be at least 0 and below {size}", bad
    if schema.weight is not None:
        weights = table.column(schema.weight)
        if any((~(values >= 0) | np.isinf(values)).any() for values in _stored(weights)):
            bad = pc.or_(pc.less(weights, 0), pc.is_inf(weights))
            yield schema.weight, "a weight must be finite and not negative", bad


def _stored(column: pa.ChunkedArray) -> Iterator[NDArray]:
    """The stored numbers of each chunk; where null, any."""
    for chunk in column.chunks:
        kind = chunk.type.to_pandas_dtype()
        yield np.frombuffer(chunk.buffers()[1], kind)[chunk.offset : chunk.offset + len(chunk)]


def _outside(ids: pa.ChunkedArray, size: int) -> bool:
    """Whether an id may lie outside of [0, size); as unsigned, a negative one is huge."""
    return any(len(values) > 0 and values.view(np.uint32).max() >= size for values in _stored(ids))


def _rows_outside(ids: pa.ChunkedArray, size: int) -> pa.ChunkedArray:
    return pc.or_(pc.less(ids, 0), pc.greater_equal(ids, size))
