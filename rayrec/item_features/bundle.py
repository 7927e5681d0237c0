"""The bundle of a table of item features: see ``rayrec.bundle``; no weights, but ``items.parquet``.

One row an item, by rising hash of its name, so that a row is found by a binary search in mapped memory; raw values, as a request
or a raw file would write them: numbers float64, codes string, lists of codes list<string>; null = missing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field

from rayrec.bundle import Parts, write_bundle
from rayrec.data.log.hashing import hash_strings
from rayrec.data.log.schema import MAX_COLUMNS
from rayrec.item_features.pairs import ItemFeaturesError, PairFeature

KIND = "item_features"
ITEMS = "items.parquet"
MAX_CODE_CHARACTERS = 1_024
FLOAT32_LIMIT = float(np.finfo(np.float32).max)
Kind = Literal["number", "code", "codes"]
TYPES: Mapping[Kind, pa.DataType] = {"number": pa.float64(), "code": pa.string(), "codes": pa.list_(pa.string())}


@dataclass(frozen=True)
class ItemColumn:
    """kind: "number"; "code", a text that names a category; "codes", a list of them."""

    name: str
    kind: Kind
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class ItemSchema:
    """item: the column that names the items, a code. rows: items. columns: all, that one too. pairs: features that are made of
    a request's and an item's."""

    item: str
    rows: int
    columns: Annotated[tuple[ItemColumn, ...], Field(max_length=MAX_COLUMNS)]
    pairs: Annotated[tuple[PairFeature, ...], Field(max_length=MAX_COLUMNS)] = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Raises ItemFeaturesError when it contradicts itself."""
        names = Counter([*(column.name for column in self.columns), *(pair.name for pair in self.pairs)])
        if repeated := sorted(name for name, times in names.items() if times > 1):
            raise ItemFeaturesError(f"columns used twice: {', '.join(repeated)}")
        if self.kinds.get(self.item) != "code":
            raise ItemFeaturesError(f"column {self.item!r} names the items and is no code")
        for pair in self.pairs:
            if self.kinds.get(pair.item) != "code":
                raise ItemFeaturesError(
                    f"feature {pair.name!r} is made of the items' {pair.item!r}, which is no code there"
                )

    @property
    def kinds(self) -> dict[str, Kind]:
        return {column.name: column.kind for column in self.columns}

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([(column.name, TYPES[column.kind]) for column in self.columns])


def write_item_features(
    folder: Path, raw: pa.Table, item: str, *, codes: frozenset[str] = frozenset(), pairs: tuple[PairFeature, ...] = (),
    run_config: Mapping[str, Any], overwrite: bool = False,
) -> ItemSchema:  # fmt: skip
    """Write the bundle of a table with one row an item. codes: columns of whole numbers that name categories.

    Raises ItemFeaturesError for a column of no kind, an item that is missing or has two rows, or a value out of bounds.
    """
    if item not in raw.column_names:
        raise ItemFeaturesError(f"column {item!r} names the items and is absent ({', '.join(raw.column_names[:50])})")
    columns = {name: _read(name, raw.column(name), as_code=name in codes or name == item) for name in raw.column_names}
    names = columns[item][1]
    nameless = pc.index(pc.fill_null(pc.equal(names, ""), True), True).as_py()
    if nameless >= 0:
        raise ItemFeaturesError(f"column {item!r}: row {nameless + 1} names no item")
    hashes = hash_strings(names)
    order = np.argsort(hashes, kind="stable")
    table = pa.table({name: values for name, (_, values) in columns.items()}).take(pa.array(order))
    schema = ItemSchema(item, len(table), tuple(ItemColumn(name, kind) for name, (kind, _) in columns.items()), pairs)
    check_values(table, schema)
    check_distinct(hashes[order], table.column(item))
    write_bundle(
        folder,
        Parts(KIND, None, schema, {}, {ITEMS: lambda file: pq.write_table(table, file, compression="zstd")}),
        metrics={},
        run_config=run_config,
        overwrite=overwrite,
    )
    return schema


def check_values(table: pa.Table, schema: ItemSchema) -> None:
    """Raises ItemFeaturesError for numbers that are not finite and codes that are too long."""
    for column in schema.columns:
        values = table.column(column.name)
        if column.kind == "number":
            wrong = pc.invert(pc.less_equal(pc.abs(values), FLOAT32_LIMIT))  # NaN too
            what = "a number within float32"
        else:
            flat = pc.list_flatten(values) if column.kind == "codes" else values
            if (longest := pc.max(pc.utf8_length(flat)).as_py() or 0) <= MAX_CODE_CHARACTERS:
                continue
            raise ItemFeaturesError(
                f"column {column.name!r}: a code of {longest:,} characters; {MAX_CODE_CHARACTERS:,} are allowed"
            )
        if pc.any(wrong).as_py():
            at = wrong.to_pylist().index(True)
            raise ItemFeaturesError(
                f"column {column.name!r}, item {table.column(schema.item)[at].as_py()!r}: {values[at].as_py()} is not {what}"
            )


def check_distinct(hashes: np.ndarray[Any, np.dtype[np.uint64]], names: pa.ChunkedArray) -> None:
    """Raises ItemFeaturesError unless the hashes rise and no name is there twice. Two names of one hash stand side by side."""
    if (hashes[1:] < hashes[:-1]).any():
        raise ItemFeaturesError("the rows are not in the order of the items' hashes")
    for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
        if names[at] == names[at + 1]:
            raise ItemFeaturesError(f"item {names[at].as_py()!r} has two rows")
        raise ItemFeaturesError(
            f"items {names[at].as_py()!r} and {names[at + 1].as_py()!r} have one hash: rename one of them"
        )


def _read(name: str, values: pa.ChunkedArray, *, as_code: bool) -> tuple[Kind, pa.Array]:
    """A raw column's kind and its values in the type of that kind."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind: Kind
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        kind, fits = "codes", _names_categories(values.type.value_type)
    elif as_code or _names_categories(values.type, whole_numbers=False):
        kind, fits = "code", _names_categories(values.type)
    else:
        kind, fits = "number", pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if not fits:
        raise ItemFeaturesError(f"column {name!r} is {values.type}: neither numbers nor codes nor lists of codes")
    found = values.combine_chunks().cast(TYPES[kind])
    if kind == "code":  # as raw files are read: blanks around a category are no part of it
        found = pc.utf8_trim_whitespace(found)
    return kind, found


def _names_categories(type_: pa.DataType, *, whole_numbers: bool = True) -> bool:
    text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_boolean(type_)
    return text or (whole_numbers and pa.types.is_integer(type_))
