"""The items' features of one request's candidates, read from the table when somebody asks for them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayrec.item_features import ItemTable


class ItemColumns(Mapping[str, Sequence[Any]]):
    """By name, one raw value a candidate; None where an item has no row or no value. A column is read when it is asked for."""

    def __init__(
        self, table: ItemTable, rows: NDArray[np.int64], known: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        """rows: (n,) of the table, -1 = none. known: further columns."""
        self._table, self._rows = table, rows
        self._known: dict[str, Sequence[Any]] = dict(known or {})
        self._names = (*table.schema.kinds, *(name for name in self._known if name not in table.schema.kinds))

    def beside(self, known: Mapping[str, Sequence[Any]]) -> "ItemColumns":
        """The same, and further columns."""
        return ItemColumns(self._table, self._rows, {**self._known, **known})

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._known:
            there = np.flatnonzero(self._rows >= 0)
            values: list[Any] = [None] * len(self._rows)
            for i, value in zip(there.tolist(), self._table.columns(self._rows[there], [name])[name], strict=True):
                values[i] = value
            self._known[name] = values
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
