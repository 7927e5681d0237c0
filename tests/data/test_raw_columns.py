"""Raw columns as numbers, codes, lists, times and identifiers: the same values however typed, bad ones marked, never raised."""

import datetime as dt
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log.raw_columns import (
    ColumnTypeError,
    as_code_lists,
    as_codes,
    as_identifiers,
    as_numbers,
    as_text,
    as_times,
    hash_rows,
)

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.one_of(st.none(), finite)), st.sampled_from(["{!r}", " {!r} ", "+{!r}", "{:.3e}", "{:f}"]))
def test_spelled_numbers_are_read_like_python_reads_them(values: list[float | None], form: str) -> None:
    texts = [None if v is None else form.format(abs(v) if "+" in form else v) for v in values]
    numbers = as_numbers(pa.array(texts, pa.string()))
    expected = [math.nan if t is None else float(t) for t in texts]
    np.testing.assert_array_equal(numbers.values, expected)
    assert not numbers.bad.any()
    assert numbers.null.tolist() == [t is None for t in texts]


@given(st.lists(st.text(max_size=8)))
def test_any_text_is_a_number_or_marked(texts: list[str]) -> None:
    numbers = as_numbers(pa.array(texts, pa.string()))
    for text, value, null, bad in zip(texts, numbers.values, numbers.null, numbers.bad, strict=True):
        if not bad and not null:
            assert value == float(text) or (math.isnan(value) and math.isnan(float(text)))
        assert not (bad and null)
        assert bad or not null or not text.strip(" \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0") or text.isspace()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([1, None, -3], pa.int8()), [1.0, math.nan, -3.0]),
        (pa.array([True, None, False]), [1.0, math.nan, 0.0]),
        (pa.array([1.5, math.nan, None], pa.float32()), [1.5, math.nan, math.nan]),
        (pa.array(["1", "", " 2.5 "]).dictionary_encode(), [1.0, math.nan, 2.5]),
        (pa.array([None, None, None]), [math.nan] * 3),
        (pa.array([1, 2, 3]).cast(pa.decimal128(21, 2)), [1.0, 2.0, 3.0]),
    ],
)
def test_numbers_of_any_type(column: pa.Array, values: list[float]) -> None:
    numbers = as_numbers(column)
    np.testing.assert_array_equal(numbers.values, values)
    assert not numbers.bad.any()


def test_nan_is_told_from_null() -> None:
    for column in (pa.array([math.nan, None]), pa.array(["nan", ""])):
        numbers = as_numbers(column)
        assert np.isnan(numbers.values).all()
        assert numbers.null.tolist() == [False, True]


@pytest.mark.parametrize("n", [3, 2_000])
def test_fractions_are_no_codes_and_nan_is_a_missing_one(n: int) -> None:
    codes = as_codes(pa.array([1.5, math.nan, 7.0] * n))
    assert codes.bad.tolist() == [True, False, False] * n
    assert (codes.index.reshape(n, 3)[:, :2] == -1).all()
    assert {codes.values[int(i)].as_py() for i in codes.index[2::3]} == {"7"}


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))))
def test_integer_codes_are_their_digits(values: list[int | None]) -> None:
    codes = as_codes(pa.array(values, pa.int64()))
    found = [None if i < 0 else codes.values[int(i)].as_py() for i in codes.index]
    assert found == [None if v is None else str(v) for v in values]


@given(st.lists(st.one_of(st.none(), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=5))))
def test_lists_and_separated_text_are_the_same_codes(lists: list[list[str] | None]) -> None:
    texts = [None if values is None else "|".join(values) for values in lists]
    for column in (pa.array(lists, pa.list_(pa.string())), pa.array(texts, pa.string())):
        found = as_code_lists(column, "|")
        values = [found.codes.values[int(i)].as_py() for i in found.codes.index]
        split = [values[a:b] for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
        assert split == [values or [] for values in lists]


moments = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))


@given(st.lists(st.tuples(moments, st.integers(-12, 14)), min_size=1))
def test_times_of_any_spelling_are_milliseconds(values: list[tuple[dt.datetime, int]]) -> None:
    utc = [m.replace(tzinfo=dt.UTC) for m, _ in values]
    expected = [(m - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1) for m in utc]
    zones = [m.astimezone(dt.timezone(dt.timedelta(hours=h))) for m, (_, h) in zip(utc, values, strict=True)]
    columns = [
        pa.array([m.isoformat(" ") for m, _ in values]),
        pa.array([m.isoformat("T") for m, _ in values]),
        pa.array([m.isoformat() for m in zones]),
        pa.array([str(e) for e in expected]),
        pa.array(expected),
        pa.array(utc, pa.timestamp("us", "UTC")),
        pa.array([m for m, _ in values], pa.timestamp("us")),
    ]
    for column in columns:
        times = as_times(column)
        assert times.values.tolist() == expected
        assert not times.null.any()
        assert not times.bad.any()


def test_what_is_no_time_is_marked() -> None:
    texts = ["2024-13-01", "2024-02-30 10:00", "soon", "", None, "2024-02-29", "12", "1.5", "2024-01-01 25:00:00Z"]
    times = as_times(pa.array(texts))
    assert times.bad.tolist() == [True, True, True, False, False, False, False, True, True]
    assert times.null.tolist() == [False, False, False, True, True, False, False, False, False]
    assert times.values[5] == 1_709_164_800_000


@given(
    st.lists(st.sampled_from(["0", "7", "07", "1700000000", "9" * 18, "9" * 19, "+1", " 4", "1e3", "٣"]), min_size=1)
)
def test_a_column_of_digits_is_read_as_each_of_its_values_would_be(texts: list[str]) -> None:
    times, alone = as_times(pa.array(texts)), [as_times(pa.array([text, "soon"])) for text in texts]
    assert times.values.tolist() == [int(one.values[0]) for one in alone]
    assert times.bad.tolist() == [bool(one.bad[0]) for one in alone]
    sliced = as_times(pa.array(["x", *texts, "y"]).slice(1, len(texts)))
    assert sliced.values.tolist() == times.values.tolist()


def test_identifiers_keep_integers_and_hash_other_text_to_negative_numbers() -> None:
    ids = as_identifiers(pa.array(["17", "-4", "007", "req-9", "", None, "9" * 30]))
    assert ids.values[:2].tolist() == [17, -4]
    assert (ids.values[[2, 3, 6]] < 0).all()
    assert len(set(ids.values[[2, 3, 6]].tolist())) == 3
    assert ids.null.tolist() == [False, False, False, False, True, True, False]
    assert as_identifiers(pa.array([17, 4])).values.tolist() == [17, 4]


@pytest.mark.parametrize(
    ("reader", "column"),
    [
        (as_numbers, pa.array([[1.0]])),
        (as_numbers, pa.array([dt.date(2024, 1, 1)])),
        (as_codes, pa.array([{"a": 1}])),
        (as_codes, pa.array([b"\xff"])),
        (as_text, pa.array([5])),
        (as_times, pa.array([True])),
        (as_identifiers, pa.array([[1]])),
        (lambda column: as_code_lists(column, "|"), pa.array([3])),
    ],
)
def test_a_hopeless_type_is_an_error(reader, column: pa.Array) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ColumnTypeError, match=r"^(is|holds) "):
        reader(column)


rows = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.one_of(st.none(), st.integers(0, 3)),
            "b": st.one_of(st.none(), st.text("xy", max_size=2)),
            "c": st.one_of(st.none(), finite),
            "d": st.one_of(st.none(), st.lists(st.text("xy", max_size=1), max_size=3)),
        }
    ),
    min_size=1,
    max_size=8,
)
TYPES = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64()), ("d", pa.list_(pa.string()))])


@given(rows, st.integers(0, 7))
def test_a_row_hashes_by_its_values_alone(values: list[dict], start: int) -> None:
    table = pa.Table.from_pylist(values, TYPES)
    hashes = hash_rows(table)
    by_value: dict[str, int] = {}
    for row, hashed in zip(values, hashes.tolist(), strict=True):
        row = {**row, "d": row["d"] or [], "c": None if row["c"] is None else row["c"] + 0.0}
        assert by_value.setdefault(repr(sorted(row.items())), hashed) == hashed
    assert len(set(by_value.values())) == len(by_value)
    part = table.slice(min(start, table.num_rows - 1))
    assert hash_rows(part).tolist() == hashes[min(start, table.num_rows - 1) :].tolist()
    large = pa.concat_tables([table] * 600)
    assert (hash_rows(large).reshape(600, -1) == hashes).all()


def test_lists_hash_in_order_and_nested_types_are_refused_by_name() -> None:
    hashes = hash_rows(pa.table({"d": [["x", "y"], ["y", "x"], ["x"], ["x", "x"], []]}))
    assert len(set(hashes.tolist())) == 5
    with pytest.raises(ColumnTypeError, match="'s' is struct"):
        hash_rows(pa.table({"s": [{"a": 1}]}))
