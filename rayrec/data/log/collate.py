"""Encoded rows to a ``Batch`` of tensors: the one way from Arrow to the model, in training and in serving."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayrec.batch import Batch
from rayrec.data.log.packing import PackedRows, pack
from rayrec.data.log.schema import LogSchema


def collate(table: pa.Table, schema: LogSchema, *, extras: Sequence[str] = (), labels: bool = True) -> Batch:
    """A batch of all rows of ``table`` (columns as ``rayrec.data.log.arrow_schema``, any order, others ignored).

    A null number is NaN, a null id or list 0; sequences keep their last ``max_length`` ids, (B, max_length), zeros behind.
    extras: names of numeric columns (``schema.extras``, timestamp, request id) to carry along, float64 or int64.
    labels=False (serving): label and weight columns are not needed, labels are all NaN.
    Raises LogError naming the column when one is absent, or when a weight or an integer extra is null.
    """
    return batch_of(pack(table, schema, extras=extras, labels=labels))


def batch_of(packed: PackedRows, rows: NDArray[np.int64] | slice | None = None) -> Batch:
    """The given rows (default: all) as a batch that owns its memory: it can be changed in place and outlives ``packed``."""
    pick = slice(None) if rows is None else rows
    return Batch(
        dense=_copy(packed.dense, pick, np.float32),
        categorical=_copy(packed.categorical, pick, np.int64),
        labels=_copy(packed.labels, pick, np.float32),
        sequences=tuple(_copy(ids, pick, np.int64) for ids in packed.sequences),
        weights=None if packed.weights is None else _copy(packed.weights, pick, np.float32),
        extras={
            name: _copy(column, pick, np.float64 if column.dtype.kind == "f" else np.int64)
            for name, column in packed.extras.items()
        },
    )


def _copy(matrix: NDArray, rows: NDArray[np.int64] | slice, dtype: type) -> torch.Tensor:
    picked = matrix[rows] if isinstance(rows, slice) else matrix.take(rows, axis=0)
    fresh = not isinstance(rows, slice) and picked.dtype == dtype
    return torch.from_numpy(picked if fresh else picked.astype(dtype))
