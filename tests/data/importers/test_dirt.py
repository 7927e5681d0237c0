"""Tables as people have them: blanks, quotes, times, spellings. What changes a value is declared; what is wrong is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data.importing import parquet_batches, reading
from rayrec.data.importing.importing import ImportOptions
from rayrec.data.importing.quotes import quote_behind_blank
from rayrec.data.importing.reading import SourceError, read_parquet
from rayrec.data.importing.table import TableFiles, TextFormat, import_table
from rayrec.data.log import Log, folder, read_footer
from rayrec.data.log.raw_columns import NumberSpelling, as_numbers
from rayrec.data.log.row_checks import check_rows
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    LogSchema,
    SchemaError,
    SequenceFeature,
    TaskLabel,
    TextFeature,
)
from rayrec.data.log.splitting import HashSplit, SplitInput, SplitRule, TimeSplit, prepare
from rayrec.data.log.times import TimeSpelling
from rayrec.typed_json import ConfigError, from_json, to_json

QUIET = ImportOptions(quiet=True)
CLICK = TaskLabel("click")
ALL_TRAIN = HashSplit(valid_share=0.0, test_share=0.0)


def import_text(
    tmp_path: Path,
    content: str | bytes,
    schema: LogSchema,
    split: SplitRule = ALL_TRAIN,
    name: str = "raw.csv",
    **more: Any,
) -> Log:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    files = TableFiles((tmp_path / name,))
    return Log.open(import_table(files, schema, split, tmp_path / "log", options=QUIET, **more))


def quarantined(log: Log) -> dict[str, int]:
    found: dict[str, int] = json.loads((log.path / "import.json").read_text())["quarantined"]
    return found


def rows_of(log: Log, split: str = "train") -> list[dict[str, Any]]:
    return [row for file in log.files(split) for row in pq.read_table(file).to_pylist()]


# Blanks


def test_blanks_around_a_value_are_no_part_of_it_so_that_missing_values_match(tmp_path: Path) -> None:
    schema = LogSchema(
        "shop",
        (
            CategoricalFeature("country", missing_values=("?",)),
            CategoricalFeature("user", encoding="hash", buckets=100, missing_values=(" ?",)),
            SequenceFeature("viewed"),
            DenseFeature("price"),
        ),
        (CLICK,),
    )
    text = "country,user,viewed,price,click\n de, u1,a | b, 1.5, 1\n ?,?,b|a , 2,0\nde,u1,a|b,3,0\n"
    log = import_text(tmp_path, text, schema)
    assert [feature.vocabulary for feature in (*log.schema.categorical[:1], *log.schema.sequences)] == [
        ("de",),
        ("a", "b"),
    ]
    first, second, third = rows_of(log)
    assert (first["country"], second["country"], second["user"]) == (1, 0, 0)
    assert first | {"price": 3.0, "click": 0.0} == third


def test_a_split_by_user_keeps_a_user_together_whose_name_has_blanks_in_places(tmp_path: Path) -> None:
    schema = LogSchema("shop", (CategoricalFeature("user"),), (CLICK,))
    lines = [f"{blank}u{user},{user % 2}" for user in range(40) for blank in ("", " ")]
    log = import_text(tmp_path, "user,click\n" + "\n".join(lines), schema, HashSplit(columns=("user",)))
    assert [log.rows(split) % 2 for split in ("train", "valid", "test")] == [0, 0, 0]


def test_schemas_and_logs_of_version_1_keep_the_blanks_that_their_models_know(tmp_path: Path) -> None:
    schema = LogSchema("shop", (CategoricalFeature("country"),), (CLICK,), version=1)
    log = import_text(tmp_path, "country,click\n de,1\nde,0\n", schema)
    assert log.schema.categorical[0].vocabulary == (" de", "de")
    assert log.schema.version == 1
    assert pa.table({"id": [row["country"] for row in rows_of(log)]}).column("id").to_pylist() == [1, 2]


# Quotes, encodings, delimiters

SHOP = LogSchema("shop", (CategoricalFeature("user"), DenseFeature("price")), (CLICK,))
TIMED = LogSchema("shop", (), (CLICK,), timestamp="time")
LINES = [f"u{i},{i}.5,{i % 2}" for i in range(20)]


def timed(times: list[str]) -> str:
    return "time,click\n" + "\n".join(f"{time},{i % 2}" for i, time in enumerate(times))


def with_lines(*changed: tuple[int, str]) -> str:
    lines = list(LINES)
    for number, line in changed:
        lines[number] = line
    return "user,price,click\n" + "\n".join(lines)


@pytest.mark.parametrize("line", ['"u5,1.5,0', 'u5,"1.5,0', 'u5,1.5,"0'])
@pytest.mark.parametrize("at", [3, 18, 19])
def test_a_quote_that_is_never_closed_is_an_error_with_its_line(tmp_path: Path, line: str, at: int) -> None:
    with pytest.raises(SourceError, match=rf"raw.csv: line {at + 2}: a quote is opened and never closed.*--no-quoting"):
        import_text(tmp_path, with_lines((at, line)), SHOP)


def test_a_quote_whose_end_lies_beyond_what_is_read_at_once_is_an_error_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 100)
    with pytest.raises(SourceError, match=r"line 5: a quote is opened and never closed"):
        import_text(tmp_path, with_lines((3, '"u5,1.5,0')), SHOP)
    with pytest.raises(SourceError, match=r"a row is longer than .* after row \d+; a stray quote"):
        import_text(tmp_path, with_lines((3, '"u5,1.5,0'), (19, 'u9",1,1')), SHOP)


@pytest.mark.parametrize(
    ("first", "last"), [('"u5,1.5,0', 'u7",1.5,0'), ('"u5,1.5,0', 'u7,1"5,0'), ('u,1.5,"0', 'u,1.5,0"')]
)
def test_rows_between_two_stray_quotes_are_set_aside_each_as_one(tmp_path: Path, first: str, last: str) -> None:
    log = import_text(tmp_path, with_lines((3, first), (9, last)), SHOP)
    (quarantined,) = json.loads((log.path / "import.json").read_text())["quarantined"].items()
    assert "stray quote" in quarantined[0]
    assert quarantined[1] == 7
    assert log.rows("train") == 13


def test_text_over_several_lines_stays_and_is_told(tmp_path: Path) -> None:
    schema = LogSchema("shop", (TextFeature("user"), DenseFeature("price")), (CLICK,))
    log = import_text(
        tmp_path, with_lines((3, '"Dear all,\n\nmany, many, thanks\nand ""best"" wishes\n\nA",1.5,0')), schema
    )
    assert rows_of(log)[3]["user"] == 'Dear all,\n\nmany, many, thanks\nand "best" wishes\n\nA'
    found = json.loads((log.path / "import.json").read_text())
    assert found["quarantined"] == {}
    assert found["notes"] == {"rows with a value over more than one line (if none should be: --no-quoting)": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a, "b"', 1),
        ('x,y\n1,2\n3, \t"4,5"', 3),
        (' "a",b', 1),
        ('"a, ""b"" c",d', None),
        ('"a, ",b', None),
        ('"one\n, ""x""",d', None),
        ('a,b "c"', None),
        ('a,,"b"', None),
    ],
)
def test_a_quote_behind_the_blanks_that_begin_a_value_is_found(text: str, line: int | None) -> None:
    assert quote_behind_blank(text.splitlines(keepends=True), ",") == line


def test_a_table_with_blanks_before_its_quotes_is_refused_in_one_line_that_says_what_helps(tmp_path: Path) -> None:
    schema = LogSchema("x", (CategoricalFeature("kind"), DenseFeature("gain")), (CLICK,))
    dirty = 'click, kind, gain\n1, a, 2\n0, b, "1,234"\n'
    with pytest.raises(SourceError, match=r"raw\.csv: line 3: a quote behind a blank opens no value; .*--no-quoting"):
        import_text(tmp_path, dirty, schema)
    log = import_text(tmp_path, dirty.replace(", ", ","), schema, text=TextFormat(thousands=","))
    assert [row["gain"] for row in rows_of(log)] == [2.0, 1234.0]


def test_without_quoting_a_quote_is_a_part_of_the_value(tmp_path: Path) -> None:
    log = import_text(tmp_path, with_lines((3, '"u5,1.5,0')), SHOP, text=TextFormat(quoting=False))
    assert log.rows("train") == 20
    assert '"u5' in (log.schema.categorical[0].vocabulary or ())


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_files_of_other_encodings_are_refused_with_advice_and_read_when_it_is_named(
    tmp_path: Path, encoding: str
) -> None:
    text = with_lines((3, "José,1.5,0"))
    with pytest.raises(
        SourceError, match=r"raw.csv: not UTF-8 text.*--encoding " + encoding[:6].replace("cp1252", "latin")
    ):
        import_text(tmp_path, text.encode(encoding), SHOP)
    log = import_text(tmp_path, text.encode(encoding), SHOP, text=TextFormat(encoding=encoding))
    assert "José" in (log.schema.categorical[0].vocabulary or ())


def test_an_encoding_that_is_none_or_another_than_said_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'latin-0' is no encoding"):
        import_text(tmp_path, with_lines(), SHOP, text=TextFormat(encoding="latin-0"))
    late = with_lines().encode() + b"\n" * (1 << 16) + b"\x81,1,1\n"
    with pytest.raises(SourceError, match=r"raw.csv: not CP1252 text"):
        import_text(tmp_path, late, SHOP, text=TextFormat(encoding="cp1252"))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_wrong_delimiter_is_recognized(tmp_path: Path, delimiter: str) -> None:
    text = with_lines().replace(",", delimiter)
    with pytest.raises(SourceError, match=r"the header is one column, .*--delimiter") as caught:
        import_text(tmp_path, text, SHOP)
    assert repr(delimiter) in str(caught.value)
    bare = TextFormat(columns=("user", "price", "click"))
    with pytest.raises(SourceError, match=r"every row is broken.*--delimiter"):
        import_text(tmp_path, text.split("\n", 1)[1], SHOP, text=bare)


def test_marks_of_the_byte_order_and_blanks_in_a_header_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_bytes(b"\xef\xbb\xbf" + to_json(SHOP).encode())
    text = "\ufeff" + with_lines().replace("user,price", "user, price ")
    log = import_text(tmp_path, text, tmp_path / "schema.json")
    assert log.rows("train") == 20


# Sizes


def test_a_small_parquet_file_of_long_texts_lists_and_numbers_comes_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_batches, "BATCH_BYTES", 1 << 20)
    n = 3000
    table = pa.table(
        {
            "text": pa.array(["x" * 10_000, None, "y"] * (n // 3)),
            "few": [f"u{i % 7}" for i in range(n)],
            "numbers": pa.array([[7] * 500] * n, pa.list_(pa.int64())),
            "lists": [[f"i{i % 3}", None] for i in range(n)],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", row_group_size=2000)
    assert (tmp_path / "t.parquet").stat().st_size < 40_000
    chunks = list(read_parquet(tmp_path / "t.parquet"))
    decoded = [chunk.table.cast(table.schema) for chunk in chunks]
    assert max(part.nbytes for part in decoded) < 2 << 20
    assert pa.concat_tables(decoded).equals(table)
    assert np.concatenate([chunk.row_numbers for chunk in chunks]).tolist() == list(range(1, n + 1))


def test_a_writer_of_long_texts_holds_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "ROW_GROUP_BYTES", 1 << 20)
    schema = LogSchema("texts", (TextFeature("text"),), (CLICK,))
    log = import_text(tmp_path, "text,click\n" + f"{'x' * 5000},1\n" * 5000, schema)
    footer = read_footer(log.files("train")[0])
    assert footer.num_rows == 5000
    assert footer.num_row_groups >= 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf8", "UTF-8", "U8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_header_whatever_utf8_is_called(tmp_path: Path, encoding: str) -> None:
    content = b"\xef\xbb\xbf" + with_lines().encode()
    log = import_text(tmp_path, content, SHOP, text=TextFormat(encoding=encoding))
    assert log.rows("train") == len(LINES)


@pytest.mark.parametrize("encoding", ["hex", "rot13", "base64", "undefined"])
def test_what_is_no_encoding_of_text_is_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(SourceError, match=f"'{encoding}' is no encoding of text"):
        import_text(tmp_path, with_lines(), SHOP, text=TextFormat(encoding=encoding))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ('"us\ner",price,click', "a quote is opened in the header and not closed on its line; .*--no-quoting"),
        ('user,price,"click', "a quote is opened in the header and not closed on its line"),
        ("  \t\nuser,price,click", "its first line holds blanks alone, expected the names of the columns"),
        ("   ", "its first line holds blanks alone"),
    ],
)
def test_a_header_that_is_none_is_told(tmp_path: Path, header: str, problem: str) -> None:
    with pytest.raises(SourceError, match=rf"raw\.csv: {problem}"):
        import_text(tmp_path, "\n".join([header, *LINES]), SHOP)


def test_empty_lines_before_the_header_are_none(tmp_path: Path) -> None:
    assert import_text(tmp_path, "\n\r\n" + with_lines(), SHOP).rows("train") == len(LINES)


def test_parquet_text_that_is_not_utf8_is_told_with_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"u1", b"u2", "köln".encode("latin-1"), b"u4"])
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 2, 4], pa.int32()), text)
    file, clicks = tmp_path / "t.parquet", pa.array([0, 1, 0, 1])
    pq.write_table(pa.table({"user": text, "click": clicks}), file)
    schema = LogSchema("shop", (CategoricalFeature("user"),), (CLICK,))
    with pytest.raises(SourceError, match=r"t\.parquet: column 'user', row 3: text that is not UTF-8"):
        import_table(TableFiles((file,)), schema, ALL_TRAIN, tmp_path / "log", options=QUIET)
    pq.write_table(pa.table({"viewed": lists, "click": clicks}), file)
    schema = LogSchema("shop", (SequenceFeature("viewed"),), (CLICK,))
    with pytest.raises(SourceError, match=r"t\.parquet: column 'viewed', row 4: text that is not UTF-8"):
        import_table(TableFiles((file,)), schema, ALL_TRAIN, tmp_path / "log", options=QUIET)


@pytest.mark.parametrize("rows", [10, 2000])
def test_parquet_views_of_text_are_text(tmp_path: Path, rows: int) -> None:
    schema = LogSchema("shop", (CategoricalFeature("user"), SequenceFeature("viewed"), DenseFeature("price")), (CLICK,))
    columns = {
        "user": [f"u{i % 7}" for i in range(rows)],
        "viewed": [[f"i{i % 5}"] * (i % 3) for i in range(rows)],
        "price": [str(i) for i in range(rows)],
        "click": [i % 2 for i in range(rows)],
    }
    views = {"user": pa.string_view(), "viewed": pa.list_(pa.string_view()), "price": pa.string_view()}
    logs = []
    for name, table in (
        ("plain", pa.table(columns)),
        ("views", pa.table({name: pa.array(values, views.get(name)) for name, values in columns.items()})),
    ):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        files = TableFiles((tmp_path / f"{name}.parquet",))
        logs.append(Log.open(import_table(files, schema, ALL_TRAIN, tmp_path / name, options=QUIET)))
    assert rows_of(logs[0]) == rows_of(logs[1])
    assert logs[0].schema == logs[1].schema


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_of_bad_rows_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"max_quarantined must lie in \[0, 1\]"):
        ImportOptions(max_quarantined=share)


def test_when_no_row_is_good_no_share_is_blamed(tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text("user,price,click\nu,1,7\nu,2,9\nu,x,1\n")
    with pytest.raises(SourceError, match=r"shop: 3 of 3 rows are bad; most often \(2 rows\)"):
        import_table(
            TableFiles((tmp_path / "raw.csv",)), SHOP, ALL_TRAIN, tmp_path / "log",
            options=ImportOptions(max_quarantined=1.0, quiet=True),
        )  # fmt: skip


# Times


def test_seconds_taken_for_milliseconds_are_refused_with_the_guess(tmp_path: Path) -> None:
    for spelled, guess, remedy in (
        ("1714550000", "looks like seconds", '"timestamp_unit": "s"'),
        ("1714550000000000", "looks like microseconds", '"timestamp_unit": "us"'),
        ("1714550000000000000", "looks like nanoseconds", '"timestamp_unit": "ns"'),
        ("20240501", "looks like a date of eight digits, YYYYMMDD", '"timestamp_format": "%Y%m%d"'),
        ("2014102123", "looks like an hour, YYYYMMDDHH", '"timestamp_format": "%Y%m%d%H"'),
        ("14102100", "looks like an hour, YYMMDDHH", '"timestamp_format": "%y%m%d%H"'),  # Avazu
        ("14102124", "is no time from 1990 to 2100", '"timestamp_unit": "order"'),
        ("12", "is no time from 1990 to 2100", '"timestamp_unit": "order"'),
        ("1970-01-20 20:15:50", "looks like seconds", '"timestamp_unit": "s"'),
    ):
        with pytest.raises(SourceError, match="column 'time' is wrong in every row, of 20") as caught:
            import_text(tmp_path, timed([spelled] * 20), TIMED)
        assert guess in str(caught.value)
        assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("how", "spelled", "milliseconds"),
    [
        ({}, "1714550000123", 1_714_550_000_123),
        ({}, "2024-05-01T07:53:20.1239Z", 1_714_550_000_123),
        ({"timestamp_unit": "s"}, "1714550000", 1_714_550_000_000),
        ({"timestamp_unit": "s"}, "1714550000.123", 1_714_550_000_123),
        ({"timestamp_unit": "s"}, "2024-05-01 07:53:20", 1_714_550_000_000),
        ({"timestamp_unit": "us"}, "1714550000123999", 1_714_550_000_123),
        ({"timestamp_unit": "ns"}, "1714550000123999999", 1_714_550_000_123),
        ({"timestamp_format": "%Y%m%d"}, "20240501", 1_714_521_600_000),
        ({"timestamp_format": "%y%m%d%H"}, "24050107", 1_714_546_800_000),
        ({"timestamp_format": "%d.%m.%Y %H:%M"}, "1.5.2024 7:53", 1_714_549_980_000),
        ({"timestamp_format": "%d/%b/%Y:%H:%M:%S %z"}, "01/May/2024:09:53:20 +0200", 1_714_550_000_000),
        ({"timestamp_format": "%H:%M:%S.%f %d.%m.%y"}, "07:53:20.1239 01.05.24", 1_714_550_000_123),
        ({"timestamp_unit": "order"}, "12", 12),
    ],
)
def test_a_time_is_read_by_the_unit_or_format_of_the_schema(
    tmp_path: Path, how: dict[str, Any], spelled: str, milliseconds: int
) -> None:
    log = import_text(tmp_path, timed([f" {spelled} "] * 3), replace(TIMED, **how))
    assert [row["time"] for row in rows_of(log)] == [milliseconds] * 3


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.uint64(), pa.float64(), pa.string(), pa.timestamp("us"), pa.timestamp("s")]
)
def test_typed_columns_give_the_times_of_their_text(kind: pa.DataType) -> None:
    given = pa.array([1_714_550_000, 1_714_550_001, None], pa.int64())
    typed = given.cast(pa.timestamp("s")).cast(kind) if pa.types.is_timestamp(kind) else given.cast(kind)
    times = TimeSpelling("s").read(typed)
    assert times.values.tolist() == [1_714_550_000_000, 1_714_550_001_000, 0]
    assert times.null.tolist() == [False, False, True]
    assert not times.bad.any()


def test_hours_of_numbers_are_read_by_their_format() -> None:
    times = TimeSpelling(format="%y%m%d%H").read(pa.array([14102100, 14102101, None], pa.int64()))
    assert times.values.tolist() == [1_413_849_600_000, 1_413_853_200_000, 0]
    assert times.null.tolist() == [False, False, True]


@pytest.mark.parametrize("spelled", ["31.12.2024 10:00", "12/31/2024"])
def test_times_of_another_spelling_say_how_to_tell_it(tmp_path: Path, spelled: str) -> None:
    with pytest.raises(
        SourceError, match=r'is not a time \(given: .*\); say how it is written: "timestamp_format" in the schema'
    ):
        import_text(tmp_path, timed([spelled] * 3), TIMED)


def test_lines_that_end_in_a_carriage_return_alone_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"raw\.csv: its lines end in a carriage return alone; write them with line feeds"
    ):
        import_text(tmp_path, "user,price,click\ru,1,0\rv,2,1\r", SHOP)


def test_days_that_no_calendar_has_are_no_times(tmp_path: Path) -> None:
    days = ["20240229", "20240301", "20240302", "20240231", "20230229", "20241301"]
    log = import_text(tmp_path, timed(days), replace(TIMED, timestamp_format="%Y%m%d"))
    assert log.rows("train") == 3
    assert quarantined(log) == {"time: is not a time of the format '%Y%m%d'": 3}


def test_rows_of_another_unit_are_found_among_good_ones_and_move_no_split(tmp_path: Path) -> None:
    times = [f"{1_714_550_000_000 + i * 1000}" for i in range(90)] + [f"{1_714_550_000 + i}" for i in range(10)]
    log = import_text(tmp_path, timed(times), TIMED, TimeSplit(valid_share=0.0, test_share=0.2))
    assert json.loads((log.path / "import.json").read_text())["quarantined"] == {
        "time: is no time from 1990 to 2100 (looks like seconds)": 10
    }
    assert (log.rows("train"), log.rows("test")) == (72, 18)


def test_a_split_by_time_without_a_test_gives_it_no_row_of_more_than_are_kept_in_memory() -> None:
    rows = SplitInput(pa.table({"moment": np.arange(5_000_000)}), 0)
    splitter = prepare(TimeSplit(0.1, 0.0, "moment"), None, lambda: iter([rows]))
    _, valid = np.bincount(splitter.assign(rows))
    assert abs(valid / 5_000_000 - 0.1) < 0.01


def test_times_that_are_all_equal_give_no_order_to_split_by(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"column 'time' is the same in all rows.*needs an order"):
        import_text(tmp_path, timed(["2024-05-01"] * 20), TIMED, TimeSplit())


def test_equal_times_at_a_boundary_are_told(tmp_path: Path) -> None:
    log = import_text(tmp_path, timed(["2024-05-01"] * 10 + ["2024-05-02"] * 10), TIMED, TimeSplit())
    (note,) = json.loads((log.path / "import.json").read_text())["notes"]
    assert "rows of equal 'time' stay together" in note
    assert "50% instead of 20% for test" in note


# Spellings


@pytest.mark.parametrize(
    ("task", "yes", "no"),
    [
        (CLICK, "True", "False"),
        (CLICK, "true", " FALSE"),
        (TaskLabel("click", positive=("yes", "y"), negative=("no",)), "yes", "no"),
        (TaskLabel("click", positive=(">50K",), negative=("<=50K",)), ">50K", " <=50K"),
        (TaskLabel("click", positive=("0",), negative=("1",)), "0", "1"),
        (TaskLabel("click", positive=("true",), negative=("false",)), "true", "false"),
    ],
)
def test_labels_are_read_as_they_are_spelled(tmp_path: Path, task: TaskLabel, yes: str, no: str) -> None:
    task = replace(task, missing_values=("NA",))
    log = import_text(
        tmp_path, f"user,price,click\na,1,{yes}\nb,2,{no}\nc,3,\nd,4,NA\ne,5,maybe\n", replace(SHOP, tasks=(task,))
    )
    assert [row["click"] for row in rows_of(log)] == [1.0, 0.0, None, None]
    assert sum(json.loads((log.path / "import.json").read_text())["quarantined"].values()) == 1


def test_a_typed_column_of_booleans_may_be_a_label_spelled_true_and_false() -> None:
    schema = LogSchema("shop", (), (TaskLabel("click", positive=("true",), negative=("false",)),))
    checked = check_rows(schema, pa.table({"click": pa.array([True, False, None])}))
    assert checked.others["click"].to_pylist() == [1.0, 0.0, None]


def test_labels_of_unknown_spelling_say_how_to_declare_them(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"column 'click' is wrong in every row.*'yes'.*\"positive\": \[\.\.\.\]"):
        import_text(tmp_path, "user,price,click\na,1,yes\nb,2,no\n", SHOP)


@pytest.mark.parametrize("wrong", [{"positive": ("yes",)}, {"positive": ("a",), "negative": ("a",)}])
def test_half_a_spelling_of_labels_is_a_schema_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="click"):
        LogSchema("shop", (), (TaskLabel("click", **wrong),))


def test_missing_numbers_are_missing_in_every_spelling(tmp_path: Path) -> None:
    schema = LogSchema("shop", (DenseFeature("price", missing_values=("NA", "-999")),), (CLICK,))
    log = import_text(tmp_path, "price,click\nNA,1\n-999,0\n -999.0,1\n999,0\n,1\nn/a,1\n", schema)
    assert [row["price"] for row in rows_of(log)] == [None, None, None, 999.0, None]
    typed = as_numbers(pa.array([-999, 5, None]), missing=("NA", "-999"))
    assert typed.null.tolist() == [True, False, True]
    assert np.isnan(typed.values[0])


@pytest.mark.parametrize(
    ("decimal", "thousands", "given", "numbers"),
    [
        (
            ",",
            ".",
            ["1.234.567,5", "1,5", "12", "-0,5", "1.5", "1.23.4", "1,2,3"],
            [1234567.5, 1.5, 12.0, -0.5] + [None] * 3,
        ),
        (",", "", ["1,5", "1.5", "1e3", ",5", "NaN"], [1.5, None, 1000.0, 0.5, None]),
        (".", ",", ["1,234.5", "12,34", "1234", "1,234,567"], [1234.5, None, 1234.0, 1234567.0]),
        (".", " ", ["1 234.5", "1 2"], [1234.5, None]),
    ],
)
def test_decimal_commas_and_thousands_are_read_when_they_are_named(
    decimal: str, thousands: str, given: list[str], numbers: list[float | None]
) -> None:
    found = as_numbers(pa.array(given), spelling=NumberSpelling(decimal, thousands))
    assert [None if bad else value for value, bad in zip(found.values.tolist(), found.bad, strict=True)] == numbers


@pytest.mark.parametrize(
    ("price", "hint"),
    [
        ("0,50", "a decimal comma is told by --decimal ,"),
        ("1,234,567", "a comma between thousands is told by --thousands ,"),
        ("1,234.5", "a comma between thousands is told by --thousands ,"),
        ("1.234,50", "points between thousands and a decimal comma are told by --thousands . --decimal ,"),
        ("n/a", 'if it stands for missing, say so: "missing_values": ["n/a"]'),
    ],
)
@pytest.mark.parametrize("others", ["", "u;1.5;0\n", "u;1.5\n"])  # a good row, one without its fields
def test_numbers_of_another_spelling_say_how_to_tell_it(tmp_path: Path, price: str, hint: str, others: str) -> None:
    text = "user;price;click\n" + f"u;{price};1\n" * 3 + others
    with pytest.raises(SourceError) as caught:
        import_text(tmp_path, text, SHOP, text=TextFormat(delimiter=";"))
    assert f"row 1{'' if others.endswith(';0' + chr(10)) else ': is not a number'} (given: {price!r}); {hint}" in str(
        caught.value
    )


def test_a_table_with_decimal_commas_is_imported_and_its_quarantine_shows_it_as_it_was(tmp_path: Path) -> None:
    text = "user;price;click\na;1.234,5;1\nb;1.5;0\nc;2;0\n"
    log = import_text(tmp_path, text, SHOP, text=TextFormat(delimiter=";", decimal=",", thousands="."))
    assert [row["price"] for row in rows_of(log)] == [1234.5, 2.0]
    (row,) = pq.read_table(log.path / "quarantine").to_pylist()
    assert json.loads(row["values"])["price"] == "1.5"


def test_schemas_of_earlier_logs_still_load() -> None:
    old = (
        '{"name": "shop", "features": [{"name": "price", "kind": "dense", "transform": "log1p", "allow_missing": true, '
        '"statistics": {"mean": 1.0, "std": 2.0, "missing_share": 0.0}}], "tasks": [{"name": "click", "label": null, '
        '"observed_when": null}], "weight": null, "timestamp": "time", "request_id": null, "stage": null, "extras": [], '
        '"version": 1}'
    )
    schema = from_json(LogSchema, old)
    assert schema.version == 1
    assert schema.fitted
    assert from_json(LogSchema, to_json(schema)) == schema
