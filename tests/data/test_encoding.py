"""The encoder that import and serving share: ids, hashes, missing values, sequences, and its complaints."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data.log import arrow_schema
from rayrec.data.log.encoding import EncodingError, LogEncoder
from rayrec.data.log.hashing import hash_ids
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    SchemaError,
    SequenceFeature,
    TaskLabel,
    TextFeature,
)

FEATURES = (
    DenseFeature("age", statistics=DenseStatistics(30.0, 10.0, 0.0)),
    DenseFeature("price", transform="none", allow_missing=False),
    CategoricalFeature("item", vocabulary=("b7", "12", "a"), missing_values=("", "?")),
    CategoricalFeature("user", encoding="hash", buckets=1000, missing_values=("", "?")),
    SequenceFeature("history", max_length=3, shares="item"),
    SequenceFeature("tags", max_length=2, encoding="hash", buckets=50),
    TextFeature("title", max_characters=4),
)
SCHEMA = LogSchema("shop", FEATURES, (TaskLabel("click"),))
ROW = {
    "age": [31],
    "price": [2.5],
    "item": ["b7"],
    "user": ["u1"],
    "history": [["a", "b7"]],
    "tags": [["x"]],
    "title": ["boots"],
}


@pytest.fixture(scope="module")
def encoder() -> LogEncoder:
    return LogEncoder(SCHEMA)


def test_values_become_ids_and_the_columns_those_of_the_log(encoder: LogEncoder) -> None:
    table = encoder.encode_values(ROW)
    assert table.schema.equals(pa.schema(list(arrow_schema(SCHEMA))[: len(FEATURES)]))
    assert table.to_pylist() == [
        {
            "age": 31.0,
            "price": 2.5,
            "item": 1,
            "user": int(hash_ids(["u1"], 1000)[0]),
            "history": [3, 1],
            "tags": hash_ids(["x"], 50).tolist(),
            "title": "boot",
        }
    ]


def test_unknown_and_missing_values_get_id_zero(encoder: LogEncoder) -> None:
    rows = {name: values * 4 for name, values in ROW.items()}
    table = encoder.encode_values(rows | {"item": ["never seen", None, "", "?"], "user": ["never seen", None, "", "?"]})
    assert table.column("item").to_pylist() == [0, 0, 0, 0]
    users = table.column("user").to_pylist()
    assert users[0] > 0
    assert users[1:] == [0, 0, 0]


def test_blanks_around_a_value_belong_to_it_only_in_schemas_of_version_1(encoder: LogEncoder) -> None:
    padded = ROW | {"item": [" b7 "], "user": ["\tu1"], "history": [["a ", " ? ", " b7"]]}
    plain = ROW | {"history": [["a", None, "b7"]]}
    assert encoder.encode_values(padded).equals(encoder.encode_values(plain))
    assert encoder.encode(pa.table(padded)).equals(encoder.encode_values(plain))
    old = LogEncoder(replace(SCHEMA, version=1))
    assert old.encode_values(padded).column("item").to_pylist() == [0]
    assert old.encode_values(padded).column("user").to_pylist() == hash_ids(["\tu1"], 1000).tolist()


def test_values_that_a_vocabulary_lacks_are_counted_by_row_and_missing_ones_are_not(encoder: LogEncoder) -> None:
    rows = {name: values * 4 for name, values in ROW.items()}
    histories = [["cut away", "new", "a", "newer"], ["b7", None, "?"], [], ["new"]]
    rows |= {"item": ["new", None, " ?", "b7"], "user": ["new"] * 4, "tags": [["new"]] * 4, "history": histories}
    table, unknown = encoder.encode_and_count(rows)
    assert {name: counts.tolist() for name, counts in unknown.items()} == {
        "item": [1, 0, 0, 0],
        "history": [2, 0, 0, 1],
    }
    assert table.column("history").to_pylist() == [[0, 3, 0], [1, 0, 0], [], [0]]
    assert encoder.encode_and_count(ROW)[1] == {}


def test_missing_numbers_lists_and_text_stay_missing_or_empty(encoder: LogEncoder) -> None:
    table = encoder.encode_values(ROW | {"age": [None], "history": [None], "tags": [[]], "title": [None]})
    row = table.to_pylist()[0]
    assert (row["age"], row["history"], row["tags"], row["title"]) == (None, [], [], None)


def test_nan_is_a_missing_number(encoder: LogEncoder) -> None:
    assert encoder.encode_values(ROW | {"age": [float("nan")]}).column("age").null_count == 1


@pytest.mark.parametrize(
    "column",
    [
        pa.array([12, None, 7]),
        pa.array(["12", None, "7"]),
        pa.array(["12", None, "7"], pa.large_string()),
        pa.array([12.0, float("nan"), 7.0]),
        pa.array(["12", None, "7"]).dictionary_encode(),
        pa.array([b"12", None, b"7"]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("times", [1, 400])
def test_a_code_has_one_id_however_its_column_is_typed(encoder: LogEncoder, column: pa.Array, times: int) -> None:
    raw = {name: pa.array(values * 3) for name, values in ROW.items()} | {"item": column, "user": column}
    table = encoder.encode(pa.concat_tables([pa.table(raw)] * times))
    assert table.column("item").to_pylist() == [2, 0, 0] * times
    assert table.column("user").to_pylist() == [hash_ids(["12"], 1000)[0], 0, hash_ids(["7"], 1000)[0]] * times


def test_python_integers_and_whole_floats_encode_like_their_digits(encoder: LogEncoder) -> None:
    rows = {name: values * 3 for name, values in ROW.items()}
    assert encoder.encode_values(rows | {"item": ["12", 12, 12.0]}).column("item").to_pylist() == [2, 2, 2]


def test_sequences_keep_their_last_ids(encoder: LogEncoder) -> None:
    rows = {name: values * 3 for name, values in ROW.items()}
    lists = [["a", "b7", "12", "a", "?"], ["a"], ["b7", "nope", "a"]]
    table = encoder.encode_values(rows | {"history": lists})
    assert table.column("history").to_pylist() == [[2, 3, 0], [3], [1, 0, 3]]


def test_text_with_separators_is_a_sequence(encoder: LogEncoder) -> None:
    raw = {name: pa.array(values * 2) for name, values in ROW.items()} | {"history": pa.array(["a|b7|12|a", ""])}
    assert encoder.encode(pa.table(raw)).column("history").to_pylist() == [[1, 2, 3], []]


words = st.one_of(st.none(), st.sampled_from(["b7", "12", "a", "?", "", "zz"]), st.text(max_size=12))


@given(st.lists(st.tuples(words, st.lists(words, max_size=6)), min_size=1, max_size=20), st.integers(1, 60))
def test_small_requests_and_large_chunks_get_the_same_ids(
    rows: list[tuple[str | None, list[str | None]]], times: int
) -> None:
    """Large chunks go through their distinct values, small ones row by row."""
    encoder = LogEncoder(SCHEMA)
    n = len(rows)
    columns = {name: values * n for name, values in ROW.items()}
    columns |= {"item": [r[0] for r in rows], "user": [r[0] for r in rows], "history": [r[1] for r in rows]}
    small = encoder.encode_values(columns)
    repeats = 600 // n + times
    large = encoder.encode_values({name: values * repeats for name, values in columns.items()})
    assert large.num_rows > 512
    expected = pa.concat_tables([small] * repeats).combine_chunks()
    assert large.combine_chunks().equals(expected)


def test_chunked_and_sliced_columns_encode_like_whole_ones(encoder: LogEncoder) -> None:
    items = ["a", "b7", None, "12", "zz"] * 300
    n = len(items)
    raw = pa.table({name: pa.array(values * n) for name, values in ROW.items()} | {"item": pa.array(items)})
    pieces = pa.concat_tables([raw.slice(0, 7), raw.slice(7, 1000), raw.slice(1007)])
    assert encoder.encode(pieces).equals(encoder.encode(raw))
    assert (
        encoder.encode(raw.slice(3, 900)).column("item").to_pylist()
        == encoder.encode(raw).column("item").to_pylist()[3:903]
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"price": [None]}, "column 'price', row 0: is missing"),
        ({"price": [float("nan")]}, "column 'price', row 0: is NaN"),
        ({"age": [float("inf")]}, "column 'age', row 0: is not finite"),
        ({"age": [1e39]}, "column 'age', row 0: is not finite"),
        ({"age": ["old"]}, "column 'age'"),
        ({"item": [1.5]}, "column 'item'.*1.5"),
        ({"item": [["a"]]}, "column 'item'.*expected strings or integers"),
        ({"history": ["a"]}, "column 'history'"),
        ({"title": [5]}, "column 'title'"),
        ({"age": [1, 2]}, "different lengths"),
    ],
)
def test_a_value_that_does_not_fit_is_named(encoder: LogEncoder, change: dict, complaint: str) -> None:
    with pytest.raises(EncodingError, match=complaint):
        encoder.encode_values(ROW | change)


def test_an_absent_column_is_named(encoder: LogEncoder) -> None:
    with pytest.raises(EncodingError, match="column 'item' is absent"):
        encoder.encode_values({name: values for name, values in ROW.items() if name != "item"})
    with pytest.raises(EncodingError, match="column 'item' is absent"):
        encoder.encode(pa.table({"age": [1.0], "price": [1.0]}))


def test_a_schema_that_was_not_fitted_is_refused() -> None:
    with pytest.raises(SchemaError, match="not fitted"):
        LogEncoder(LogSchema("raw", (CategoricalFeature("item"),), (TaskLabel("click"),)))


def test_an_empty_table_encodes_to_an_empty_table(encoder: LogEncoder) -> None:
    table = encoder.encode_values({name: [] for name in ROW})
    assert table.num_rows == 0
    assert table.schema.equals(pa.schema(list(arrow_schema(SCHEMA))[: len(FEATURES)]))


def test_dense_values_are_stored_in_raw_units_as_float32(encoder: LogEncoder) -> None:
    values = np.array([0.1, 16_777_217.0, -3.0e38])
    raw = {name: pa.array(v * 3) for name, v in ROW.items()} | {"age": pa.array(values)}
    assert encoder.encode(pa.table(raw)).column("age").to_pylist() == values.astype(np.float32).tolist()
