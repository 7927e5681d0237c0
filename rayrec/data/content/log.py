"""A content log on disk and in memory.

<folder>/content.json          format, source, fields of an item's text, counts, notes
<folder>/items.parquet         row i is item i + 1: item (string), one string column a field
<folder>/users.parquet         user (string), history int32: the row of histories.parquet that the user has now, -1 for none
<folder>/histories.parquet     user int32, items list<int32>: newest first, where there is an order
<folder>/impressions.parquet   split, history int32, candidates list<int32>, labels list<int32> (1 engaged, 0 not)
<folder>/user_texts/<version>/ about.json (who wrote it, of what) and texts.parquet: text (string), row u is of user u, or row r
                               of what histories.parquet holds in row r; "" for none

Items are numbered 1..N; 0 is padding. Impressions refer to histories and histories to items: no text is stored twice.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.content.lists import Lists
from rayrec.files import whole_folder, write_text_atomically
from rayrec.typed_json import ConfigError, from_json, to_json

FORMAT = 1
CONTENT_FILE = "content.json"
SPLITS = ("train", "valid", "test")
Before = Literal["impressions", "valid", "test", "end"]
_ROW_GROUP = 65_536


class ContentError(ConfigError):
    """A content log that is incomplete, contradicts itself, or is of another format."""


@dataclass(frozen=True)
class TextField:
    """A part of an item's text. name: its column. label: what stands before it, as in "News Title: ...". max_tokens: its cap."""

    name: str
    label: str
    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"field {self.name!r}: max_tokens must be at least 1, not {self.max_tokens}")


@dataclass(frozen=True)
class ItemTexts:
    """names: (N,) strings. texts: by field (N,) strings, "" where there is none. Row i is item i + 1."""

    names: pa.Array
    fields: tuple[TextField, ...]
    texts: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of fields, names and texts in their order."""
        digest = hashlib.sha256(json.dumps([asdict(one) for one in self.fields]).encode())
        for column in (self.names, *(self.texts[one.name] for one in self.fields)):
            for text in column.to_pylist():
                digest.update(text.encode())
                digest.update(b"\0")
        return digest.hexdigest()[:16]

    @staticmethod
    def of(names: Sequence[str], fields: Sequence[TextField], texts: Mapping[str, Sequence[str]]) -> "ItemTexts":
        columns = {one.name: pa.array([t or "" for t in texts[one.name]], pa.string()) for one in fields}
        return ItemTexts(pa.array(list(names), pa.string()), tuple(fields), columns)


@dataclass(frozen=True)
class Impressions:
    """split: (R,) strings. history: (R,) row of the histories. candidates, labels: R lists that fit each other."""

    split: NDArray[np.str_]
    history: NDArray[np.int64]
    candidates: Lists
    labels: Lists

    def __len__(self) -> int:
        return len(self.history)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of one split."""
        return np.flatnonzero(self.split == split)


@dataclass(frozen=True)
class UserTexts:
    """What was written about users. generator: who wrote it, as "an LLM (Mixtral-8x22B)" or "extractive".

    texts: (U,) strings, one a user; (R,) strings, one a history, when ``before`` is "impressions".
    notes: what one must know to judge it, e.g. from which part of the data it was written.
    before: up to when it was written. "impressions": each from the contents of one history alone, so that it knows of an
    impression no more than the history that is read with it. "valid", "test": from what came before that part. "end": from all.
    None: not known.
    """

    generator: str
    texts: pa.Array
    notes: str = ""
    before: Before | None = None


@dataclass(frozen=True)
class ContentLog:
    """users: (U,) names. current: (U,) the row of ``histories`` that is a user's now, -1 for none. owners: (R,) users."""

    items: ItemTexts
    users: pa.Array
    current: NDArray[np.int64]
    owners: NDArray[np.int64]
    histories: Lists
    impressions: Impressions
    user_texts: Mapping[str, UserTexts] = field(default_factory=dict)
    source: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        users, items, rows = len(self.users), len(self.items), len(self.histories)
        shown = self.impressions
        _within("users.parquet: history", self.current, -1, rows - 1)
        _within("histories.parquet: user", self.owners, 0, users - 1)
        _within("histories.parquet: items", self.histories.values, 1, items)
        _within("impressions.parquet: history", shown.history, 0, rows - 1)
        _within("impressions.parquet: candidates", shown.candidates.values, 1, items)
        _within("impressions.parquet: labels", shown.labels.values, 0, 1)
        if not np.array_equal(shown.candidates.offsets, shown.labels.offsets):
            row = int((shown.candidates.lengths != shown.labels.lengths).argmax())
            raise ContentError(
                f"impressions.parquet: row {row} has {shown.candidates.lengths[row]} candidates and "
                f"{shown.labels.lengths[row]} labels; expected as many"
            )
        unknown = sorted(set(shown.split.tolist()) - set(SPLITS))
        if unknown:
            raise ContentError(f"impressions.parquet: split must be one of {', '.join(SPLITS)}, found {unknown[0]!r}")
        for version, texts in self.user_texts.items():
            wanted, of = (rows, "histories") if texts.before == "impressions" else (users, "users")
            if len(texts.texts) != wanted:
                raise ContentError(f"user_texts/{version}: {len(texts.texts):,} texts for {wanted:,} {of}")

    def histories_before(self, split: str) -> NDArray[np.int64]:
        """(U,) row of ``histories`` that each user had at its first impression of ``split``, in the table's order.

        -1 for a user without one: what is written from these histories knows nothing of that split.
        """
        rows = np.full(len(self.users), -1, dtype=np.int64)
        found = self.impressions.history[self.impressions.rows(split)][::-1]
        rows[self.owners[found]] = found  # the last assignment, the first impression, stays
        return rows

    def text_rows(self, version: str, histories: NDArray[np.int64]) -> NDArray[np.int64]:
        """(H,) the row of a version's text that is read with each of ``histories`` (H,); -1 stays -1, no history."""
        if self.user_texts[version].before == "impressions":
            return histories
        return np.where(histories < 0, -1, self.owners[histories])

    def current_text_rows(self, version: str) -> NDArray[np.int64]:
        """(U,) the row of a version's text that is each user's now; -1 for none."""
        of_histories = self.user_texts[version].before == "impressions"
        return self.current if of_histories else np.arange(len(self.users))

    def refuse_texts_that_know(self, split: str, version: str) -> None:
        """Raises ContentError when a version's texts were written from what the impressions of ``split`` ask for."""
        before = self.user_texts[version].before
        if before == "end" or (before in SPLITS and SPLITS.index(split) < SPLITS.index(before)):
            raise ContentError(
                f"user texts {version!r} were written from all that came before the {before}: they know the answers of "
                f"{split} impressions; read texts of jobs.summarize_users --before impressions"
            )

    def with_texts(self, version: str, texts: UserTexts) -> "ContentLog":
        return ContentLog(
            self.items, self.users, self.current, self.owners, self.histories, self.impressions,
            {**self.user_texts, version: texts}, self.source, self.notes,
        )  # fmt: skip


@dataclass(frozen=True)
class _Summary:
    source: str
    fields: tuple[TextField, ...]
    items: int
    users: int
    histories: int
    impressions: int
    notes: Mapping[str, Any]
    format: int = FORMAT


@dataclass(frozen=True)
class _About:
    """texts: how many; called users before there were texts of histories."""

    generator: str
    notes: str
    users: int
    before: Before | None = None


def write_content(folder: Path | str, log: ContentLog, *, overwrite: bool = False) -> Path:
    """Write a log, whole or not at all. Raises ContentError when ``folder`` exists and ``overwrite`` is false, or is anything but
    a content log."""
    folder, shown = Path(folder), log.impressions
    tables = {
        "items": {"item": log.items.names, **{one.name: log.items.texts[one.name] for one in log.items.fields}},
        "users": {"user": log.users, "history": pa.array(log.current.astype(np.int32))},
        "histories": {"user": pa.array(log.owners.astype(np.int32)), "items": log.histories.to_arrow()},
        "impressions": {
            "split": pa.array(shown.split.tolist(), pa.string()), "history": pa.array(shown.history.astype(np.int32)),
            "candidates": shown.candidates.to_arrow(), "labels": shown.labels.to_arrow(),
        },
    }  # fmt: skip
    with whole_folder(folder, CONTENT_FILE, overwrite=overwrite, error=ContentError) as partial:
        for name, columns in tables.items():
            table = pa.table(columns)
            pq.write_table(table, partial / f"{name}.parquet", compression="zstd", row_group_size=_ROW_GROUP)
        for version, texts in log.user_texts.items():
            add_user_texts(partial, version, texts)
        summary = _Summary(
            log.source, log.items.fields, len(log.items), len(log.users), len(log.histories), len(shown), log.notes
        )
        write_text_atomically(partial / CONTENT_FILE, to_json(summary))
    return folder


def add_user_texts(folder: Path, version: str, texts: UserTexts) -> Path:
    """A further version of texts beside those that a log has. Raises ContentError for a name that is no plain word, or taken."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", version) or version.startswith("."):
        raise ContentError(f"version {version!r}: expected letters, digits, '_', '-' and '.', at most 60")
    place = folder / "user_texts" / version
    with whole_folder(place, overwrite=False, error=ContentError) as partial:
        pq.write_table(pa.table({"text": texts.texts}), partial / "texts.parquet", compression="zstd")
        about = _About(texts.generator, texts.notes, len(texts.texts), texts.before)
        write_text_atomically(partial / "about.json", to_json(about))
    return place


def read_content(folder: Path | str) -> ContentLog:
    """Read and check a log. Raises ContentError that names the file and what is wrong with it."""
    folder = Path(folder)
    if not (folder / CONTENT_FILE).is_file():
        raise ContentError(f"{folder / CONTENT_FILE}: no such file; is {folder} a log of jobs.import_content?")
    summary = from_json(_Summary, (folder / CONTENT_FILE).read_bytes(), str(folder / CONTENT_FILE))
    if summary.format != FORMAT:
        raise ContentError(f"{folder / CONTENT_FILE}: format {summary.format}, expected {FORMAT}")
    lists = pa.list_(pa.int32())
    items = _table(folder, "items", {"item": pa.string(), **{one.name: pa.string() for one in summary.fields}})
    users = _table(folder, "users", {"user": pa.string(), "history": pa.int32()})
    histories = _table(folder, "histories", {"user": pa.int32(), "items": lists})
    columns = {"split": pa.string(), "history": pa.int32(), "candidates": lists, "labels": lists}
    shown = _table(folder, "impressions", columns)
    try:
        return ContentLog(
            ItemTexts(
                items["item"].combine_chunks(), summary.fields,
                {one.name: items[one.name].combine_chunks() for one in summary.fields},
            ),
            users["user"].combine_chunks(),
            users["history"].to_numpy().astype(np.int64),
            histories["user"].to_numpy().astype(np.int64),
            Lists.from_arrow(histories["items"]),
            Impressions(
                np.asarray(shown["split"].to_pylist(), dtype=np.str_), shown["history"].to_numpy().astype(np.int64),
                Lists.from_arrow(shown["candidates"]), Lists.from_arrow(shown["labels"]),
            ),
            _read_texts(folder), summary.source, summary.notes,
        )  # fmt: skip
    except ContentError as error:
        raise ContentError(f"{folder}: {error}") from None


def _read_texts(folder: Path) -> dict[str, UserTexts]:
    found = {}
    for place in sorted((folder / "user_texts").glob("[!.]*")):
        file = place / "about.json"
        if not file.is_file():
            raise ContentError(f"{file}: no such file")
        about = from_json(_About, file.read_bytes(), str(file))
        texts = _table(place, "texts", {"text": pa.string()})["text"].combine_chunks()
        found[place.name] = UserTexts(about.generator, texts, about.notes, about.before)
    return found


def _table(folder: Path, name: str, wanted: Mapping[str, pa.DataType]) -> pa.Table:
    file = folder / f"{name}.parquet"
    if not file.is_file():
        raise ContentError(f"{file}: no such file")
    try:
        table = pq.read_table(file, memory_map=True)
    except pa.ArrowInvalid as error:
        raise ContentError(f"{file}: {error}") from None
    for column, kind in wanted.items():
        if column not in table.column_names:
            raise ContentError(f"{file}: column {column!r} is missing; found {', '.join(table.column_names)}")
        found = table.schema.field(column).type
        same_list = pa.types.is_list(kind) and pa.types.is_list(found) and found.value_type == kind.value_type
        if found != kind and not same_list:
            raise ContentError(f"{file}: column {column!r} is {found}, expected {kind}")
        if table.column(column).null_count:
            raise ContentError(f"{file}: column {column!r} holds nulls, expected none")
    return table


def _within(where: str, values: "NDArray[Any]", least: int, most: int) -> None:
    if len(values) and (values.min() < least or values.max() > most):
        row = int(((values < least) | (values > most)).argmax())
        raise ContentError(f"{where} must lie in {least}..{most}, found {values[row]} (entry {row})")
