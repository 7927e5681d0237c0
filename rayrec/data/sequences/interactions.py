"""User histories and items on disk and in memory.

<folder>/sequences.json    format version, source, counts
<folder>/users.parquet     one row a user: user (string), items list<int32> in time order, timestamps list<int64> (optional)
<folder>/items.parquet     row i is item i + 1: item (string), text (string, may be empty), attributes list<int32>,
                           and, where the importer knows them, title (string) and labels list<string> (the attributes in words)

Items are numbered 1..N; 0 is padding. In memory a history set is three flat arrays (offsets, items, timestamps): 4 bytes an
interaction, 12 with timestamps; 100 million interactions take 0.4 or 1.2 GB.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.files import whole_folder, write_text_atomically
from rayrec.typed_json import ConfigError

FORMAT = 1
SEQUENCES_FILE = "sequences.json"
_ROW_GROUP = 65_536
_ITEM_COLUMNS = ("item", "text", "attributes", "title", "labels")


class InteractionsError(ConfigError):
    """Histories or items that are incomplete, contradict each other, or are of another format."""


@dataclass(frozen=True)
class Interactions:
    """Histories of U users over N items, each in time order.

    offsets: (U + 1,) int64; user u's items are items[offsets[u]:offsets[u + 1]].
    items: (I,) int32 in 1..num_items. timestamps: (I,) int64, non-decreasing within a user, or None.
    Raises InteractionsError when these do not fit each other.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    num_items: int
    timestamps: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != len(self.items):
            raise InteractionsError(f"offsets must run from 0 to {len(self.items):,}, the number of interactions")
        if (np.diff(self.offsets) < 0).any():
            raise InteractionsError("offsets must not fall")
        if len(self.items) and not (self.items.min() >= 1 and self.items.max() <= self.num_items):
            raise InteractionsError(
                f"items must lie in 1..{self.num_items}, found {self.items.min()}..{self.items.max()}"
            )
        if self.timestamps is not None:
            if len(self.timestamps) != len(self.items):
                raise InteractionsError(f"{len(self.timestamps):,} timestamps for {len(self.items):,} interactions")
            falls = np.diff(self.timestamps) < 0
            falls[self.offsets[1:-1][(self.offsets[1:-1] > 0) & (self.offsets[1:-1] < len(self.items))] - 1] = False
            if falls.any():
                user = int(np.searchsorted(self.offsets, int(falls.argmax()), side="right")) - 1
                raise InteractionsError(f"the history of user row {user} is not in time order")

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(U,) number of items of each user."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class ItemTable:
    """What is known of N items beside who bought them: row i describes item i + 1.

    names: (N,) strings. texts: (N,) strings, empty where there is none. attributes: list<int32> (N,) of ids from 1.
    titles: (N,) strings, empty where not known. labels: list<string> (N,), the attributes in words ("brand: Kreg").
    """

    names: pa.Array
    texts: pa.Array
    attributes: pa.Array
    titles: pa.Array
    labels: pa.Array

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_text(self) -> bool:
        return bool((np.asarray(pa.compute.utf8_length(self.texts)) > 0).any())

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of names, texts and attributes in their order, for what goes by item number."""
        digest = hashlib.sha256()
        for column in (self.names, self.texts):
            lengths = pa.compute.binary_length(column).to_numpy(zero_copy_only=False)
            digest.update(np.ascontiguousarray(lengths, dtype=np.int64).tobytes())
            digest.update("".join(column.to_pylist()).encode())
        counts = pa.compute.list_value_length(self.attributes).to_numpy(zero_copy_only=False)
        for numbers in (counts, self.attributes.flatten().to_numpy(zero_copy_only=False)):
            digest.update(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def of(
        names: "pa.Array | list[str]",
        texts: "pa.Array | list[str] | None" = None,
        attributes: "pa.Array | list[list[int]] | None" = None,
        titles: "pa.Array | list[str] | None" = None,
        labels: "pa.Array | list[list[str]] | None" = None,
    ) -> "ItemTable":
        """From lists; absent ones but names are empty. Raises InteractionsError when lengths differ."""
        count = len(names)
        columns = {
            "names": _as_array(names, pa.string()),
            "texts": _as_array([""] * count if texts is None else texts, pa.string()),
            "attributes": _as_array([[]] * count if attributes is None else attributes, pa.list_(pa.int32())),
            "titles": _as_array([""] * count if titles is None else titles, pa.string()),
            "labels": _as_array([[]] * count if labels is None else labels, pa.list_(pa.string())),
        }
        for name, column in columns.items():
            if len(column) != count:
                raise InteractionsError(f"{len(column):,} {name} for {count:,} items")
            if column.null_count:
                raise InteractionsError(f"{name} holds {column.null_count:,} nulls, expected none")
        return ItemTable(**columns)


@dataclass(frozen=True)
class SequenceData:
    """A whole data set: histories, items, and the users' names (U,)."""

    interactions: Interactions
    items: ItemTable
    users: pa.Array
    source: str = ""
    notes: dict[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.items) != self.interactions.num_items:
            raise InteractionsError(
                f"{len(self.items):,} item rows for interactions over {self.interactions.num_items:,}"
            )
        if len(self.users) != self.interactions.num_users:
            raise InteractionsError(f"{len(self.users):,} user names for {self.interactions.num_users:,} users")


def write_sequences(folder: Path | str, data: SequenceData, *, overwrite: bool = False) -> Path:
    """Write a data set, whole or not at all. Raises InteractionsError when ``folder`` exists and ``overwrite`` is false, or is
    anything but a data set."""
    folder, interactions = Path(folder), data.interactions
    with whole_folder(folder, SEQUENCES_FILE, overwrite=overwrite, error=InteractionsError) as partial:
        columns = {"user": data.users, "items": _lists(interactions.offsets, interactions.items)}
        if interactions.timestamps is not None:
            columns["timestamps"] = _lists(interactions.offsets, interactions.timestamps)
        pq.write_table(pa.table(columns), partial / "users.parquet", compression="zstd", row_group_size=_ROW_GROUP)
        table = data.items
        items = {"item": table.names, "text": table.texts, "attributes": table.attributes}
        items |= {"title": table.titles, "labels": table.labels}
        pq.write_table(pa.table(items), partial / "items.parquet", compression="zstd", row_group_size=_ROW_GROUP)
        summary = {
            "format": FORMAT,
            "source": data.source,
            "users": interactions.num_users,
            "items": interactions.num_items,
            "interactions": len(interactions.items),
            "notes": data.notes,
        }
        write_text_atomically(partial / SEQUENCES_FILE, json.dumps(summary, indent=2))
    return folder


def read_sequences(folder: Path | str) -> SequenceData:
    """Read and check a data set. Raises InteractionsError that names the file and what is wrong with it."""
    folder = Path(folder)
    for name in (SEQUENCES_FILE, "users.parquet", "items.parquet"):
        if not (folder / name).is_file():
            raise InteractionsError(f"{folder / name}: no such file; is {folder} an imported sequence data set?")
    try:
        summary = json.loads((folder / SEQUENCES_FILE).read_text(encoding="utf-8"))
        users = pq.read_table(folder / "users.parquet", memory_map=True)
        items = pq.read_table(folder / "items.parquet", memory_map=True)
    except (json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise InteractionsError(f"{folder}: {error}") from None
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise InteractionsError(f"{folder / SEQUENCES_FILE}: not of format {FORMAT}")
    _check_columns(folder / "users.parquet", users, {"user": pa.string(), "items": pa.list_(pa.int32())})
    wanted = {"item": pa.string(), "text": pa.string(), "attributes": pa.list_(pa.int32())}
    later = {"title": pa.string(), "labels": pa.list_(pa.string())}  # folders of before have neither
    wanted |= {name: kind for name, kind in later.items() if name in items.column_names}
    _check_columns(folder / "items.parquet", items, wanted)
    try:
        offsets, flat = _flat(users.column("items"))
        timestamps = None
        if "timestamps" in users.column_names:
            _check_columns(folder / "users.parquet", users, {"timestamps": pa.list_(pa.int64())})
            ends, timestamps = _flat(users.column("timestamps"))
            if (other := np.flatnonzero(np.diff(ends) != np.diff(offsets))).size:
                raise InteractionsError(f"user row {other[0]} has another number of timestamps than of items")
        return SequenceData(
            Interactions(offsets, flat, items.num_rows, timestamps),
            ItemTable.of(*(items.column(name).combine_chunks() if name in wanted else None for name in _ITEM_COLUMNS)),
            users.column("user").combine_chunks(),
            str(summary.get("source", "")),
            dict(summary.get("notes", {})),
        )
    except InteractionsError as error:
        raise InteractionsError(f"{folder}: {error}") from None


def _as_array(values: "pa.Array | list[str] | list[list[int]] | list[list[str]]", kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _lists(offsets: NDArray[np.int64], values: NDArray[np.int32] | NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Offsets (U + 1,) and flat values of a list column."""
    lists = column.combine_chunks()
    lengths = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return offsets, lists.flatten().to_numpy(zero_copy_only=False)


def _check_columns(file: Path, table: pa.Table, wanted: dict[str, pa.DataType]) -> None:
    for name, kind in wanted.items():
        if name not in table.column_names:
            raise InteractionsError(f"{file}: column {name!r} is missing; found {', '.join(table.column_names)}")
        found = table.schema.field(name).type
        same_list = pa.types.is_list(kind) and pa.types.is_list(found) and found.value_type == kind.value_type
        if found != kind and not same_list:
            raise InteractionsError(f"{file}: column {name!r} is {found}, expected {kind}")
        if table.column(name).null_count:
            raise InteractionsError(f"{file}: column {name!r} holds nulls, expected none")
