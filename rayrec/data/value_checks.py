"""Whether the values of a log's rows are ones a model can learn from. Importers see to it; a file from elsewhere may not.

A few comparisons of whole matrices a block: some percent of the time that reading the block takes.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log import LogError
from rayrec.data.packing import PackedRows
from rayrec.data.schema import LogSchema

Bad = NDArray[np.bool_]


class ValueProblem(LogError):
    """A value that must not be in a log. row: its position in the block that was checked; what: begins with the column."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f"row {row}: {what}")
        self.row, self.what = row, what


def check_values(table: pa.Table, packed: PackedRows, schema: LogSchema) -> None:
    """Raises ValueProblem for the first row with a label that is not 0, 1 or null, a number that is infinite, or missing where
    the schema does not allow it, an id that the schema does not have, or a weight that is negative or infinite.

    table: the rows as stored; packed: the same rows. A NaN of a dense feature is a missing one.
    """
    for column, what, bad in _suspects(table, packed, schema):
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueProblem(row, f"column {column!r}: {what} (given: {table.column(column)[row].as_py()!r:.80})")


def _suspects(table: pa.Table, packed: PackedRows, schema: LogSchema) -> Iterator[tuple[str, str, Bad]]:
    """Column, what is wrong with it, and which rows, (n,) bool."""
    tasks, dense, categorical = schema.tasks, schema.dense, schema.categorical
    labels = packed.labels
    wrong = ~((labels == 0) | (labels == 1) | np.isnan(labels))  # (n, T)
    for j in np.flatnonzero(wrong.any(axis=0)).tolist():
        yield tasks[j].column, "a label must be 0, 1 or null", wrong[:, j]
    for task in tasks:
        nan = pc.fill_null(pc.is_nan(table.column(task.column)), False)
        if pc.any(nan).as_py():
            yield task.column, "a label must be 0, 1 or null", nan.to_numpy()
    infinite = np.isinf(packed.dense)  # (n, D)
    for j in np.flatnonzero(infinite.any(axis=0)).tolist():
        yield dense[j].name, "a number must be finite", infinite[:, j]
    for j, feature in enumerate(dense):
        if not feature.allow_missing:
            yield feature.name, "a number is missing, which the schema does not allow", np.isnan(packed.dense[:, j])
    sizes = np.array([feature.size for feature in categorical], np.uint32)
    unknown = packed.categorical.view(np.uint32) >= sizes  # (n, F); as unsigned, a negative id is a huge one
    for j in np.flatnonzero(unknown.any(axis=0)).tolist():
        yield categorical[j].name, f"an id must be at least 0 and below {sizes[j]}", unknown[:, j]
    for sequence, ids in zip(schema.sequences, packed.sequences, strict=True):
        size = schema.encoder_of(sequence).size
        outside: Bad = np.logical_or.reduce(ids.view(np.uint32) >= size, axis=1)
        yield sequence.name, f"ids must be at least 0 and below {size}", outside
    if packed.weights is not None:
        assert schema.weight is not None
        negative: Bad = packed.weights < 0
        yield schema.weight, "a weight must not be negative", negative
        yield schema.weight, "a weight must be finite", np.isinf(packed.weights)  # packing refuses NaN
