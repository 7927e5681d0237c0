"""Rows as few matrices: nulls, masks and lists as the batch wants them, and there and back through Arrow untouched."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log import LogError
from rayrec.data.log.packing import PackedRows, needed_columns, pack
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature, TaskLabel, TextFeature

SCHEMA = LogSchema(
    name="tiny",
    features=(
        CategoricalFeature("user", encoding="hash", buckets=9),
        DenseFeature("age", transform="none"),
        TextFeature("title"),
        SequenceFeature("history", max_length=3, shares="user"),
        DenseFeature("price", transform="none"),
        CategoricalFeature("item", encoding="hash", buckets=9),
    ),
    tasks=(TaskLabel("buy", observed_when="click"), TaskLabel("click", label="clicked")),
    weight="weight",
    timestamp="time",
    stage="stage",
    extras=("truth", "count"),
)
EXTRAS = ("count", "truth", "time")


def table() -> pa.Table:
    return pa.table(
        {
            "age": pa.array([30.5, None, 0.0, -1.0], pa.float32()),
            "price": pa.array([1.0, 2.0, None, 4.0], pa.float32()),
            "user": pa.array([1, 2, None, 4], pa.int32()),
            "item": pa.array([5, 6, 7, 8], pa.int32()),
            "history": pa.array([[1, 2], [], None, [3, 4, 5, 6]], pa.list_(pa.int32())),
            "clicked": pa.array([1.0, 0.0, None, 1.0], pa.float32()),
            "buy": pa.array([1.0, 1.0, 1.0, None], pa.float32()),
            "weight": pa.array([1.0, 2.0, 0.5, 1.0], pa.float32()),
            "time": pa.array([1, 2, 3, 2**60], pa.int64()),
            "truth": pa.array([0.25, None, 0.5, 0.125], pa.float64()),
            "count": pa.array([1, 2, 3, 4], pa.int64()),
            "title": pa.array(["a", "b", "c", "d"]),
            "stage": pa.array(["early"] * 4),
        }
    )


def test_rows_of_several_chunks_are_interleaved_in_order() -> None:
    rows = 5_000
    ids = [pa.array(np.arange(start, start + rows, dtype=np.int32)) for start in (0, 10_000)]
    schema = LogSchema(
        "long",
        tuple(CategoricalFeature(name, encoding="hash", buckets=20_000) for name in ("a", "b")),
        (TaskLabel("click"),),
    )
    packed = pack(pa.table({"b": ids[1], "a": ids[0], "click": pa.array(np.zeros(rows, np.float32))}), schema)
    np.testing.assert_array_equal(packed.categorical, np.stack(ids, axis=1))


def with_column(name: str, values: pa.Array) -> pa.Table:
    rows = table()
    return rows.set_column(rows.column_names.index(name), name, values)


def same(left: PackedRows, right: PackedRows) -> None:
    np.testing.assert_array_equal(left.dense, right.dense)
    np.testing.assert_array_equal(left.categorical, right.categorical)
    np.testing.assert_array_equal(left.labels, right.labels)
    assert len(left.sequences) == len(right.sequences)
    for mine, other in zip(left.sequences, right.sequences, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (left.weights is None) == (right.weights is None)
    if left.weights is not None:
        np.testing.assert_array_equal(left.weights, right.weights)
    assert list(left.extras) == list(right.extras)
    for name, column in left.extras.items():
        np.testing.assert_array_equal(column, right.extras[name])


def test_columns_come_in_schema_order_with_nulls_as_nan_and_ids_of_null_as_zero() -> None:
    packed = pack(table(), SCHEMA, extras=EXTRAS)
    assert (packed.dense.dtype, packed.categorical.dtype, packed.labels.dtype) == (np.float32, np.int32, np.float32)
    np.testing.assert_array_equal(packed.dense, [[30.5, 1], [np.nan, 2], [0, np.nan], [-1, 4]])
    np.testing.assert_array_equal(packed.categorical, [[1, 5], [2, 6], [0, 7], [4, 8]])
    np.testing.assert_array_equal(packed.weights, np.float32([1, 2, 0.5, 1]))
    assert len(packed) == 4


def test_sequences_keep_their_last_ids_and_are_padded_with_zeros_behind() -> None:
    (history,) = pack(table(), SCHEMA).sequences
    np.testing.assert_array_equal(history, [[1, 2, 0], [0, 0, 0], [0, 0, 0], [4, 5, 6]])


def test_a_label_is_nan_unless_its_condition_was_observed_as_one() -> None:
    labels = pack(table(), SCHEMA).labels  # buy, click
    np.testing.assert_array_equal(labels, [[1, 1], [np.nan, 0], [np.nan, np.nan], [np.nan, 1]])


def test_extras_keep_64_bits_and_their_kind() -> None:
    extras = pack(table(), SCHEMA, extras=EXTRAS).extras
    assert list(extras) == list(EXTRAS)
    assert extras["time"].tolist() == [1, 2, 3, 2**60]
    np.testing.assert_array_equal(extras["truth"], [0.25, np.nan, 0.5, 0.125])


def test_without_labels_neither_label_nor_weight_columns_are_needed() -> None:
    packed = pack(table().drop_columns(["clicked", "buy", "weight"]), SCHEMA, labels=False)
    assert np.isnan(packed.labels).all()
    assert packed.labels.shape == (4, 2)
    assert packed.weights is None


def test_text_and_stage_are_not_read() -> None:
    assert needed_columns(SCHEMA, ("truth",)) == [
        "age", "price", "user", "item", "history", "buy", "clicked", "weight", "truth",
    ]  # fmt: skip


@pytest.mark.parametrize("extra", ["title", "stage", "nothing", "clicked"])
def test_an_extra_that_is_no_further_number_is_named(extra: str) -> None:
    with pytest.raises(LogError, match=f"'{extra}' cannot be an extra.*truth, count, time"):
        pack(table(), SCHEMA, extras=(extra,))


def test_absent_columns_are_named() -> None:
    with pytest.raises(LogError, match="columns are absent: age, buy"):
        pack(table().drop_columns(["age", "buy"]), SCHEMA)


def test_a_missing_weight_is_named() -> None:
    with pytest.raises(LogError, match="weight column 'weight' has missing values"):
        pack(with_column("weight", pa.array([1.0, None, 1.0, 1.0], pa.float32())), SCHEMA)


def test_a_missing_integer_extra_is_named_instead_of_becoming_a_float() -> None:
    with pytest.raises(LogError, match="integer column 'count' has missing values"):
        pack(with_column("count", pa.array([1, None, 3, 4], pa.int64())), SCHEMA, extras=("count",))


@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 3), slice(3, 4), slice(2, 2)])
def test_packing_a_slice_of_a_table_is_the_slice_of_the_packed_table(rows: slice) -> None:
    sliced = table().slice(rows.start, rows.stop - rows.start)
    same(pack(sliced, SCHEMA, extras=EXTRAS), pack(table(), SCHEMA, extras=EXTRAS)[rows])


def test_chunks_of_a_table_do_not_matter() -> None:
    rows = table()
    chunked = pa.concat_tables([rows.slice(0, 1), rows.slice(1, 0), rows.slice(1, 3)])
    same(pack(chunked, SCHEMA, extras=EXTRAS), pack(rows, SCHEMA, extras=EXTRAS))


@given(
    numbers=st.lists(st.none() | st.floats(width=32), min_size=1, max_size=40), first=st.integers(0, 39),
    rows=st.integers(1, 40),
)  # fmt: skip
def test_a_missing_number_is_nan_and_the_others_are_as_stored(
    numbers: list[float | None], first: int, rows: int
) -> None:
    schema = LogSchema("one", (DenseFeature("age", transform="none"),), (TaskLabel("click"),))
    ages = pa.array(numbers, pa.float32()).slice(first, rows)  # a slice begins inside of a byte of the nulls' bits
    packed = pack(pa.table({"age": ages, "click": pa.array(np.ones(len(ages), np.float32))}), schema)
    wanted = np.array([np.nan if number is None else number for number in ages.to_pylist()], np.float32)
    np.testing.assert_array_equal(packed.dense[:, 0], wanted)


def test_more_rows_than_are_interleaved_at_once_keep_their_places() -> None:
    features = tuple(DenseFeature(name, transform="none") for name in "abc")
    wanted = np.arange(3 * 9_001, dtype=np.float32).reshape(9_001, 3)
    columns = {name: pa.array(wanted[:, j]) for j, name in enumerate("abc")} | {"click": pa.array(wanted[:, 0] * 0)}
    assert np.array_equal(pack(pa.table(columns), LogSchema("three", features, (TaskLabel("click"),))).dense, wanted)


@pytest.mark.parametrize("rows", [4, 0])
def test_rows_come_back_from_arrow_as_they_went_in(rows: int) -> None:
    packed = pack(table().slice(0, rows), SCHEMA, extras=EXTRAS)
    arrow = packed.to_arrow()
    assert arrow.num_columns == 4 + 1 + len(EXTRAS)  # dense, categorical, labels, one sequence; weights
    same(PackedRows.from_arrow(arrow, SCHEMA, EXTRAS), packed)


def test_rows_come_back_from_arrow_when_the_table_was_sliced_and_put_together() -> None:
    packed = pack(table(), SCHEMA, extras=EXTRAS)
    arrow = packed.to_arrow()
    same(PackedRows.from_arrow(pa.concat_tables([arrow.slice(0, 1), arrow.slice(1)]), SCHEMA, EXTRAS), packed)
    same(PackedRows.from_arrow(arrow.slice(1, 2), SCHEMA, EXTRAS), packed[1:3])


def test_a_log_without_features_of_a_kind_has_matrices_of_no_columns() -> None:
    bare = replace(SCHEMA, features=(DenseFeature("age", transform="none"),), weight=None)
    packed = pack(table(), bare)
    assert (packed.categorical.shape, packed.sequences, packed.weights) == ((4, 0), (), None)
    same(PackedRows.from_arrow(packed.to_arrow(), bare, ()), packed)


@given(cuts=st.lists(st.integers(0, 4), max_size=4))
def test_slices_put_together_are_the_rows_they_were_cut_from(cuts: list[int]) -> None:
    packed = pack(table(), SCHEMA, extras=EXTRAS)
    edges = [0, *sorted(cuts), 4]
    parts = [packed[left:right] for left, right in pairwise(edges)]
    same(PackedRows.concatenate(parts), packed)


def test_many_rows_are_interleaved_as_few_are() -> None:
    rows = 10_001  # more than two of the chunks in which columns are interleaved
    ids = np.arange(rows, dtype=np.int32)
    schema = LogSchema(
        name="wide",
        features=tuple(CategoricalFeature(f"f{j}", encoding="hash", buckets=10**6) for j in range(3)),
        tasks=(TaskLabel("click"),),
    )
    columns = {f"f{j}": pa.array(ids * (j + 1)) for j in range(3)} | {"click": pa.array(np.zeros(rows, np.float32))}
    np.testing.assert_array_equal(pack(pa.table(columns), schema).categorical, ids[:, None] * [1, 2, 3])
