"""Collation against a naive reference that walks over rows and features one by one."""

import math

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.batch import Batch
from rayrec.data.log.collate import batch_of, collate
from rayrec.data.log.packing import pack
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, SequenceFeature, TaskLabel

SCHEMA = LogSchema(
    name="tiny",
    features=(
        SequenceFeature("pages", max_length=2, encoding="hash", buckets=9),
        DenseFeature("age", transform="none"),
        CategoricalFeature("user", encoding="hash", buckets=9),
        DenseFeature("price", transform="none"),
        CategoricalFeature("item", encoding="hash", buckets=9),
        SequenceFeature("history", max_length=4, shares="item"),
    ),
    tasks=(TaskLabel("click"), TaskLabel("buy", observed_when="click"), TaskLabel("like")),
    weight="weight",
    request_id="request",
    extras=("truth",),
)
NUMBER = st.none() | st.floats(-1e6, 1e6, width=32)
ID = st.none() | st.integers(0, 9)
LABEL = st.sampled_from([None, 0.0, 1.0])
LIST = st.none() | st.lists(st.integers(1, 9), max_size=7)
ROW = st.fixed_dictionaries(
    {
        "age": NUMBER,
        "price": NUMBER,
        "user": ID,
        "item": ID,
        "pages": LIST,
        "history": LIST,
        "click": LABEL,
        "buy": LABEL,
        "like": LABEL,
        "weight": st.floats(0, 10, width=32),
        "request": st.integers(-(2**62), 2**62),
        "truth": st.none() | st.floats(0, 1),
    }
)
TYPES = pa.schema(
    [(name, pa.float32()) for name in ("age", "price", "click", "buy", "like", "weight")]
    + [(name, pa.int32()) for name in ("user", "item")]
    + [(name, pa.list_(pa.int32())) for name in ("pages", "history")]
    + [("request", pa.int64()), ("truth", pa.float64())]
)


def naive(rows: list[dict], *, labels: bool) -> Batch:
    """The docstring of ``collate``, row by row."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    def padded(values: list[int] | None, length: int) -> list[int]:
        kept = (values or [])[-length:]
        return kept + [0] * (length - len(kept))

    def label(row: dict, task: TaskLabel) -> float:
        hidden = task.observed_when is not None and row[task.observed_when] != 1.0
        return math.nan if hidden or not labels else number(row[task.name])

    def matrix(values: list[list], dtype: torch.dtype, width: int) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).reshape(len(rows), width)

    return Batch(
        dense=matrix([[number(row[f.name]) for f in SCHEMA.dense] for row in rows], torch.float32, 2),
        categorical=matrix([[row[f.name] or 0 for f in SCHEMA.categorical] for row in rows], torch.int64, 2),
        labels=matrix([[label(row, task) for task in SCHEMA.tasks] for row in rows], torch.float32, 3),
        sequences=tuple(
            matrix([padded(row[f.name], f.max_length) for row in rows], torch.int64, f.max_length)
            for f in SCHEMA.sequences
        ),
        weights=torch.tensor([row["weight"] for row in rows], dtype=torch.float32) if labels else None,
        extras={
            "request": torch.tensor([row["request"] for row in rows], dtype=torch.int64),
            "truth": torch.tensor([number(row["truth"]) for row in rows], dtype=torch.float64),
        },
    )


def assert_same(left: Batch, right: Batch) -> None:
    torch.testing.assert_close(vars(left), vars(right), rtol=0, atol=0, equal_nan=True)


@given(rows=st.lists(ROW, max_size=12), labels=st.booleans())
@settings(deadline=None)
def test_collation_equals_a_row_by_row_reference(rows: list[dict], labels: bool) -> None:
    table = pa.Table.from_pylist(rows, schema=TYPES)
    assert_same(collate(table, SCHEMA, extras=("request", "truth"), labels=labels), naive(rows, labels=labels))


@given(rows=st.lists(ROW, min_size=1, max_size=12), data=st.data())
@settings(deadline=None)
def test_picked_rows_are_the_rows_of_the_whole_batch(rows: list[dict], data: st.DataObject) -> None:
    packed = pack(pa.Table.from_pylist(rows, schema=TYPES), SCHEMA, extras=("truth",))
    order = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(1, len(rows)))]
    whole = batch_of(packed)
    assert_same(batch_of(packed, np.array(order)), whole[torch.tensor(order)])
    assert_same(batch_of(packed, slice(1, 3)), whole[1:3])


def test_a_batch_owns_its_memory() -> None:
    row = {"age": 1.0, "user": 2, "pages": [3], "click": 1.0, "weight": 1.0, "truth": 0.5}
    packed = pack(pa.Table.from_pylist([row, row], schema=TYPES), SCHEMA, extras=("truth",))
    for batch in (batch_of(packed), batch_of(packed, slice(0, 2)), batch_of(packed, np.array([1, 0]))):
        batch.dense.fill_(9)
        batch.labels.fill_(9)
        batch.categorical.fill_(9)
        batch.sequences[0].fill_(9)
        batch.extras["truth"].fill_(9)
        assert batch.weights is not None
        batch.weights.fill_(9)
    assert_same(batch_of(packed), collate(pa.Table.from_pylist([row, row], schema=TYPES), SCHEMA, extras=("truth",)))
