"""Own data as a content log: items, histories and impressions in Parquet, CSV or JSON lines (.parquet, .csv, .jsonl).

items         item, and a column for each part of its text
histories     user, items (newest first): what each user has now
impressions   split (train, valid or test), user, candidates, labels (1 engaged, 0 not); history (newest first) where it is
              another than the user's in histories

Lists are lists in Parquet and JSON lines, and words separated by blanks in CSV, where an empty cell is a list of nothing; a
column history that is empty in all rows counts as none. Users and items stay as they are written: 0007 is not 7.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.data.content import ContentError, ContentLog, ItemTexts, TextField
from rayrec.data.content.assembling import Assembly
from rayrec.data.importing.own_tables import read_own_table

_DEFAULT_CAP = 64


@dataclass(frozen=True)
class OwnTables:
    """How tables become impressions."""

    fields: tuple[str, ...] = ()
    """Columns of an item's text in their order, each as NAME or NAME=MAX_TOKENS; none named = all, 64 tokens each."""
    max_history: int = 60
    """Newest items kept."""

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError or SourceError that names the file, row, column and value that is wrong."""
        file, items = _table(source, "items", ("item",))
        names: list[str] = items["item"]
        numbers = {name: row + 1 for row, name in enumerate(names)}
        if len(numbers) != len(names):
            twice = next(name for row, name in enumerate(names) if numbers[name] != row + 1)
            raise ContentError(f"{file}: item {twice!r} stands there twice")
        fields = self._fields(file, items)
        texts = {one.name: ["" if text is None else str(text) for text in items[one.name]] for one in fields}
        seen = Assembly(self.max_history)
        file, histories = _table(source, "histories", ("user", "items"))
        own: dict[str, list[int]] = {}
        for row, (user, read) in enumerate(zip(histories["user"], histories["items"], strict=True)):
            own[user] = _numbers(file, row, "items", read, numbers)
        file, shown = _table(source, "impressions", ("split", "user", "candidates", "labels"))
        given = shown.get("history", [None] * len(shown["user"]))
        rows = zip(shown["split"], shown["user"], given, shown["candidates"], shown["labels"], strict=True)
        for row, (split, user, history, candidates, labels) in enumerate(rows):
            read = own.get(user, []) if history is None else _numbers(file, row, "history", history, numbers)
            found, marks = _numbers(file, row, "candidates", candidates, numbers), [str(one) for one in _words(labels)]
            if len(found) != len(marks) or not set(marks) <= {"0", "1"}:
                raise ContentError(
                    f"{file}, row {row + 1}: labels {labels!r}; expected 0 or 1 for each of {len(found)} candidates"
                )
            if split not in ("train", "valid", "test"):
                raise ContentError(f"{file}, row {row + 1}: split {split!r}; expected train, valid or test")
            seen.impression(split, seen.history(user, read), found, [int(one) for one in marks])
        for user, read in own.items():
            seen.history(user, read)
        return seen.log(ItemTexts.of(names, fields, texts), "own tables", {})

    def _fields(self, file: Path, items: dict[str, list[Any]]) -> tuple[TextField, ...]:
        fields = []
        for one in self.fields or [name for name in items if name != "item"]:
            name, equals, cap = one.partition("=")
            if name not in items or name == "item":
                raise ContentError(f"{file}: column {name!r} is missing; found {', '.join(items)}")
            if equals and not cap.isdecimal():
                raise ContentError(f"fields: {one!r}; expected NAME or NAME=MAX_TOKENS")
            fields.append(TextField(name, name.replace("_", " ").title(), int(cap) if cap else _DEFAULT_CAP))
        if not fields:
            raise ContentError(f"{file}: no column of text beside item")
        return tuple(fields)


def _table(source: Path, name: str, columns: Sequence[str]) -> tuple[Path, dict[str, list[Any]]]:
    """The file and its columns; users and items as names."""
    files = [file for suffix in (".parquet", ".csv", ".jsonl") if (file := source / f"{name}{suffix}").is_file()]
    if len(files) != 1:
        found = "none" if not files else " and ".join(file.name for file in files)
        raise ContentError(f"{source}: expected one of {name}.parquet, {name}.csv and {name}.jsonl, found {found}")
    (file,) = files
    if file.suffix == ".jsonl":
        values = _json_lines(file, columns)
    else:
        table = read_own_table(file, columns, others=True)
        values = {column: table.columns.column(column).to_pylist() for column in table.columns.column_names}
        values |= {column: table.names(column) for column in columns if column in ("user", "item")}
    if file.suffix == ".csv":
        for column in {"items", "history"} & values.keys():
            if column in columns or any(values[column]):
                values[column] = [words or "" for words in values[column]]
    for column in columns:
        empty = "" if column in ("user", "item") else None
        if empty in values[column]:
            row = values[column].index(empty) + 1
            raise ContentError(f"{file}: column {column!r}, row {row:,} holds nothing, expected a value")
    return file, values


def _json_lines(file: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The values of all fields, None where a line lacks one. Read one by one: Arrow takes a text like 2001-02-03 for a time."""
    rows: list[dict[str, Any]] = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise ValueError("no object")
    except ValueError as error:
        raise ContentError(f"{file}, row {len(rows) + 1}: expected a JSON object a line: {error}") from None
    found = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for column in columns:
        if column not in found:
            raise ContentError(f"{file}: column {column!r} is missing; found {', '.join(found)}")
        if column in ("user", "item"):
            found[column] = ["" if value is None else str(value).strip() for value in found[column]]
    return found


def _words(value: Any) -> list[Any]:
    """A list, or the words of a text."""
    return value if isinstance(value, list) else str(value).split()


def _numbers(file: Path, row: int, column: str, value: Any, numbers: dict[str, int]) -> list[int]:
    words = [str(one) for one in _words(value)]
    unknown = next((one for one in words if one not in numbers), None)
    if unknown is not None:
        raise ContentError(f"{file}, row {row + 1}: {column} holds {unknown!r}, which is no item")
    return [numbers[one] for one in words]
