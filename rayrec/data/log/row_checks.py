"""Which rows of raw columns fit the schema: each column read as its kind, each bad row with its reason."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log.raw_columns import (
    PLAIN,
    Bad,
    CodeLists,
    Codes,
    ColumnTypeError,
    Integers,
    Numbers,
    NumberSpelling,
    as_code_lists,
    as_codes,
    as_identifiers,
    as_numbers,
    as_text,
)
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature, TaskLabel
from rayrec.errors import UserError

NOT_A_NUMBER = "is not a number"
_FLOAT32_LIMIT = float(np.finfo(np.float32).max)
T = TypeVar("T")


class ColumnError(UserError):
    """A column that is absent or of a type that no row can have; the message begins with the column."""


@dataclass(frozen=True)
class RowProblem:
    """Rows (n,) bool whose value of ``column`` is wrong in the same way. hint: what may help, for a column wholly wrong."""

    column: str
    what: str
    rows: Bad
    hint: str = ""

    @property
    def reason(self) -> str:
        return f"{self.column}: {self.what}"


@dataclass(frozen=True)
class CheckedColumns:
    """n rows. columns: a feature's values by its name. others: labels, weight, timestamp, ... as a log stores them."""

    rows: int
    columns: dict[str, Numbers | Codes | CodeLists | pa.StringArray] = field(default_factory=dict)
    others: dict[str, pa.Array] = field(default_factory=dict)
    problems: list[RowProblem] = field(default_factory=list)

    def note(self, column: str, what: str, rows: Bad, hint: str = "") -> None:
        """Remember bad rows; nothing when there are none."""
        if rows.any():
            self.problems.append(RowProblem(column, what, rows, hint))

    def good(self) -> Bad:
        """(n,) bool: rows without a problem."""
        good = np.ones(self.rows, np.bool_)
        for problem in self.problems:
            good &= ~problem.rows
        return good


def check_features(
    schema: LogSchema, raw: pa.Table, *, stripped: bool = False, spelling: NumberSpelling = PLAIN
) -> CheckedColumns:
    """Read and check the features only. Raises ColumnError when a column is absent or of a hopeless type.

    stripped: categories have no blanks around them already.
    """
    checked = CheckedColumns(raw.num_rows)
    strip = schema.strips_blanks and not stripped
    for feature in schema.features:
        if isinstance(feature, DenseFeature):
            reader = partial(as_numbers, missing=feature.missing_values, spelling=spelling)
            _check_dense(checked, feature, _read(raw, feature.name, reader))
        elif isinstance(feature, CategoricalFeature):
            _check_categorical(checked, feature, _read(raw, feature.name, partial(as_codes, strip=strip)))
        elif isinstance(feature, SequenceFeature):
            lists = _read(raw, feature.name, partial(as_code_lists, separator=feature.separator, strip=strip))
            checked.columns[feature.name] = lists
            if lists.codes.bad.any():
                rows = np.repeat(np.arange(raw.num_rows), np.diff(lists.offsets))[lists.codes.bad]
                bad = np.zeros(raw.num_rows, np.bool_)
                bad[rows] = True
                checked.note(feature.name, "holds a value that is neither text nor a whole number", bad)
        else:
            text = _read(raw, feature.name, as_text)
            checked.columns[feature.name] = pc.utf8_slice_codeunits(text, 0, feature.max_characters)
    return checked


def check_rows(
    schema: LogSchema, raw: pa.Table, *, unlabeled: bool = False, spelling: NumberSpelling = PLAIN
) -> CheckedColumns:
    """Read and check all columns of the schema. unlabeled: label columns may be absent; then no label is observed."""
    checked = check_features(schema, raw, spelling=spelling)
    for task in schema.tasks:
        if unlabeled and task.column not in raw.column_names:
            checked.others[task.column] = pa.nulls(raw.num_rows, pa.float32())
        else:
            _check_label(checked, task, _read(raw, task.column, partial(_as_label, task=task)))
    if schema.weight is not None:
        weight = _read(raw, schema.weight, partial(as_numbers, spelling=spelling))
        checked.note(schema.weight, "weight is missing", weight.null)
        checked.note(schema.weight, "weight is not a number", weight.bad)
        wrong = ~(weight.values >= 0) | (weight.values > _FLOAT32_LIMIT)
        checked.note(schema.weight, "weight is negative or not finite", wrong & ~weight.null & ~weight.bad)
        checked.others[schema.weight] = pa.array(weight.values.astype(np.float32), from_pandas=True)
    if schema.timestamp is not None:
        times = _read(raw, schema.timestamp, schema.time_spelling.read)
        form = "" if schema.timestamp_format is None else f" of the format {schema.timestamp_format!r}"
        hint = 'say how it is written: "timestamp_format" in the schema, as in "%d.%m.%Y %H:%M"'
        _check_integers(checked, schema.timestamp, f"a time{form}", times, hint)
        for what, hint, rows in schema.time_spelling.outside(times):
            checked.note(schema.timestamp, what, rows, hint)
    if schema.request_id is not None:
        _check_integers(checked, schema.request_id, "an id", _read(raw, schema.request_id, as_identifiers))
    if schema.stage is not None:
        checked.others[schema.stage] = _read(raw, schema.stage, as_text)
    for name in schema.extras:
        numbers = _read(raw, name, partial(as_numbers, spelling=spelling))
        checked.note(name, NOT_A_NUMBER, numbers.bad)
        column = raw.column(name)
        if pa.types.is_integer(column.type) and column.type != pa.uint64():
            checked.note(name, "is missing", numbers.null)
            checked.others[name] = column.combine_chunks().cast(pa.int64())
        else:
            checked.others[name] = pa.array(numbers.values, mask=numbers.null)
    return checked


def _read(raw: pa.Table, name: str, reader: Callable[[pa.ChunkedArray], T]) -> T:
    index = raw.schema.get_field_index(name)
    if index < 0:
        raise ColumnError(f"column {name!r} is absent (columns there: {', '.join(raw.column_names[:50])})")
    try:
        return reader(raw.column(index))
    except ColumnTypeError as error:
        raise ColumnError(f"column {name!r} {error}") from None


def _check_dense(checked: CheckedColumns, feature: DenseFeature, numbers: Numbers) -> None:
    values = numbers.values
    checked.note(feature.name, NOT_A_NUMBER, numbers.bad)
    infinite = np.abs(values) > _FLOAT32_LIMIT  # false for NaN
    checked.note(feature.name, "is not finite", infinite)
    if not feature.allow_missing:
        checked.note(feature.name, "is missing", numbers.null)
        checked.note(feature.name, "is NaN", np.isnan(values) & ~numbers.null & ~numbers.bad)
    if infinite.any():
        values = np.where(infinite, np.nan, values)
    checked.columns[feature.name] = Numbers(values, numbers.null, numbers.bad)


def _check_categorical(checked: CheckedColumns, feature: CategoricalFeature, codes: Codes) -> None:
    checked.note(feature.name, "is neither text nor a whole number", codes.bad)
    if not feature.allow_missing:
        missing = pc.is_in(codes.values, value_set=pa.array([*feature.missing_spellings, None], pa.string()))
        rows = np.append(missing.to_numpy(zero_copy_only=False), True)[codes.index]
        checked.note(feature.name, "is missing", rows & ~codes.bad)
    checked.columns[feature.name] = codes


def _as_label(column: pa.ChunkedArray, task: TaskLabel) -> Numbers:
    """0 and 1 as numbers, true and false, or as the task spells them."""
    if not task.positive:
        numbers = as_numbers(column, task.missing_values)
        if not numbers.bad.any():
            return numbers
        words = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
        digits = pc.if_else(
            pc.equal(words, "true"), "1", pc.if_else(pc.equal(words, "false"), "0", column.cast(pa.string()))
        )
        return as_numbers(digits, task.missing_values)
    codes = as_codes(column, strip=True)
    spelled = dict.fromkeys(("", *task.missing_values), np.nan)
    spelled |= dict.fromkeys(task.negative, 0.0) | dict.fromkeys(task.positive, 1.0)
    of_values = np.array([*(spelled.get(value or "", -1.0) for value in codes.values.to_pylist()), np.nan])
    values = of_values[codes.index]
    bad = codes.bad | (values < 0)
    values[bad] = np.nan
    return Numbers(values, np.isnan(values) & ~bad, bad)


def _check_label(checked: CheckedColumns, task: TaskLabel, numbers: Numbers) -> None:
    name = task.column
    values: NDArray[np.float64] = numbers.values
    not_a_number = np.isnan(values) & ~numbers.null & ~numbers.bad
    hint = 'say how it is spelled: "positive": [...], "negative": [...] of the task'
    spellings = " or ".join(map(repr, (*task.positive, *task.negative)))
    checked.note(name, f"label is not {spellings or '0 or 1'}", numbers.bad, hint)
    checked.note(name, "label is NaN", not_a_number)
    checked.note(name, "label is not 0 or 1", (values != 0) & (values != 1) & ~np.isnan(values), hint)
    checked.others[name] = pa.array(values.astype(np.float32), mask=np.isnan(values))


def _check_integers(checked: CheckedColumns, name: str, what: str, integers: Integers, hint: str = "") -> None:
    checked.note(name, "is missing", integers.null)
    checked.note(name, f"is not {what}", integers.bad, hint)
    checked.others[name] = pa.array(integers.values)
