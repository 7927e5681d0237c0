"""Preferences of users on disk.

<folder>/preferences.json      where they come from, counts
<folder>/preferences.parquet   one row a user and position: user (string), position (int32), preferences list<string>

``position``: they were made from what precedes that position of the user's history, and may serve the target at that position and
all later ones, never an earlier one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.importing.own_tables import read_own_table
from rayrec.data.sequences.interactions import SequenceData
from rayrec.files import whole_folder, write_text_atomically
from rayrec.text.asking import AnswerError
from rayrec.text.preferences import Names, checked
from rayrec.typed_json import ConfigError, from_json, to_json

Origin = Literal["llm", "extractive", "table"]
PREFERENCES_FILE = "preferences.json"
_SCHEMA = pa.schema([("user", pa.string()), ("position", pa.int32()), ("preferences", pa.list_(pa.string()))])


@dataclass(frozen=True)
class PreferenceRow:
    """Of one user, made from the first ``position`` items."""

    user: str
    position: int
    preferences: tuple[str, ...]


@dataclass(frozen=True)
class PreferenceRecord:
    """What ``preferences.json`` holds.

    origin: "llm" (a language model wrote them), "extractive" (phrases of the items' categories), "table" (the user's own).
    maker: model and prompt, or importer. rows: that are there. refused: that broke a rule, by the first words of what was wrong.
    """

    origin: Origin
    maker: str
    rows: int
    refused: dict[str, int] = field(default_factory=dict)
    format: int = 1


@dataclass(frozen=True)
class Preferences:
    """R rows, in the order of users and positions. users: (R,) rows of the sequences' users. positions: (R,). texts: R tuples."""

    record: PreferenceRecord
    users: NDArray[np.int64]
    positions: NDArray[np.int64]
    texts: tuple[tuple[str, ...], ...]

    def row_for(self, users: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(E,) the newest row that may serve each target (user, position); -1 where none was made yet."""
        width = int(max(self.positions.max(initial=0), positions.max(initial=0))) + 1
        keys = self.users * width + self.positions  # sorted
        found = np.searchsorted(keys, users * width + positions, side="right") - 1
        own = (found >= 0) & (self.users[np.maximum(found, 0)] == users) if len(keys) else np.zeros(len(users), bool)
        return np.where(own, found, -1)


def write_preferences(folder: Path, rows: Iterable[PreferenceRow], record: PreferenceRecord) -> Path:
    """Write, whole or not at all, replacing earlier preferences; the record's count is set here.

    Raises UserError for a folder of anything else.
    """
    with whole_folder(folder, PREFERENCES_FILE) as partial:
        count, writer = 0, pq.ParquetWriter(partial / "preferences.parquet", _SCHEMA, compression="zstd")
        with writer:
            batch: list[PreferenceRow] = []
            for row in rows:
                batch.append(row)
                if len(batch) == 65_536:
                    writer.write_table(_table(batch))
                    count, batch = count + len(batch), []
            writer.write_table(_table(batch))
            count += len(batch)
        found = PreferenceRecord(record.origin, record.maker, count, dict(record.refused))
        write_text_atomically(partial / PREFERENCES_FILE, to_json(found))
    return folder


def read_preferences(folder: Path, data: SequenceData) -> Preferences:
    """Of the users of ``data``. Raises ConfigError that names the file and the row that is wrong."""
    for name in (PREFERENCES_FILE, "preferences.parquet"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder / name}: no such file; make it with jobs.generate_preferences or jobs.import_preferences"
            )
    record = from_json(PreferenceRecord, (folder / PREFERENCES_FILE).read_bytes(), str(folder / PREFERENCES_FILE))
    file = folder / "preferences.parquet"
    try:
        table = pq.read_table(file, schema=_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ConfigError(f"{file}: {error}") from None
    users, positions, order = _placed(
        table.column("user").to_pylist(), table.column("position").to_pylist(), data, str(file)
    )
    texts = table.column("preferences").to_pylist()
    return Preferences(record, users[order], positions[order], tuple(tuple(texts[i]) for i in order))


def check_rows(rows: Sequence[PreferenceRow], data: SequenceData, where: str) -> None:
    """Raises ConfigError that names ``where`` and the row (from 1) that does not fit the sequences."""
    _placed([row.user for row in rows], [row.position for row in rows], data, where)


def _placed(
    names: list[str], positions: list[int], data: SequenceData, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(R,) each: rows of the sequences' users, positions, and the order of users and positions."""
    numbers = {name: row for row, name in enumerate(data.users.to_pylist())}
    lengths = data.interactions.lengths
    for row, (name, position) in enumerate(zip(names, positions, strict=True)):
        if name not in numbers:
            raise ConfigError(f"{where}, row {row + 1}: user {name!r} is not in the sequences")
        if not 0 <= position <= (length := lengths[numbers[name]]):
            raise ConfigError(f"{where}, row {row + 1}: position {position} of a history of {length} items")
    users, found = np.array([numbers[name] for name in names], np.int64), np.array(positions, np.int64)
    order = np.lexsort((found, users))
    twice = np.flatnonzero((np.diff(users[order]) == 0) & (np.diff(found[order]) == 0))
    if len(twice):
        first, second = sorted(order[twice[0] : twice[0] + 2].tolist())
        raise ConfigError(
            f"{where}, rows {first + 1} and {second + 1}: user {names[first]!r} has two rows for position {positions[first]}"
        )
    return users, found, order


@dataclass(frozen=True)
class PreferenceColumns:
    """Column names."""

    user: str = "user"
    """Name of the user's column."""
    position: str | None = None
    """None = made before the first item, good for every target (a standing wish)."""
    preferences: str = "preferences"
    """A list column (Parquet), or text with one preference a line."""


def read_preference_table(file: Path, columns: PreferenceColumns) -> list[PreferenceRow]:
    """The user's own, as Parquet or CSV. Raises SourceError naming file, column and row."""
    table = read_own_table(
        file, [name for name in (columns.user, columns.position, columns.preferences) if name is not None]
    )
    users = table.names(columns.user, needed=True)
    positions = [0] * len(table) if columns.position is None else table.counts(columns.position)
    table.require(columns.preferences)
    rows = []
    for row, given in enumerate(table.columns.column(columns.preferences).to_pylist()):
        texts = given.splitlines() if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise table.wrong(columns.preferences, row, f"holds {given!r:.80}, expected texts")
        rows.append(PreferenceRow(users[row], positions[row], tuple(text for text in texts if text.strip())))
    return rows


def obeying(
    rows: Iterable[PreferenceRow], names: Names, most: int | None
) -> tuple[list[PreferenceRow], dict[str, int]]:
    """The rows that obey the rules, cut to ``most``, and how many broke which rule."""
    kept, refused = [], dict[str, int]()
    for row in rows:
        try:
            kept.append(PreferenceRow(row.user, row.position, checked(row.preferences, names, most=most)))
        except AnswerError as error:
            rule = _rule(str(error))
            refused[rule] = refused.get(rule, 0) + 1
    return kept, refused


def _rule(problem: str) -> str:
    kinds = (
        ("expected at least", "too few"),
        ("single word", "a single word"),
        ("names the brand", "a brand or product"),
    )
    return next((kind for mark, kind in kinds if mark in problem), "too long")


def _table(rows: list[PreferenceRow]) -> pa.Table:
    columns = [[row.user for row in rows], [row.position for row in rows], [list(row.preferences) for row in rows]]
    return pa.table(dict(zip(_SCHEMA.names, columns, strict=True)), schema=_SCHEMA)
