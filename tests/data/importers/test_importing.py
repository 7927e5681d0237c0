"""Importing tables: what is good becomes a log, what is bad is set aside by reason, what is broken is one clear error."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from rayrec.data.importing import reading
from rayrec.data.importing.importing import ImportOptions
from rayrec.data.importing.reading import SourceError
from rayrec.data.importing.table import TableFiles, TextFormat, import_table
from rayrec.data.log import Log, LogError, read_footer
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    LogSchema,
    SchemaError,
    SequenceFeature,
    TaskLabel,
    read_schema,
    write_schema,
)
from rayrec.data.log.splitting import ColumnSplit, FileSplit, HashSplit, OrderSplit, SplitRule, TimeSplit

SCHEMA = LogSchema(
    name="shop",
    features=(
        DenseFeature("age"),
        DenseFeature("price", transform="log1p", allow_missing=False),
        CategoricalFeature("item"),
        CategoricalFeature("user", encoding="hash", buckets=100, allow_missing=False),
        SequenceFeature("history", shares="item"),
    ),
    tasks=(TaskLabel("click"), TaskLabel("buy", observed_when="click")),
    timestamp="time",
    request_id="request",
    extras=("score",),
)
QUIET = ImportOptions(quiet=True)


def good_rows(n: int = 200, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    click = (generator.random(n) < 0.3).astype(np.int64)
    return pa.table(
        {
            "age": pa.array(generator.integers(18, 80, n), mask=generator.random(n) < 0.1),
            "price": generator.exponential(5.0, n),
            "item": [f"item-{i}" for i in generator.zipf(2.0, n) % 20],
            "user": [f"user-{i}" for i in generator.integers(0, 50, n)],
            "history": [[f"item-{i}" for i in generator.integers(0, 20, k)] for k in generator.integers(0, 5, n)],
            "click": click,
            "buy": pa.array(click * (generator.random(n) < 0.5), mask=click == 0),
            "time": generator.permutation(n) + 1_700_000_000_000,
            "request": np.arange(n) // 4,
            "score": generator.random(n),
        }
    )


def changed(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), column, values)


def put(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    """One value of a column exchanged."""
    values = table.column(column).to_pylist()
    values[row] = value
    return changed(table, column, pa.array(values))


def import_parquet(
    tmp_path: Path, table: pa.Table, split: SplitRule | None = None, options: ImportOptions = QUIET, **more: Any
) -> Log:
    pq.write_table(table, tmp_path / "raw.parquet")
    files = TableFiles((tmp_path / "raw.parquet",))
    split = split if split is not None else HashSplit()
    return Log.open(import_table(files, SCHEMA, split, tmp_path / "log", options=options, **more))


def read(log: Log, *splits: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(f) for split in splits or log.splits for f in log.files(split))


def quarantine(log: Log) -> list[dict[str, Any]]:
    return [row for f in sorted((log.path / "quarantine").glob("*")) for row in pq.read_table(f).to_pylist()]


def fails(tmp_path: Path, message: str, *, file: Path, schema: LogSchema = SCHEMA, **more: Any) -> None:
    """The import is one SourceError that names the file, and nothing is left of it."""
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(SourceError, match=message) as caught:
        import_table(TableFiles((file,)), schema, HashSplit(), tmp_path / "log", options=QUIET, **more)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


# Good tables


def test_every_good_row_is_in_the_log_as_it_was(tmp_path: Path) -> None:
    table = good_rows()
    log = import_parquet(tmp_path, table)
    by_time = {row["time"]: row for row in table.to_pylist()}
    rows = read(log).to_pylist()
    assert len(rows) == len(by_time) == 200
    items = (None, *(log.schema.categorical[0].vocabulary or ()))
    for row in rows:
        raw = by_time[row["time"]]
        known = [item if item in items else None for item in (raw["item"], *raw["history"])]
        assert [items[i] for i in (row["item"], *row["history"])] == known
        assert row["price"] == np.float32(raw["price"])
        for name in ("age", "click", "buy", "request", "score"):
            assert row[name] == raw[name]


def test_vocabulary_and_statistics_come_from_the_training_rows_alone(tmp_path: Path) -> None:
    table = good_rows(2_000)
    log = import_parquet(tmp_path, table)
    training = set(read(log, "train").column("time").to_pylist())
    raw = [row for row in table.to_pylist() if row["time"] in training]
    prices = np.log1p([row["price"] for row in raw])
    ages = [row["age"] for row in raw if row["age"] is not None]
    age, price = (f.statistics for f in log.schema.dense)
    assert age is not None
    assert price is not None
    assert (price.mean, price.std, price.missing_share) == pytest.approx((prices.mean(), prices.std(), 0.0))
    assert (age.mean, age.std) == pytest.approx((np.mean(ages), np.std(ages)))
    assert age.missing_share == pytest.approx(1 - len(ages) / len(raw))
    shares = np.linspace(0, 1, 65).clip(0.001, 0.999)
    assert price.quantiles == pytest.approx(np.quantile(prices, shares))  # after log1p, as the mean
    assert age.quantiles == pytest.approx(np.quantile(ages, shares))
    seen = [item for row in raw for item in (row["item"], *row["history"])]
    expected = sorted(set(seen), key=lambda item: (-seen.count(item), item))
    assert log.schema.categorical[0].vocabulary == tuple(expected)


def test_csv_tsv_gzip_and_parquet_of_the_same_rows_give_the_same_log(tmp_path: Path) -> None:
    table = good_rows()
    expected = read(import_parquet(tmp_path, table, OrderSplit()))
    text = table.to_pylist()

    def cell(value: Any) -> str:
        return "" if value is None else "|".join(value) if isinstance(value, list) else repr(value).strip("'")

    for suffix, delimiter in ((".csv", ","), (".tsv", "\t"), (".csv.gz", ",")):
        lines = [delimiter.join(table.column_names)] + [delimiter.join(cell(v) for v in row.values()) for row in text]
        file = tmp_path / f"raw{suffix}"
        content = "\n".join(lines).encode()
        file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        out = import_table(TableFiles((file,)), SCHEMA, OrderSplit(), tmp_path / f"log{suffix}", options=QUIET)
        assert read(Log.open(out)).equals(expected)


def test_the_size_of_the_chunks_does_not_change_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = put(good_rows(1_000), "click", 500, 7)
    whole = import_parquet(tmp_path, table, TimeSplit())
    monkeypatch.setattr(reading, "PARQUET_ROWS", 7)
    (tmp_path / "small").mkdir()
    small = import_parquet(tmp_path / "small", table, TimeSplit())
    assert read(small).equals(read(whole))
    moments = [(f.statistics.mean, f.statistics.std) for f in small.schema.dense if f.statistics]
    assert moments == [pytest.approx((f.statistics.mean, f.statistics.std)) for f in whole.schema.dense if f.statistics]
    assert small.schema.categorical == whole.schema.categorical
    assert [row["row"] for row in quarantine(small)] == [501]


def test_a_schema_file_that_a_user_wrote_is_enough(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("colour,size,bought\nred,1,1\nblue,2,0\nred,,0\ngreen,4,1\n" * 10)
    (tmp_path / "schema.json").write_text(
        json.dumps(
            {
                "name": "mine",
                "features": [{"name": "colour", "kind": "categorical"}, {"name": "size", "kind": "dense"}],
                "tasks": [{"name": "bought"}],
            }
        )
    )
    out = import_table(
        TableFiles((tmp_path / "rows.csv",)),
        tmp_path / "schema.json",
        HashSplit(0.0, 0.0),
        tmp_path / "log",
        options=QUIET,
    )
    log = Log.open(out)
    assert log.schema.categorical[0].vocabulary == ("red", "blue", "green")
    assert read(log).num_rows == 40


def test_a_fitted_schema_is_used_as_it_is_for_unlabeled_rows(tmp_path: Path) -> None:
    labeled = import_parquet(tmp_path, good_rows())
    more = good_rows(50, seed=1).drop_columns(["click", "buy"])
    pq.write_table(more, tmp_path / "more.parquet")
    out = import_table(
        TableFiles((tmp_path / "more.parquet",)),
        labeled.path / "schema.json",
        HashSplit(0.0, 0.0),
        tmp_path / "unlabeled",
        unlabeled=True,
        options=QUIET,
    )
    unlabeled = Log.open(out)
    assert unlabeled.schema == labeled.schema
    assert read(unlabeled).column("click").null_count == 50


def test_files_given_for_each_split_stay_apart(tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("valid", 1), ("test", 2)):
        (tmp_path / name).mkdir()
        pq.write_table(good_rows(30 + seed, seed=seed), tmp_path / name / "a.parquet")
    files = TableFiles((tmp_path / "train",), valid=(tmp_path / "valid",), test=(tmp_path / "test" / "a.parquet",))
    log = Log.open(import_table(files, SCHEMA, FileSplit(), tmp_path / "log", options=QUIET))
    assert [log.rows(split) for split in log.splits] == [30, 31, 32]
    with pytest.raises(SourceError, match="split by file"):
        import_table(files, SCHEMA, HashSplit(), tmp_path / "other", options=QUIET)


def test_a_column_can_name_the_split(tmp_path: Path) -> None:
    parts = ["train", "validation", "test", "train"] * 50
    log = import_parquet(tmp_path, good_rows().append_column("part", pa.array(parts)), ColumnSplit("part"))
    assert [log.rows(split) for split in log.splits] == [100, 50, 50]


def test_rows_of_one_user_stay_together_under_a_hash_of_the_user(tmp_path: Path) -> None:
    log = import_parquet(tmp_path, good_rows(1_000), HashSplit(0.2, 0.2, columns=("user",)))
    times = {split: set(read(log, split).column("time").to_pylist()) for split in log.splits}
    raw = {row["time"]: row["user"] for row in pq.read_table(tmp_path / "raw.parquet").to_pylist()}
    by_split = [{raw[time] for time in times[split]} for split in log.splits]
    assert sum(len(users) for users in by_split) == len(set.union(*by_split)) == len(set(raw.values()))


def test_quoted_text_with_delimiters_and_line_ends_is_one_value(tmp_path: Path) -> None:
    schema = LogSchema("q", (CategoricalFeature("name"),), (TaskLabel("click"),))
    (tmp_path / "q.csv").write_text('name,click\n"a,\nb",1\nc,0\n' * 1 + 'c,0\n"a,\nb",1\n')
    out = import_table(TableFiles((tmp_path / "q.csv",)), schema, HashSplit(0, 0), tmp_path / "log", options=QUIET)
    assert Log.open(out).schema.categorical[0].vocabulary == ("a,\nb", "c")


def test_a_file_without_header_takes_the_given_names(tmp_path: Path) -> None:
    schema = LogSchema("h", (CategoricalFeature("name"),), (TaskLabel("click"),))
    (tmp_path / "h.txt").write_text("a;1\nb;0\n" * 5)
    text = TextFormat(delimiter=";", columns=("name", "click"))
    out = import_table(
        TableFiles((tmp_path / "h.txt",)), schema, HashSplit(0, 0), tmp_path / "log", text=text, options=QUIET
    )
    assert read(Log.open(out)).num_rows == 10


# Bad rows


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("click", 7, "click: label is not 0 or 1"),
        ("click", float("nan"), "click: label is NaN"),
        ("click", "yes", "click: label is not 0 or 1"),
        ("buy", -1, "buy: label is not 0 or 1"),
        ("price", float("nan"), "price: is NaN"),
        ("price", None, "price: is missing"),
        ("price", "cheap", "price: is not a number"),
        ("age", float("inf"), "age: is not finite"),
        ("user", None, "user: is missing"),
        ("user", "", "user: is missing"),
        ("item", 1.5, "item: is neither text nor a whole number"),
        ("time", None, "time: is missing"),
        ("time", "yesterday", "time: is not a time"),
        ("request", None, "request: is missing"),
        ("score", "high", "score: is not a number"),
    ],
)
def test_a_bad_value_sets_its_row_aside_with_the_reason(tmp_path: Path, column: str, value: Any, reason: str) -> None:
    table = good_rows()
    if isinstance(value, str):  # a column of text, as text files give it
        text = [None if v is None else str(v) for v in table.column(column).to_pylist()]
        table = changed(table, column, pa.array(text))
    elif isinstance(value, float) and column == "item":
        table = changed(table, column, pa.array(np.arange(200.0)))
    elif isinstance(value, float):
        table = changed(table, column, table.column(column).cast(pa.float64()))
    log = import_parquet(tmp_path, put(table, column, 41, value))
    (row,) = quarantine(log)
    assert row["reason"] == reason
    assert row["source"] == str(tmp_path / "raw.parquet")
    assert row["row"] == 42
    shown = json.loads(row["values"])[column]
    assert shown == value or (isinstance(value, float) and math.isnan(value) and math.isnan(shown))
    assert json.loads((log.path / "import.json").read_text())["quarantined"] == {reason: 1}
    assert read(log).num_rows == 199


def test_rows_with_a_wrong_number_of_fields_are_set_aside_with_their_numbers(tmp_path: Path) -> None:
    schema = LogSchema("f", (CategoricalFeature("name"),), (TaskLabel("click"),))
    lines = [f"n{i % 3},{i % 2}" for i in range(30)]
    lines[4], lines[20], lines[29] = "alone", "a,1,2", "last"
    lines[10] = "n,7"
    (tmp_path / "f.csv").write_text("name,click\n" + "\n".join(lines) + "\n")
    out = import_table(TableFiles((tmp_path / "f.csv",)), schema, HashSplit(), tmp_path / "log", options=QUIET)
    assert sorted((row["row"], row["reason"], row["values"]) for row in quarantine(Log.open(out))) == [
        (5, "wrong number of fields: 1 instead of 2", "alone"),
        (11, "click: label is not 0 or 1", '{"name": "n", "click": "7"}'),
        (21, "wrong number of fields: 3 instead of 2", "a,1,2"),
        (30, "wrong number of fields: 1 instead of 2", "last"),
    ]


def test_a_bad_row_teaches_the_schema_nothing(tmp_path: Path) -> None:
    table = put(put(good_rows(), "item", 7, "only here"), "click", 7, 7)
    log = import_parquet(tmp_path, table, HashSplit(0.0, 0.0))
    assert "only here" not in (log.schema.categorical[0].vocabulary or ())


def test_a_row_that_is_bad_twice_is_counted_once(tmp_path: Path) -> None:
    log = import_parquet(tmp_path, put(put(good_rows(), "click", 3, 7), "buy", 3, 9))
    assert [row["reason"] for row in quarantine(log)] == ["click: label is not 0 or 1"]


def test_missing_labels_are_not_bad(tmp_path: Path) -> None:
    log = import_parquet(tmp_path, put(good_rows(), "click", 3, None))
    assert read(log).column("click").null_count == 1
    assert quarantine(log) == []


def test_too_many_bad_rows_are_an_error_that_names_the_reason(tmp_path: Path) -> None:
    table = good_rows(100)
    labels = np.where(np.arange(100) < 60, 7, table.column("click").to_numpy())
    table = changed(table, "click", pa.array(labels))
    pq.write_table(table, tmp_path / "bad.parquet")
    fails(tmp_path, r"60 of 100 rows are bad.*0\.5.*label is not 0 or 1", file=tmp_path / "bad.parquet")
    log = import_parquet(tmp_path, table, options=ImportOptions(max_quarantined=0.6, quiet=True))
    assert read(log).num_rows == 40


# Broken files


def test_a_truncated_parquet_file_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "cut.parquet"
    pq.write_table(good_rows(), file)
    file.write_bytes(file.read_bytes()[:-100])
    fails(tmp_path, "not a readable Parquet file", file=file)


def test_a_parquet_file_with_damaged_pages_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "damaged.parquet"
    pq.write_table(good_rows(), file)
    start = read_footer(file).row_group(0).column(1).data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 200] = b"\xff" * 200
    file.write_bytes(bytes(content))
    fails(tmp_path, "damaged Parquet file", file=file)


@pytest.mark.parametrize("name", ["empty.csv", "empty.parquet", "empty.tsv.gz"])
def test_an_empty_file_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    fails(tmp_path, "the file is empty", file=tmp_path / name)


def test_a_file_with_a_header_and_no_rows_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "header.csv").write_text(",".join(good_rows().column_names) + "\n")
    fails(tmp_path, "no rows", file=tmp_path / "header.csv")
    pq.write_table(good_rows().slice(0, 0), tmp_path / "none.parquet")
    fails(tmp_path, "no rows", file=tmp_path / "none.parquet")


def test_an_absent_file_is_one_error(tmp_path: Path) -> None:
    fails(tmp_path, "no such file", file=tmp_path / "nowhere.csv")


def test_a_folder_without_tables_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fails(tmp_path, "no file", file=tmp_path / "folder")


@pytest.mark.parametrize("column", ["age", "item", "history", "click", "time", "request", "score"])
def test_an_absent_column_is_one_error_that_names_it(tmp_path: Path, column: str) -> None:
    file = tmp_path / "narrow.parquet"
    pq.write_table(good_rows().drop_columns([column]), file)
    fails(tmp_path, f"column '{column}' is absent", file=file)
    out = tmp_path / "log"
    for rule in (TimeSplit(), HashSplit(columns=("user",)), OrderSplit()):
        with pytest.raises(SourceError, match=f"{file}.*column '{column}'"):
            import_table(TableFiles((file,)), SCHEMA, rule, out, options=QUIET)
    text = good_rows().drop_columns([column, *({"history"} - {column})])
    pa.csv.write_csv(text, tmp_path / "narrow.csv")
    schema = LogSchema(
        SCHEMA.name,
        tuple(f for f in SCHEMA.features if f.name != "history" or column == "history"),
        SCHEMA.tasks,
        timestamp="time",
        request_id="request",
        extras=("score",),
    )
    fails(tmp_path, f"column '{column}' is absent", file=tmp_path / "narrow.csv", schema=schema)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "age",
            pa.array(["young"] * 200),
            "column 'age' is wrong in every row, of 200; row 1: is not a number.*'young'",
        ),
        ("click", pa.array([7] * 200), "column 'click' is wrong in every row.*label is not 0 or 1.*7"),
        ("click", pa.array([float("nan")] * 200), "column 'click' is wrong in every row.*label is NaN"),
        ("price", pa.array([None] * 200, pa.float64()), "column 'price' is wrong in every row.*is missing"),
        ("price", pa.array([[1.0]] * 200), "column 'price' is list<.*>, expected numbers"),
        ("item", pa.array([{"a": 1}] * 200), "column 'item' is struct<.*>, expected strings or integers"),
        ("history", pa.array([1] * 200), "column 'history' is int64, expected lists"),
        ("time", pa.array([True] * 200), "column 'time' is bool, expected"),
    ],
)
def test_a_column_of_a_wrong_type_is_one_error_that_names_it(
    tmp_path: Path, column: str, values: pa.Array, message: str
) -> None:
    file = tmp_path / "typed.parquet"
    pq.write_table(changed(good_rows(), column, values), file)
    fails(tmp_path, message, file=file)


def test_one_wholly_wrong_file_among_good_ones_is_an_error_too(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    for i in range(5):
        pq.write_table(good_rows(seed=i), folder / f"part-{i}.parquet")
    pq.write_table(changed(good_rows(20), "click", pa.array([7] * 20)), folder / "part-3.parquet")
    with pytest.raises(SourceError, match=r"part-3\.parquet: column 'click' is wrong in every row, of 20"):
        import_table(TableFiles((folder,)), SCHEMA, HashSplit(), tmp_path / "log", options=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_text_file_that_is_not_utf8_is_one_error(tmp_path: Path) -> None:
    schema = LogSchema("u", (CategoricalFeature("name"),), (TaskLabel("click"),))
    (tmp_path / "latin.csv").write_bytes("name,click\nköln,1\n".encode("latin-1"))
    fails(tmp_path, "not UTF-8 text", file=tmp_path / "latin.csv", schema=schema)
    late = b"name,click\n" + b"a,1\n" * 100_000 + "köln,1\n".encode("latin-1")
    (tmp_path / "late.csv").write_bytes(late)
    fails(tmp_path, "column 'name' is not UTF-8 text", file=tmp_path / "late.csv", schema=schema)


def test_a_truncated_gzip_file_is_one_error(tmp_path: Path) -> None:
    schema = LogSchema("z", (CategoricalFeature("name"),), (TaskLabel("click"),))
    content = gzip.compress("".join(f"name-{i * 7919 % 10_007},1\n" for i in range(200_000)).encode())
    (tmp_path / "cut.csv.gz").write_bytes(content[: len(content) // 2])
    text = TextFormat(columns=("name", "click"))
    fails(tmp_path, "damaged", file=tmp_path / "cut.csv.gz", schema=schema, text=text)


def test_a_file_whose_every_row_has_other_fields_is_one_error(tmp_path: Path) -> None:
    schema = LogSchema("f", (CategoricalFeature("name"),), (TaskLabel("click"),))
    (tmp_path / "f.csv").write_text("name,click\n" + "a;1\n" * 20)
    fails(tmp_path, "every row is broken, of 20.*1 instead of 2", file=tmp_path / "f.csv", schema=schema)


def test_a_header_that_repeats_a_name_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("age,age\n1,2\n")
    fails(tmp_path, "column 'age' is there more than once", file=tmp_path / "twice.csv")


def test_a_file_of_an_unknown_kind_asks_for_a_delimiter(tmp_path: Path) -> None:
    (tmp_path / "rows.dat").write_text("a b\n")
    fails(tmp_path, "delimiter", file=tmp_path / "rows.dat")


def test_a_schema_file_with_a_mistake_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(
        '{"name": "x", "features": [{"name": "a", "kind": "dense", "mean": 1}], "tasks": []}'
    )
    with pytest.raises(SchemaError, match=r"schema\.json.*features.*mean"):
        import_table(TableFiles((tmp_path,)), tmp_path / "schema.json", HashSplit(), tmp_path / "log", options=QUIET)


def test_no_row_for_training_is_an_error(tmp_path: Path) -> None:
    table = good_rows().append_column("part", pa.array(["test"] * 200))
    with pytest.raises(SourceError, match="none of 200 good rows falls into the training split"):
        import_parquet(tmp_path, table, ColumnSplit("part"))


# Whole or not there


def test_a_log_that_exists_is_kept_unless_overwriting_is_allowed(tmp_path: Path) -> None:
    log = import_parquet(tmp_path, good_rows())
    with pytest.raises(LogError, match="exists already"):
        import_parquet(tmp_path, good_rows(50))
    assert read(log).num_rows == 200
    assert read(import_parquet(tmp_path, good_rows(50), options=ImportOptions(overwrite=True))).num_rows == 50


def test_a_failed_import_leaves_the_log_it_would_have_replaced(tmp_path: Path) -> None:
    log = import_parquet(tmp_path, good_rows())
    with pytest.raises(SourceError):
        import_parquet(tmp_path, good_rows(50).drop_columns(["age"]), options=ImportOptions(overwrite=True, quiet=True))
    assert read(log).num_rows == 200
    assert list(log.path.parent.glob(".log.*")) == []


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayrec.data.log import LogWriter

    def interrupted(self: LogWriter, table: pa.Table) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LogWriter, "quarantine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_parquet(tmp_path, good_rows())
    assert [path.name for path in tmp_path.iterdir()] == ["raw.parquet"]


def test_the_schema_on_disk_is_fitted_and_can_be_written_back(tmp_path: Path) -> None:
    log = import_parquet(tmp_path, good_rows())
    assert log.schema.fitted
    write_schema(log.schema, tmp_path / "again.json")
    assert read_schema(tmp_path / "again.json") == log.schema


def test_progress_of_a_long_import_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rayrec.data.importing.progress import ImportProgress

    progress = ImportProgress("pass 1 of 2, fitting", quiet=False, every_seconds=0.0)
    progress.advance(1_000)
    progress.advance(234)
    assert "pass 1 of 2, fitting: 1,234 rows so far" in capsys.readouterr().err
