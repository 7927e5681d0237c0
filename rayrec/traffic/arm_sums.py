"""What the users of each arm were shown and did, summed by user: all that a comparison of arms needs of a traffic folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log import LogError
from rayrec.data.log.schema import LogSchema, read_schema
from rayrec.traffic.calibration import joint_probabilities
from rayrec.traffic.decisions import POSITION, PREDICTED, TIME, decision_tables
from rayrec.traffic.joining import Events

_NAMES = ("served_request", "served_user_name", "served_item", "served_arm")


@dataclass(frozen=True)
class Period:
    """Decisions of [since_ms, until_ms], Unix ms, count; so does feedback that came within window_ms of what it is about."""

    window_ms: int
    until_ms: int
    since_ms: int = 0


@dataclass(frozen=True)
class ShownRows:
    """What was shown: n rows, a table of ``served_request``, ``served_item``, ``served_user_name`` and ``served_arm``. positives:
    (n, T) 0 or 1, silence being 0."""

    table: pa.Table
    positives: NDArray[np.float64]


@dataclass(frozen=True)
class ArmSums:
    """U users of one arm. decisions, told: (U,) how many there were, and on how many of them there was feedback.

    positives: (U, T) yes by task. expected: (U, T) as the rankers that answered predicted; NaN where one did not.
    """

    users: tuple[str, ...]
    decisions: NDArray[np.float64]
    told: NDArray[np.float64]
    positives: NDArray[np.float64]
    expected: NDArray[np.float64]


@dataclass(frozen=True)
class TrafficSums:
    """tasks: T, those of all books. arms: by name, of users who are in one arm only. moved: users in more than one, in no sums.

    nobodys: decisions by the arm that they are logged with, without a user or of none of the arms. shown: all that was shown,
    where it was asked for.
    """

    tasks: tuple[str, ...]
    arms: Mapping[str, ArmSums]
    moved: int
    nobodys: Mapping[str, int]
    shown: ShownRows | None


def books(folder: Path) -> list[Path]:
    """Of a traffic folder, those with decisions that were shown. Raises LogError where there is none."""
    found = [book for book, schema in _schemas(folder) if schema.features]
    if not found:
        raise LogError(f"{folder}: no log of decisions (no */decisions/schema.json)")
    return found


def shadow_books(folder: Path) -> list[Path]:
    """Of a traffic folder, those of what a shadow ranker said."""
    return [book for book, schema in _schemas(folder) if not schema.features]


def arms_of(folder: Path, period: Period) -> list[str]:
    """What decisions are logged with, in alphabetical order. Raises LogError for a folder without decisions."""
    found: set[str] = set()
    for book in books(folder):
        for table in decision_tables(book / "decisions", [TIME, "served_arm"], period.since_ms):
            found.update(_of_period(table, period)["served_arm"].unique().to_pylist())
    return sorted(found)


def sum_traffic(folder: Path, arms: Sequence[str], period: Period, *, keep_shown: bool = False) -> TrafficSums:
    """Memory: the feedback (two names an event), a few numbers a user, and for ``keep_shown`` what was shown.

    Raises LogError for a folder without decisions, and for books that have no task in common.
    """
    logs = [(book, read_schema(book / "decisions" / "schema.json")) for book in books(folder)]
    tasks = [task for task in logs[0][1].task_names if all(task in schema.task_names for _, schema in logs)]
    if not tasks:
        raise LogError(f"{folder}: the books of this folder have no task in common")
    sums, kept = _Sums(tuple(arms), tuple(tasks)), list[ShownRows]()
    for book, schema in logs:
        events = Events.read(book / "feedback", schema, period.window_ms)
        predicted = [f"{PREDICTED}{t}" for t in schema.task_names if f"{PREDICTED}{t}" in schema.extras]
        for table in whole_decisions(
            decision_tables(book / "decisions", [TIME, POSITION, *_NAMES, *predicted], period.since_ms)
        ):
            table = _of_period(table, period)
            shown = sums.add(table, events, schema)
            if keep_shown:
                kept.append(shown)
    rows = None
    if kept:
        rows = ShownRows(pa.concat_tables([k.table for k in kept]), np.concatenate([k.positives for k in kept]))
    return sums.done(rows)


def whole_decisions(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables that no decision lies in two of: its rows stand together in a log."""
    held: pa.Table | None = None
    for table in tables:
        if not table.num_rows:
            continue
        held = table if held is None else pa.concat_tables([held, table])
        requests = held["served_request"]
        start = pc.index(requests, requests[-1]).as_py()
        if start:
            yield held.slice(0, start)
            held = held.slice(start)
    if held is not None:
        yield held


def _of_period(table: pa.Table, period: Period) -> pa.Table:
    times = table[TIME]
    return table.filter(pc.and_(pc.greater_equal(times, period.since_ms), pc.less_equal(times, period.until_ms)))


def _schemas(folder: Path) -> list[tuple[Path, LogSchema]]:
    return [(file.parent.parent, read_schema(file)) for file in sorted(folder.glob("*/decisions/schema.json"))]


@dataclass
class _Sums:
    """While they are read: a row for each user in each arm."""

    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    nobodys: dict[str, int] = field(default_factory=dict)
    values: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.zeros((0, 2 + 2 * len(self.tasks)))

    def add(self, table: pa.Table, events: Events, schema: LogSchema) -> ShownRows:
        """Whole decisions; what of them was shown."""
        keys = table.group_by(["served_request", "served_user_name", "served_arm"], use_threads=False).aggregate([])
        users, arms = keys["served_user_name"].to_pylist(), keys["served_arm"].to_pylist()
        row_of = np.array([self._row(user, arm) for user, arm in zip(users, arms, strict=True)], np.int64)
        self._grow()
        decided = row_of[row_of >= 0]
        np.add.at(self.values[:, 0], decided, 1)

        shown = table.filter(pc.greater_equal(table[POSITION], 0))
        labels = events.of(shown)
        place = [schema.task_names.index(task) for task in self.tasks]
        positives = (labels[:, place] == 1).astype(np.float64)
        of_request = dict(zip(keys["served_request"].to_pylist(), row_of.tolist(), strict=True))
        requests = shown["served_request"].to_pylist()
        row = np.array([of_request[request] for request in requests], np.int64)
        told = {requests[i] for i in np.flatnonzero((~np.isnan(labels)).any(1))}
        told_rows = np.array([of_request[request] for request in told], np.int64)
        np.add.at(self.values[:, 1], told_rows[told_rows >= 0], 1)

        count, counted = len(self.tasks), row >= 0
        np.add.at(self.values[:, 2 : 2 + count], row[counted], positives[counted])
        np.add.at(self.values[:, 2 + count :], row[counted], self._expected(shown, schema)[counted])
        names = ["served_request", "served_item", "served_user_name", "served_arm"]
        return ShownRows(shown.select(names), positives)

    def done(self, shown: ShownRows | None) -> TrafficSums:
        arms_of: dict[str, int] = {}
        for user, _ in self.rows:
            arms_of[user] = arms_of.get(user, 0) + 1
        found = {arm: self._arm(arm, arms_of) for arm in self.arms}
        moved = sum(count > 1 for count in arms_of.values())
        return TrafficSums(self.tasks, found, moved, self.nobodys, shown)

    def _arm(self, arm: str, arms_of: Mapping[str, int]) -> ArmSums:
        mine = [(user, row) for (user, of), row in self.rows.items() if of == arm and arms_of[user] == 1]
        values, count = self.values[[row for _, row in mine]], len(self.tasks)
        users = tuple(user for user, _ in mine)
        return ArmSums(users, values[:, 0], values[:, 1], values[:, 2 : 2 + count], values[:, 2 + count :])

    def _row(self, user: str | None, arm: str) -> int:
        """-1 for a decision that is nobody's."""
        if not user or arm not in self.arms:
            self.nobodys[arm] = self.nobodys.get(arm, 0) + 1
            return -1
        return self.rows.setdefault((user, arm), len(self.rows))

    def _grow(self) -> None:
        if len(self.rows) > len(self.values):
            grown = np.zeros((max(2 * len(self.values), len(self.rows)), self.values.shape[1]))
            grown[: len(self.values)] = self.values
            self.values = grown

    def _expected(self, shown: pa.Table, schema: LogSchema) -> NDArray[np.float64]:
        """(n, T)."""
        told = {
            name.removeprefix(PREDICTED): shown[name].to_numpy(zero_copy_only=False).astype(np.float64)
            for name in shown.column_names
            if name.startswith(PREDICTED)
        }
        joint = joint_probabilities(told, schema.tasks)
        nothing = np.full(shown.num_rows, np.nan)
        return np.stack([joint.get(task, nothing) for task in self.tasks], 1)
