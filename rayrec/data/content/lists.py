"""Many lists of integers as two flat arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lists:
    """offsets: (R + 1,) int64; list r is values[offsets[r]:offsets[r + 1]]. values: (V,) int32."""

    offsets: NDArray[np.int64]
    values: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def padded(self, rows: NDArray[np.int64], longest: int | None = None, padding: int = 0) -> NDArray[np.int64]:
        """(B, L) of the lists ``rows`` (B,), each cut to ``longest``, filled up with ``padding``; L is at least 1."""
        lengths = self.lengths[rows]
        if longest is not None:
            lengths = np.minimum(lengths, longest)
        places = np.arange(max(1, int(lengths.max(initial=0))))
        inside = places < lengths[:, None]
        flat = np.where(inside, self.offsets[rows][:, None] + places, 0)
        found = self.values[flat] if len(self.values) else np.zeros(flat.shape, dtype=np.int32)
        return np.where(inside, found, padding).astype(np.int64)

    def to_arrow(self) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))

    @staticmethod
    def of(lists: Iterable[Sequence[int] | NDArray[np.int32]]) -> "Lists":
        arrays = [np.asarray(one, dtype=np.int32) for one in lists]
        offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)]).astype(np.int64)
        return Lists(offsets, np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32))

    @staticmethod
    def from_arrow(column: pa.ChunkedArray) -> "Lists":
        lists = column.combine_chunks()
        lengths = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        return Lists(offsets, lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32))
