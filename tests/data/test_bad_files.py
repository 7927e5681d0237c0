"""Training from a log with a bad file: one clear error that names the file and the column, and nothing is trained on it.

The same for raw files, before they become a log: tests/data/importers/test_importing.py, and tests/jobs/test_import_logs.py.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import train
from rayrec.data.log import Log, LogError, LogWriter
from rayrec.data.log import folder as log_module
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    LogSchema,
    SequenceFeature,
    TaskLabel,
    write_schema,
)
from rayrec.data.log.streams import LogStream, Reading, StreamConfig
from rayrec.typed_json import ConfigError

SCHEMA = LogSchema(
    "shop",
    (
        DenseFeature("age", transform="none"),
        DenseFeature("price", transform="none", allow_missing=False),
        CategoricalFeature("item", vocabulary=("a", "b", "c")),
        CategoricalFeature("user", encoding="hash", buckets=50),
        SequenceFeature("history", max_length=3, shares="item"),
        SequenceFeature("pages", max_length=3, vocabulary=("x", "y")),
    ),
    (TaskLabel("click"), TaskLabel("buy", observed_when="click")),
    weight="weight",
)
ROWS = 400
CONFIG = StreamConfig(batch_size=50, window_rows=100, shuffle=False, drop_last=False)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Two files of 200 rows in row groups of 100."""
    generator = np.random.default_rng(0)
    lists = [list(range(k)) for k in generator.integers(0, 3, ROWS)]
    columns = {
        "age": pa.array(generator.normal(size=ROWS), pa.float32(), mask=generator.random(ROWS) < 0.2),
        "price": pa.array(generator.normal(size=ROWS), pa.float32()),
        "item": pa.array(generator.integers(0, 4, ROWS), pa.int32()),
        "user": pa.array(generator.integers(0, 51, ROWS), pa.int32()),
        "history": pa.array(lists, pa.list_(pa.int32())),
        "pages": pa.array(lists, pa.list_(pa.int32())),
        "click": pa.array(generator.integers(0, 2, ROWS), pa.float32()),
        "buy": pa.array(generator.integers(0, 2, ROWS), pa.float32(), mask=generator.random(ROWS) < 0.5),
        "weight": pa.array(generator.random(ROWS), pa.float32()),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "ROW_GROUP_ROWS", 100)
        with LogWriter(tmp_path / "log", SCHEMA, rows_per_file=200) as writer:
            writer.write("train", pa.table(columns))
            writer.finish({})
    return Log.open(tmp_path / "log")


@pytest.fixture
def file(log: Log) -> Path:
    """The second file of the log."""
    return log.files("train")[1]


def read(log: Log, reading: Reading | None = None) -> int:
    """Rows read."""
    with LogStream(log, "train", CONFIG, reading=reading or Reading()) as stream:
        return sum(len(batch) for batch in stream.epoch_batches())


def change_column(file: Path, name: str, change: Callable[[list], Any], kind: pa.DataType | None = None) -> None:
    table = pq.read_table(file)
    column = table.column(name)
    values = pa.array(change(column.to_pylist()), kind if kind is not None else column.type)
    table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, file, row_group_size=100)


def test_the_undamaged_log_is_read_whole(log: Log) -> None:
    assert read(log) == ROWS


# Files and columns: found when a stream is opened, before anything is read


def test_a_truncated_file_is_named_at_once(log: Log, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LogError, match=rf"^{file}: not a readable Parquet file \(truncated or damaged\)") as caught:
        LogStream(log, "train", CONFIG)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_named_at_once(log: Log, file: Path) -> None:
    file.write_bytes(b"")
    with pytest.raises(LogError, match=rf"^{file}: the file is empty$"):
        LogStream(log, "train", CONFIG)


def test_a_file_without_rows_is_no_error(log: Log, file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert read(log) == ROWS // 2


@pytest.mark.parametrize("column", ["age", "item", "pages", "buy", "weight"])
def test_an_absent_column_is_named_at_once(log: Log, file: Path, column: str) -> None:
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    with pytest.raises(LogError, match=f"^{file}: column '{column}' is absent; the schema expects"):
        LogStream(log, "train", CONFIG)


@pytest.mark.parametrize(
    ("column", "value", "found", "expected"),
    [
        ("age", "1.5", "string", "float"),
        ("price", 1.5, "double", "float"),
        ("item", "a", "string", "int32"),
        ("history", 1, "int64", "list<"),
        ("click", True, "bool", "float"),
    ],
)
def test_a_column_of_a_wrong_type_is_named_at_once(
    log: Log, file: Path, column: str, value: Any, found: str, expected: str
) -> None:
    kind = pa.array([value]).type
    change_column(file, column, lambda values: [value] * len(values), kind)
    with pytest.raises(LogError, match=f"^{file}: column '{column}' is {found}, expected {expected}"):
        LogStream(log, "train", CONFIG)


def test_a_log_without_a_schema_or_with_a_broken_one_is_named(log: Log) -> None:
    (log.path / "schema.json").write_text('{"name": "x", "features": [{"name": "a", "kind": "dense", "mean": 1}]')
    with pytest.raises(ConfigError, match=f"{log.path / 'schema.json'}: "):
        Log.open(log.path)
    write_schema(replace(SCHEMA, features=(CategoricalFeature("item"),), weight=None), log.path / "schema.json")
    with pytest.raises(ConfigError, match=r"schema\.json: vocabularies or statistics are missing"):
        Log.open(log.path)
    (log.path / "schema.json").unlink()
    with pytest.raises(LogError, match=f"^{log.path}: not a log"):
        Log.open(log.path)


def test_a_training_job_ends_with_one_line_and_leaves_nothing(
    log: Log, file: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    before = sorted(runs.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["train", "ranker", "--name", "bad", "--log", str(log.path)])
    with pytest.raises(SystemExit, match=rf"^error: {file}: not a readable Parquet file") as stop:
        train.main()
    assert "\n" not in str(stop.value.code)
    assert sorted(runs.rglob("*")) == before


# Values: found when the block that holds them is read


def put(row: int, value: Any) -> Callable[[list], list]:
    return lambda values: [*values[:row], value, *values[row + 1 :]]


BAD_VALUES = [
    ("click", 7.0, "a label must be 0, 1 or null (given: 7.0)"),
    ("click", -1.0, "a label must be 0, 1 or null (given: -1.0)"),
    ("click", float("nan"), "a label must be 0, 1 or null (given: nan)"),
    ("buy", float("nan"), "a label must be 0, 1 or null (given: nan)"),
    ("age", float("inf"), "a number must be finite (given: inf)"),
    ("price", float("nan"), "a number is missing, which the schema does not allow (given: nan)"),
    ("price", None, "a number is missing, which the schema does not allow (given: None)"),
    ("item", 4, "an id must be at least 0 and below 4 (given: 4)"),
    ("item", -1, "an id must be at least 0 and below 4 (given: -1)"),
    ("user", 51, "an id must be at least 0 and below 51 (given: 51)"),
    ("history", [1, 4], "ids must be at least 0 and below 4 (given: [1, 4])"),
    ("pages", [-2], "ids must be at least 0 and below 3 (given: [-2])"),
    ("weight", -0.5, "a weight must be finite and not negative (given: -0.5)"),
    ("weight", float("inf"), "a weight must be finite and not negative (given: inf)"),
]


@pytest.mark.parametrize(("column", "value", "what"), BAD_VALUES)
def test_a_bad_value_is_named_with_file_column_and_row(
    log: Log, file: Path, column: str, value: Any, what: str
) -> None:
    change_column(file, column, put(142, value))
    with pytest.raises(LogError) as caught:
        read(log)
    assert str(caught.value) == f"{file.resolve()}: row 143, column {column!r}: {what}"


def test_the_rows_before_a_bad_one_are_handed_out_and_none_after(log: Log, file: Path) -> None:
    change_column(file, "click", put(142, 7.0))
    with LogStream(log, "train", CONFIG) as stream:
        assert sum(len(stream.next_batch()) for _ in range(6)) == 300
        with pytest.raises(LogError, match="row 143, column 'click'"):
            stream.next_batch()


def test_a_missing_number_or_label_is_none_where_the_schema_allows_it(log: Log, file: Path) -> None:
    change_column(file, "age", put(142, float("nan")))
    change_column(file, "click", put(142, None))
    assert read(log) == ROWS


@pytest.mark.parametrize("change", [lambda f: change_column(f, "click", put(142, 7.0)), lambda f: f.write_bytes(b"")])
def test_ray_tells_the_same(log: Log, file: Path, change: Callable[[Path], None], ray_session: None) -> None:
    messages = []
    change(file)
    readers: tuple[Literal["in_process", "ray"], ...] = ("in_process", "ray")
    for reader in readers:
        with pytest.raises(LogError) as caught:
            read(log, Reading(reader))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert str(file) in messages[0]
