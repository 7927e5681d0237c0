"""A loaded table of item features: rows by item, from memory that all processes of a machine share.

Parquet is for keeping and sending. Its columns are written once a machine as Arrow's own uncompressed format and mapped: a
replica then needs no memory of its own for them, and a row of a million items costs what one of a thousand costs.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.bundle import CONFIG, BundleError, BundleMetadata, read_metadata
from rayrec.data.log.encoding import spelled
from rayrec.data.log.hashing import hash_strings
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature
from rayrec.files import make_folder, whole_file
from rayrec.item_features.bundle import (
    ITEMS,
    KIND,
    ItemSchema,
    Kind,
    check_distinct,
    check_values,
)
from rayrec.item_features.pairs import ItemFeaturesError
from rayrec.typed_json import ConfigError, from_plain

_MOST_BYTES = 64 * 2**30
_HASH = "hash of the item"  # of the mapped file; it cannot be a column's name twice, which ``_map`` checks
_TITLE_CODES = 3
_WRITING = "writing.lock"
_PAIR_KINDS: Mapping[str, Kind] = {"joined": "code", "share": "number"}


class ItemTable:
    """Immutable; may be shared by threads. metadata: of its bundle."""

    def __init__(self, table: pa.Table, schema: ItemSchema, metadata: BundleMetadata) -> None:
        self.schema, self.metadata = schema, metadata
        self._table = table.drop_columns([_HASH])
        self._hashes: NDArray[np.uint64] = table.column(_HASH).to_numpy()  # of one chunk: a view
        self._names = self._table.column(schema.item)
        self._titles = self._table.column("title") if schema.kinds.get("title") == "code" else None

    def __len__(self) -> int:
        return len(self._table)

    def rows(self, items: Sequence[str]) -> NDArray[np.int64]:
        """(n,) the row of each item, -1 where it has none."""
        names = pa.array(items, pa.string())
        hashes = hash_strings(names)
        found = self._hashes.searchsorted(hashes).clip(max=max(len(self) - 1, 0))
        if not len(self):
            return np.full(len(items), -1)
        there = self._hashes[found] == hashes
        same = pc.equal(self._names.take(pa.array(found)), names).to_numpy(zero_copy_only=False)
        return np.where(there & same, found, -1)

    def columns(self, rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, list[Any]]:
        """Values of these columns by name, one a row; None = missing."""
        taken = self._table.select(list(names)).take(pa.array(rows))
        return {name: taken.column(name).to_pylist() for name in names}

    @property
    def digest(self) -> str:
        """Of its content: equal ones have equal rows."""
        return self.metadata.sha256[ITEMS][:32]

    def block(self, start: int, rows: int) -> pa.Table:
        """So many rows from ``start`` on, all columns."""
        return self._table.slice(start, rows)

    def matching(self, rows: NDArray[np.int64], where: Mapping[str, Any]) -> NDArray[np.bool_]:
        """(n,) whether each row has, in every column that ``where`` names, the value or one of the values that it gives.

        Of lists of codes one code is enough; a missing value matches nothing.
        """
        found = np.ones(len(rows), np.bool_)
        for name, given in where.items():
            values = self._table.column(name).take(pa.array(rows))
            wanted = given if isinstance(given, list) else [given]
            found &= _matches(values, wanted, self.schema.kinds[name])
        return found

    def search(self, text: str, most: int) -> list[tuple[str, str]]:
        """Names and titles of the first items whose name or title holds ``text``, whatever its case. It looks at every item."""
        hits = pc.match_substring(self._names, text, ignore_case=True)
        if self._titles is not None:
            hits = pc.or_(hits, pc.fill_null(pc.match_substring(self._titles, text, ignore_case=True), False))
        rows = np.flatnonzero(hits.to_numpy())[:most]
        return list(zip(self._names.take(pa.array(rows)).to_pylist(), self.titles(rows), strict=True))

    def titles(self, rows: NDArray[np.int64]) -> list[str]:
        """For people, one a row: the column "title" where there is one, else the codes of the item; "" for row -1."""
        there = rows >= 0
        chosen = pa.array(rows[there])
        if self._titles is not None:
            found = [title or "" for title in self._titles.take(chosen).to_pylist()]
        else:
            codes = [name for name, kind in self.schema.kinds.items() if kind == "code" and name != self.schema.item]
            parts = [self._table.column(name).take(chosen).to_pylist() for name in codes[:_TITLE_CODES]]
            found = [", ".join(filter(None, values)) for values in zip(*parts, strict=True)] or [""] * len(chosen)
        given = iter(found)
        return [next(given) if one else "" for one in there.tolist()]

    def check(self, reader: LogSchema, who: str) -> None:
        """Raises ItemFeaturesError when a column is of another type than ``reader``'s feature of its name, or misses values that
        this may not miss."""
        pairs = {pair.name: pair.kind for pair in self.schema.pairs}
        for feature in reader.features:
            kind = self.schema.kinds.get(feature.name) or _PAIR_KINDS.get(pairs.get(feature.name, ""))
            if kind is None:
                continue
            wanted: Kind = "number" if isinstance(feature, DenseFeature) else "code"
            if isinstance(feature, SequenceFeature):
                wanted = "codes"
            if kind != wanted:
                raise ItemFeaturesError(
                    f"column {feature.name!r} of the items is of the kind {kind!r}, {who} reads {wanted!r}"
                )
            if (
                isinstance(feature, DenseFeature | CategoricalFeature)
                and not feature.allow_missing
                and feature.name not in pairs
            ):
                missing = self._missing(feature)
                if pc.any(missing).as_py():
                    item = self._names[missing.to_pylist().index(True)].as_py()
                    raise ItemFeaturesError(f"column {feature.name!r} misses a value of item {item!r}, {who} needs it")

    def _missing(self, feature: DenseFeature | CategoricalFeature) -> pa.ChunkedArray:
        values = self._table.column(feature.name)
        if isinstance(feature, DenseFeature):
            return values.is_null()
        return pc.or_(values.is_null(), pc.is_in(values, value_set=pa.array(feature.missing_spellings, pa.string())))


def load_item_features(folder: Path | str, mapped: Path) -> ItemTable:
    """Read and check a bundle. mapped: folder of the files that processes of this machine map, made where it is not there.

    Raises BundleError or ItemFeaturesError that says what is wrong, DiskError when the mapped file cannot be written.
    """
    folder = Path(folder)
    metadata = read_metadata(folder, KIND, (ITEMS,), weights=False, most_bytes=_MOST_BYTES)
    try:
        schema = from_plain(ItemSchema, dict(metadata.model_config), f"{folder / CONFIG}: model_config")
    except ConfigError as error:
        raise BundleError(str(error)) from None
    digest = metadata.sha256[ITEMS][:32]
    file = make_folder(mapped) / f"items-{digest}.arrow"
    with (mapped / _WRITING).open("a") as lock:  # one process writes, the others of the machine wait and map
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.is_file():
            _write_mapped(folder / ITEMS, schema, file)
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    if table.schema.names != [*schema.arrow.names, _HASH]:
        raise ItemFeaturesError(f"{folder / CONFIG}: does not name the columns of {ITEMS}")
    return ItemTable(table, schema, metadata)


def _write_mapped(parquet: Path, schema: ItemSchema, file: Path) -> None:
    try:
        found = pq.read_schema(parquet)
        wanted = schema.arrow
        if not found.equals(wanted):
            raise ItemFeaturesError(f"{parquet}: columns {_shown(found)} instead of {_shown(wanted)}")
        if _HASH in found.names:
            raise ItemFeaturesError(f"{parquet}: a column cannot be called {_HASH!r}")
        table = pq.read_table(parquet)
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{parquet}: not a readable Parquet file: {' '.join(str(error).split())}") from None
    if len(table) != schema.rows:
        raise ItemFeaturesError(f"{parquet}: {len(table):,} rows instead of {schema.rows:,}")
    names = table.column(schema.item).combine_chunks()
    if names.null_count:
        raise ItemFeaturesError(f"{parquet}: a row names no item")
    hashes = hash_strings(names)
    check_distinct(hashes, table.column(schema.item))
    check_values(table, schema)
    whole = table.append_column(_HASH, pa.array(hashes)).combine_chunks()
    with (
        whole_file(file) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, whole.schema) as writer,
    ):
        writer.write_table(whole, max_chunksize=max(len(whole), 1))


def _shown(schema: pa.Schema) -> str:
    return json.dumps({name: str(schema.field(name).type) for name in schema.names[:50]})


def _matches(values: pa.ChunkedArray, wanted: Sequence[Any], kind: Kind) -> NDArray[np.bool_]:
    if kind == "number":
        numbers = [float(v) for v in wanted if isinstance(v, int | float) and not isinstance(v, bool)]
        same: NDArray[np.bool_] = pc.is_in(values, value_set=pa.array(numbers, pa.float64())).to_numpy()
        return same
    whole = [value for value in wanted if not isinstance(value, float) or value.is_integer()]  # 1.5 names no category
    texts = pa.array([spelled(value, True) for value in whole], pa.string())
    if kind == "code":
        same = pc.is_in(values, value_set=texts).to_numpy()
        return same
    same = np.zeros(len(values), np.bool_)
    parents, codes = pc.list_parent_indices(values.combine_chunks()), pc.list_flatten(values).combine_chunks()
    same[parents.filter(pc.is_in(codes, value_set=texts)).to_numpy()] = True
    return same


def described(schema: ItemSchema) -> Mapping[str, Any]:
    """For people: its size and columns."""
    return {"item": schema.item, "items": schema.rows, "columns": schema.kinds}
