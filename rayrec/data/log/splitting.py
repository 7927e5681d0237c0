"""Which split a raw row belongs to: by time, by position, by a hash, by a column, or as its file says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict

from rayrec.data.log import SPLITS
from rayrec.data.log.hashing import hash_strings, mix, uniform
from rayrec.data.log.raw_columns import ColumnTypeError, as_codes, hash_rows
from rayrec.data.log.row_checks import ColumnError
from rayrec.data.log.times import TimeSpelling
from rayrec.typed_json import ConfigError

Split = Literal["train", "valid", "test"]
T = TypeVar("T")
TRAIN, VALID, TEST = range(3)
NO_SPLIT = -1
_KEPT_TIMES = 1 << 22
_TIMES = TimeSpelling()
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class TimeSplit:
    """The last ``test_share`` of the rows in time are for test, ``valid_share`` before them for validation.

    Rows of the same time stay together, in the later split.
    """

    valid_share: float = 0.1
    """Of the rows, before those of the test."""
    test_share: float = 0.2
    """Of the rows, the newest."""
    column: str | None = None
    """Default the schema's timestamp."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        _check_shares(self.valid_share, self.test_share)


@dataclass(frozen=True)
class OrderSplit:
    """Like TimeSplit for files that lie in order of time but do not tell the time: by position, files one after
    another."""

    valid_share: float = 0.1
    """Of the rows, before those of the test."""
    test_share: float = 0.2
    """Of the rows, the last ones."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        _check_shares(self.valid_share, self.test_share)


@dataclass(frozen=True)
class HashSplit:
    """By a hash of the given columns (a request id, a user: their rows stay together), or of the whole row."""

    valid_share: float = 0.1
    """Of the keys."""
    test_share: float = 0.2
    """Of the keys."""
    columns: tuple[str, ...] = ()
    """Whose values are hashed, so that rows which share them stay together; none = each row for itself."""
    seed: int = 0
    """Of the hash."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        _check_shares(self.valid_share, self.test_share)


@dataclass(frozen=True)
class ColumnSplit:
    """As a column says, by these values."""

    column: str
    """Whose values say it."""
    train: tuple[str, ...] = ("train",)
    """Values of training rows."""
    valid: tuple[str, ...] = ("valid", "validation", "val")
    """Values of validation rows."""
    test: tuple[str, ...] = ("test",)
    """Values of test rows."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True)
class FileSplit:
    """As each file says; ``valid_share`` of the training rows become validation rows, by a hash of the row."""

    valid_share: float = 0.1
    """Of the rows of training files."""
    seed: int = 0
    """Of the draw."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        _check_shares(self.valid_share, 0.0)


SplitRule = TimeSplit | OrderSplit | HashSplit | ColumnSplit | FileSplit


@dataclass(frozen=True)
class SplitInput:
    """Rows to be assigned: raw columns, position of the first row among all rows, and the split of their file."""

    table: pa.Table
    position: int
    given: Split | None = None


@dataclass
class RowSplitter:
    """A rule with what one look at all rows found (``prepare``). Assigns by content alone, whatever the chunking.

    times: how the column of a split by time is read. note: what a user should know of the split; empty = nothing.
    """

    rule: SplitRule
    boundaries: tuple[int, int] = (0, 0)
    times: TimeSpelling = _TIMES
    note: str = ""

    def assign(self, rows: SplitInput) -> NDArray[np.int8]:
        """(n,) int8: an index into SPLITS, or -1 where the row tells no split. Raises ColumnError when a column is absent."""
        rule, table = self.rule, rows.table
        if isinstance(rule, TimeSplit):
            assert rule.column is not None  # prepare fills it in
            times = _column(table, rule.column, self.times.read)
            splits = np.searchsorted(np.array(self.boundaries), times.values, side="right").astype(np.int8)
            splits[times.null | times.bad] = NO_SPLIT
            return splits
        if isinstance(rule, OrderSplit):
            positions = rows.position + np.arange(table.num_rows)
            return np.searchsorted(np.array(self.boundaries), positions, side="right").astype(np.int8)
        if isinstance(rule, HashSplit):
            for name in rule.columns:
                _column(table, name, lambda column: column)
            return _by_hash(table.select(rule.columns) if rule.columns else table, rule)
        if isinstance(rule, ColumnSplit):
            codes = _column(table, rule.column, partial(as_codes, strip=True))
            of_value = {v: i for i, values in enumerate((rule.train, rule.valid, rule.test)) for v in values}
            found = [of_value.get(value, NO_SPLIT) for value in codes.values.to_pylist()]
            return np.array([*found, NO_SPLIT], np.int8)[codes.index]
        if rows.given is None:
            return np.full(table.num_rows, NO_SPLIT, np.int8)
        if rows.given == "train" and rule.valid_share > 0:
            return _by_hash(table, HashSplit(rule.valid_share, 0.0, seed=rule.seed))
        return np.full(table.num_rows, SPLITS.index(rows.given), np.int8)


def prepare(
    rule: SplitRule,
    timestamp: str | None,
    scan: Callable[[], Iterator[SplitInput]],
    times: TimeSpelling = _TIMES,
) -> RowSplitter:
    """The splitter of a rule. By time and by position need one look at all rows, ``scan``; at most 4 million times are kept (of
    more rows, a fixed sample). times: how ``timestamp`` is read; any other column holds times or numbers that order the rows.

    Raises ConfigError when the rule lacks a time column, ColumnError when it is absent or the same in all rows."""
    if isinstance(rule, TimeSplit):
        column = rule.column if rule.column is not None else timestamp
        if column is None:
            raise ConfigError("a split by time needs a column: name one, or declare the schema's timestamp")
        rule = TimeSplit(rule.valid_share, rule.test_share, column)
        times = times if column == timestamp else TimeSpelling("order")
        return _splitter_by_time(rule, column, times, scan)
    if isinstance(rule, OrderSplit):
        rows = sum(part.table.num_rows for part in scan())
        test = round(rows * (1 - rule.test_share))
        return RowSplitter(rule, (round(rows * (1 - rule.test_share - rule.valid_share)), test))
    return RowSplitter(rule)


def _splitter_by_time(
    rule: TimeSplit, column: str, spelling: TimeSpelling, scan: Callable[[], Iterator[SplitInput]]
) -> RowSplitter:
    kept = TimeSample()
    for part in scan():
        times = _column(part.table, column, spelling.read)
        positions = part.position + np.arange(part.table.num_rows)
        good = ~(times.null | times.bad)
        for _, _, outside in spelling.outside(times):
            good &= ~outside
        kept.add(times.values[good], positions[good])
    times_kept = kept.sorted()
    if not len(times_kept):
        return RowSplitter(rule, times=spelling)
    if len(times_kept) > 1 and times_kept[0] == times_kept[-1]:
        raise ColumnError(
            f"column {column!r} is the same in all rows, but a split by time needs an order; try split:by-hash"
        )
    cuts = (1 - rule.test_share - rule.valid_share, 1 - rule.test_share)
    end = kept.last + 1
    valid, test = (
        int(times_kept[cut]) if (cut := round(len(times_kept) * share)) < len(times_kept) else end for share in cuts
    )
    after = 1 - np.searchsorted(times_kept, (valid, test)) / len(times_kept)
    shares = {"validation": (rule.valid_share, after[0] - after[1]), "test": (rule.test_share, after[1])}
    uneven = [
        f"{got:.0%} instead of {asked:.0%} for {of}"
        for of, (asked, got) in shares.items()
        if abs(got - asked) > 0.05 + 1 / len(times_kept)
    ]
    note = f"rows of equal {column!r} stay together, so the split has {' and '.join(uneven)}" if uneven else ""
    return RowSplitter(rule, (valid, test), spelling, note)


class TimeSample:
    """All of the numbers added, or a fixed sample of at most ``most`` when there are more: memory is bounded.

    last: the largest of all that were added, in the sample or not.
    """

    def __init__(self, most: int = _KEPT_TIMES) -> None:
        self._most = most
        self.last = np.iinfo(np.int64).min
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []
        self._rows = 0
        self._highest_rank = (1 << 64) - 1  # halved whenever there are too many

    def add(self, values: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        self.last = max(self.last, int(values.max(initial=self.last)))
        ranks = mix(positions.astype(np.uint64))
        stay = ranks <= np.uint64(self._highest_rank)
        self._parts.append((values[stay], ranks[stay]))
        self._rows += int(stay.sum())
        while self._rows > self._most:
            self._highest_rank >>= 1
            values, ranks = self._joined()
            stay = ranks <= np.uint64(self._highest_rank)
            self._parts, self._rows = [(values[stay], ranks[stay])], int(stay.sum())

    def sorted(self) -> NDArray[np.int64]:
        return np.sort(self._joined()[0]) if self._parts else np.empty(0, np.int64)

    def _joined(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        return np.concatenate([v for v, _ in self._parts]), np.concatenate([r for _, r in self._parts])


def _by_hash(table: pa.Table, rule: HashSplit) -> NDArray[np.int8]:
    salt = hash_strings(pa.array([f"split {rule.seed}"]))
    try:
        draws = uniform(mix(hash_rows(table, strip=bool(rule.columns)) ^ salt))
    except ColumnTypeError as error:
        raise ColumnError(f"column {error}: it cannot be hashed; name the columns to split by") from None
    splits = np.where(draws < rule.test_share, TEST, TRAIN)
    return np.where((draws >= rule.test_share) & (draws < rule.test_share + rule.valid_share), VALID, splits).astype(
        np.int8
    )


def _column(table: pa.Table, name: str, reader: Callable[[pa.ChunkedArray], T]) -> T:
    index = table.schema.get_field_index(name)
    if index < 0:
        raise ColumnError(
            f"column {name!r}, by which rows are split, is absent (columns there: {', '.join(table.column_names[:50])})"
        )
    try:
        return reader(table.column(index))
    except ColumnTypeError as error:
        raise ColumnError(f"column {name!r}, by which rows are split, {error}") from None


def _check_shares(valid: float, test: float) -> None:
    if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
        raise ConfigError(f"shares of valid {valid} and test {test} must be at least 0 and leave rows for training")
