"""Encoding the rows of a request gives, bit for bit, what a log of the same rows would hold."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data.log.collate import collate
from rayrec.data.log.direct_encoding import DirectEncoder
from rayrec.data.log.encoding import EncodingError, LogEncoder
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    SequenceFeature,
    TaskLabel,
)

SCHEMA = LogSchema(
    "shop",
    (
        DenseFeature("age", statistics=DenseStatistics(30.0, 10.0, 0.0)),
        DenseFeature("price", transform="none", allow_missing=False),
        CategoricalFeature("item", vocabulary=("b7", "12", "a"), missing_values=("", "?")),
        CategoricalFeature("user", encoding="hash", buckets=1000, missing_values=("", "?")),
        CategoricalFeature("city", encoding="hash", buckets=7, allow_missing=False),
        SequenceFeature("history", max_length=3, shares="item"),
        SequenceFeature("visits", max_length=4, shares="user"),
        SequenceFeature("tags", max_length=2, encoding="hash", buckets=50),
        SequenceFeature("words", max_length=2, vocabulary=("x", "y")),
    ),
    (TaskLabel("click"), TaskLabel("buy")),
)
CODES = st.sampled_from(["b7", " b7", "12", 12, "a", "?", " ? ", "", "new", "Zürich", True, 3.0, None]) | st.text(
    max_size=20
)
LISTS = st.none() | st.lists(CODES, max_size=6)
NUMBERS = st.floats(-1e15, 1e15, allow_nan=False) | st.integers(-(2**53) + 1, 2**53 - 1)
ROW = st.fixed_dictionaries(
    {
        "age": st.none() | NUMBERS, "price": NUMBERS, "item": CODES, "user": CODES, "city": st.sampled_from(["Rome", 7, "x"]),
        "history": LISTS, "visits": LISTS, "tags": LISTS, "words": LISTS,
    }
)  # fmt: skip


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {feature.name: [row[feature.name] for row in rows] for feature in SCHEMA.features}


@pytest.mark.parametrize("version", [1, 2])
@given(
    rows=st.lists(ROW, min_size=1, max_size=5),
    shared=st.sets(st.sampled_from([feature.name for feature in SCHEMA.features])),
    repeats=st.lists(st.integers(1, 3), min_size=5, max_size=5),
)
@settings(max_examples=60)
def test_a_request_is_encoded_as_a_log_is(
    version: Any, rows: list[dict[str, Any]], shared: set[str], repeats: list[int]
) -> None:
    schema = replace(SCHEMA, version=version)
    encoder = LogEncoder(schema)
    repeats = repeats[: len(rows)]
    spread = [row for row, times in zip(rows, repeats, strict=True) for _ in range(times)]
    table, wanted_unknown = encoder.encode_and_count(columns_of(spread))
    wanted = collate(table, schema, labels=False)
    given_once = {name: values for name, values in columns_of(rows).items() if name in shared}
    own = {name: values for name, values in columns_of(spread).items() if name not in shared}
    with patch.object(encoder, "encode_and_count", side_effect=AssertionError("a detour")):
        batch, unknown = DirectEncoder(encoder).encode(own, given_once, repeats)
    assert torch.equal(batch.dense.nan_to_num(1e-7), wanted.dense.nan_to_num(1e-7))
    assert torch.equal(batch.categorical, wanted.categorical)
    assert [s.shape for s in batch.sequences] == [s.shape for s in wanted.sequences]
    assert all(torch.equal(a, b) for a, b in zip(batch.sequences, wanted.sequences, strict=True))
    assert {k: v.tolist() for k, v in unknown.items() if v.any()} == {
        k: v.tolist() for k, v in wanted_unknown.items() if v.any()
    }
    assert (batch.labels.shape, batch.labels.dtype) == (wanted.labels.shape, wanted.labels.dtype)
    assert bool(batch.labels.isnan().all())


GOOD = {
    "age": 31, "price": 2.5, "item": "b7", "user": "u1", "city": "Rome", "history": ["a"], "visits": [], "tags": ["x"],
    "words": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("price", None),
        ("price", float("inf")),
        ("age", 1e39),
        ("city", None),
        ("city", ""),
        ("item", 1.5),
        ("history", "b7"),
    ],
)
def test_what_the_schema_does_not_allow_is_told_as_by_an_import(name: str, value: Any) -> None:
    encoder = LogEncoder(SCHEMA)
    wrong = columns_of([GOOD, GOOD | {name: value}])
    with pytest.raises(EncodingError) as told:
        encoder.encode_and_count(wrong)
    with pytest.raises(EncodingError, match=name) as found:
        DirectEncoder(encoder).encode(wrong)
    assert str(found.value) == str(told.value)
    first = {key: [values[0], values[0]] for key, values in wrong.items() if key != name}
    with pytest.raises(EncodingError, match=name):
        DirectEncoder(encoder).encode(first, {name: [value]}, [2])
    absent = {key: values for key, values in columns_of([GOOD]).items() if key != name}
    with pytest.raises(EncodingError, match=f"column '{name}' is absent"):
        DirectEncoder(encoder).encode(absent)


def test_a_log_without_features_of_a_kind_is_encoded_too() -> None:
    for feature, value in ((SCHEMA.features[0], 3.0), (SCHEMA.features[2], "a"), (SCHEMA.features[7], ["x", "y", "z"])):
        schema = replace(SCHEMA, features=(feature,))
        encoder = LogEncoder(schema)
        columns = {feature.name: [value, value]}
        batch, _ = DirectEncoder(encoder).encode(columns)
        wanted = collate(encoder.encode_values(columns), schema, labels=False)
        assert torch.equal(batch.dense, wanted.dense)
        assert torch.equal(batch.categorical, wanted.categorical)
        assert np.array_equal([s.tolist() for s in batch.sequences], [s.tolist() for s in wanted.sequences])


def test_numbers_that_stand_for_missing_are_missing_in_a_request_too() -> None:
    schema = replace(SCHEMA, features=(DenseFeature("age", transform="none", missing_values=("-999", "NA")),))
    columns = {"age": [-999.0, 5.0, None]}
    encoder = LogEncoder(schema)
    batch, _ = DirectEncoder(encoder).encode(columns)
    assert encoder.encode_values(columns).column("age").to_pylist() == [None, 5.0, None]
    assert batch.dense.isnan().flatten().tolist() == [True, False, True]
