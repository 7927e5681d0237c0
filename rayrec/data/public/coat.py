"""Coat shopping (Schnabel et al., "Recommendations as Treatments", ICML 2016): ratings with a known selection bias.

Training and validation rows are the ratings users gave to coats they chose themselves; test rows are ratings of coats shown to
them at random. The task ``liked`` is a rating of 4 or 5; rating and the published propensity of being rated are extras. The
unlabeled rows are all pairs of a user and a coat.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayrec.data.importing.checking import RawSource
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import RawChunk, SourceError, find_files, require_file
from rayrec.data.log.schema import CategoricalFeature, LogSchema, TaskLabel
from rayrec.data.log.splitting import FileSplit, Split

USERS, ITEMS = 290, 300
_USER = ("gender", "age", "location", "fashioninterest")
_ITEM = ("gender", "jackettype", "color", "onfrontpage")
_LIKED = 4


def _open_source(source: Path) -> RawSource:
    coat = Coat(source)

    def chunks() -> Iterator[RawChunk]:
        yield coat.rated("train.ascii", "train")
        yield coat.rated("test.ascii", "test")

    return RawSource("coat", chunks)


def _open_unlabeled(source: Path) -> RawSource:
    coat = Coat(source)
    return RawSource("coat", lambda: iter((coat.pairs(),)), unlabeled=True)


class Coat:
    """The matrices of one folder: (users, items) ratings and propensities, one-hot features by name."""

    def __init__(self, folder: Path) -> None:
        if folder.is_file():
            raise SourceError(f"{folder}: expected the folder of train.ascii, test.ascii and the feature files")
        self._folder = folder
        self._users = self._categories("user", USERS, _USER)
        self._items = self._categories("item", ITEMS, _ITEM)
        self._propensities = self._matrix("propensities.ascii", USERS, ITEMS)

    def rated(self, file: str, split: Split) -> RawChunk:
        """The pairs that have a rating in ``file``."""
        ratings = self._matrix(file, USERS, ITEMS)
        user, item = np.nonzero(ratings)
        rating = ratings[user, item]
        table = self._pairs(user, item).append_column("rating", pa.array(rating))
        wrong = ~np.isin(rating, (1, 2, 3, 4, 5))
        liked = np.where(wrong, rating, rating >= _LIKED)  # a rating that is none becomes a label that is none
        return RawChunk(
            table.append_column("liked", pa.array(liked)), str(self._folder / file), user * ITEMS + item + 1, split
        )

    def pairs(self) -> RawChunk:
        """All pairs, without ratings."""
        user, item = (indices.ravel() for indices in np.indices((USERS, ITEMS)))
        table = self._pairs(user, item).append_column("rating", pa.nulls(len(user), pa.float64()))
        return RawChunk(table, str(self._folder), np.arange(1, len(user) + 1), "train")

    def _pairs(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> pa.Table:
        columns = {"user": pa.array(user), "item": pa.array(item)}
        columns |= {f"user_{name}": values.take(pa.array(user)) for name, values in self._users.items()}
        columns |= {f"item_{name}": values.take(pa.array(item)) for name, values in self._items.items()}
        return pa.table(columns | {"propensity": pa.array(self._propensities[user, item])})

    def _matrix(self, name: str, rows: int, columns: int) -> NDArray[np.float64]:
        path = find_files(self._folder, name)[0]
        require_file(path)
        try:
            matrix = np.loadtxt(path, ndmin=2)
        except ValueError as error:
            raise SourceError(f"{path}: {error}") from None
        if matrix.shape != (rows, columns):
            raise SourceError(f"{path}: {matrix.shape[0]} x {matrix.shape[1]} numbers, expected {rows} x {columns}")
        return matrix

    def _categories(self, what: str, rows: int, fields: tuple[str, ...]) -> dict[str, pa.Array]:
        """One-hot columns named ``field:value`` to one string column a field."""
        path = find_files(self._folder, f"{what}_features_map.txt")[0]
        names = path.read_text(encoding="utf-8").split("\n")
        names = [name.strip() for name in names if name.strip()]
        matrix = self._matrix(f"{what}_features.ascii", rows, len(names))
        columns = {}
        for field in fields:
            own = [i for i, name in enumerate(names) if name.startswith(f"{field}:")]
            if not own:
                raise SourceError(f"{path}: no value of {field!r}")
            values = np.array([names[i].partition(":")[2] for i in own])
            hot = matrix[:, own]
            columns[field] = pa.array(values[hot.argmax(axis=1)], mask=(hot == 1).sum(axis=1) != 1)
        return columns


COAT = PublicDataset(
    schema=LogSchema(
        name="coat",
        features=(
            CategoricalFeature("user", allow_missing=False),
            CategoricalFeature("item", allow_missing=False),
            *(CategoricalFeature(f"user_{name}") for name in _USER),
            *(CategoricalFeature(f"item_{name}") for name in _ITEM),
        ),
        tasks=(TaskLabel("liked"),),
        extras=("rating", "propensity"),
    ),
    folder="coat",
    split=FileSplit(),
    open_source=_open_source,
    open_unlabeled=_open_unlabeled,
    signal="few rows a value",
)
