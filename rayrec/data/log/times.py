"""Times as people write them, in milliseconds since 1970: what a schema says of them, and what is no time from 1990 to 2100."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log.raw_columns import Bad, Integers, as_codes, as_numbers, as_times

TimeUnit = Literal["s", "ms", "us", "ns", "order"]
FIRST_YEAR, LAST_YEAR = 1990, 2100
_FIRST = int(datetime(FIRST_YEAR, 1, 1, tzinfo=UTC).timestamp()) * 1000
_END = int(datetime(LAST_YEAR, 1, 1, tzinfo=UTC).timestamp()) * 1000
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_LARGEST = 9.0e18


@dataclass(frozen=True)
class TimeSpelling:
    """How a time column is written. Neither: Arrow times, ISO 8601 text, or whole milliseconds since 1970."""

    unit: TimeUnit | None = None
    """What numbers count since 1970; "order": numbers that are no times and only say what came first."""
    format: str | None = None
    """Of text, as strptime has it ("%d.%m.%Y %H:%M", "%Y%m%d"); UTC where it has no zone."""

    def read(self, column: pa.ChunkedArray | pa.Array) -> Integers:
        """Milliseconds since 1970, the fraction cut; with unit "order" the numbers as they are."""
        if self.format is not None:
            return _by_format(column, self.format)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if self.unit in (None, "ms", "order") or pa.types.is_temporal(kind):
            return as_times(column)
        return _scaled(column, _PER_SECOND[str(self.unit)])

    def outside(self, times: Integers) -> Iterator[tuple[str, str, Bad]]:
        """Rows (n,) bool before FIRST_YEAR or not before LAST_YEAR: what is wrong with them, what may help, which they are."""
        if self.unit == "order":
            return
        values = times.values
        rest = ((values < _FIRST) | (values >= _END)) & ~times.null & ~times.bad
        if not rest.any():
            return
        what = f"is no time from {FIRST_YEAR} to {LAST_YEAR}"
        given = _PER_SECOND.get(str(self.unit), 1_000)
        counts = values.astype(np.float64) * (given / 1_000)  # what stood there, where numbers stood there
        # Before seconds: ten digits that are an hour of the calendar would be seconds of 2033 to 2036.
        for name, form, like in _calendar_forms(counts):
            if (like := like & rest).any():
                yield f"{what} (looks like {name})", f'"timestamp_format": "{form}" in the schema', like
                rest &= ~like
        for unit, per_second in _PER_SECOND.items():
            milliseconds = counts * (1_000 / per_second)
            like = rest & (milliseconds >= _FIRST) & (milliseconds < _END)
            if like.any():
                yield f"{what} (looks like {_NAMES[unit]})", f'"timestamp_unit": "{unit}" in the schema', like
                rest &= ~like
        if rest.any():
            yield what, 'numbers that only order the rows: "timestamp_unit": "order" in the schema', rest


def _calendar_forms(counts: NDArray[np.float64]) -> Iterator[tuple[str, str, Bad]]:
    """Ways to write a day or an hour as digits: name, format, and the rows (n,) of numbers that can be meant so."""
    hours = counts % 100 < 24
    yield "a date of eight digits, YYYYMMDD", "%Y%m%d", _are_days(counts)
    yield "an hour, YYYYMMDDHH", "%Y%m%d%H", _are_days(counts // 100) & hours
    yield "an hour, YYMMDDHH", "%y%m%d%H", _are_days(counts // 100 + 20_000_000) & (counts >= 1_000_000) & hours


def _are_days(numbers: NDArray[np.float64]) -> Bad:
    """Which are YYYYMMDD in the years of this module."""
    years, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
    found: Bad = (years >= FIRST_YEAR) & (years < LAST_YEAR) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return found


def _scaled(column: pa.ChunkedArray | pa.Array, per_second: int) -> Integers:
    """Numbers of that many a second, also as text, also with a fraction; ISO 8601 text as it is."""
    whole = as_times(column)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind) and not whole.bad.any():
        return Integers(_whole_milliseconds(whole.values, per_second), whole.null, whole.bad)
    numbers = as_numbers(column)
    is_number = ~(numbers.null | numbers.bad | np.isnan(numbers.values))
    is_whole = is_number & ~whole.bad
    microseconds = np.round(np.nan_to_num(numbers.values) * (1e6 / per_second))  # a float holds no more of today
    fractional = np.floor(np.clip(microseconds, -_LARGEST, _LARGEST) / 1_000).astype(np.int64)
    milliseconds = np.where(is_whole, _whole_milliseconds(whole.values, per_second), fractional)
    return Integers(np.where(is_number, milliseconds, whole.values), whole.null, whole.bad & ~is_number)


def _whole_milliseconds(counts: NDArray[np.int64], per_second: int) -> NDArray[np.int64]:
    if per_second == 1:
        return np.clip(counts, -(2**53), 2**53) * 1_000  # no time of ours, and still an int64
    return counts // (per_second // 1_000)


def _by_format(column: pa.ChunkedArray | pa.Array, form: str) -> Integers:
    codes = as_codes(column, strip=True)
    values = codes.values
    empty = pc.fill_null(pc.equal(values, ""), True).to_numpy(zero_copy_only=False)
    found = np.zeros(len(values) + 1, np.int64)
    good = np.zeros(len(values) + 1, np.bool_)
    if "%f" not in form and "%z" not in form.lower():
        seconds = pc.strptime(values, format=form, unit="s", error_is_null=True)
        # February 31 becomes March 2: what does not come back as it was is read again, strictly
        same = pc.fill_null(pc.equal(pc.strftime(seconds, format=form), values), False)
        good[:-1] = same.to_numpy(zero_copy_only=False)
        found[:-1] = pc.fill_null(seconds.cast(pa.int64()), 0).to_numpy(zero_copy_only=False) * 1_000
    for i in np.flatnonzero(~good[:-1] & ~empty):
        try:
            time = datetime.strptime(values[int(i)].as_py(), form)
        except (ValueError, TypeError):
            continue
        time = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        found[i], good[i] = int(time.timestamp() * 1_000), True
    null = np.append(empty, True)[codes.index]
    rows = good[codes.index]
    return Integers(np.where(rows, found[codes.index], 0), null & ~codes.bad, (~rows & ~null) | codes.bad)
