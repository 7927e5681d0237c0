"""Tables of events as people have them: ids stay what they are, what is left out is counted, what is broken is one line."""

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data.log.times import TimeSpelling
from rayrec.data.public.amazon2014 import read_amazon2014
from rayrec.data.public.amazon2018 import read_amazon2018_processed
from rayrec.data.public.movielens import read_movielens
from rayrec.data.public.steam import read_steam
from rayrec.data.sequences import (
    InteractionsError,
    SequenceData,
    interactions,
    leave_one_out,
    read_sequences,
    write_sequences,
)
from rayrec.data.sequences.events import LEFT_OUT, EventFilter
from rayrec.data.sequences.table import TableColumns, TableText, read_table

ALL = EventFilter(core=1, keep_repeats=True)


def read_text(
    tmp_path: Path, content: str | bytes, name: str = "events.csv", items: str | None = None, **more: Any
) -> SequenceData:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if items is not None:
        (tmp_path / "items.csv").write_text(items)
    return read_table(tmp_path / name, None if items is None else tmp_path / "items.csv", TableColumns(), ALL, **more)


def histories(data: SequenceData) -> dict[str, list[str]]:
    offsets, names = data.interactions.offsets, data.items.names.to_pylist()
    return {
        user: [names[item - 1] for item in data.interactions.items[offsets[i] : offsets[i + 1]]]
        for i, user in enumerate(data.users.to_pylist())
    }


def left_out(data: SequenceData) -> dict[str, Any]:
    return {note.removeprefix(LEFT_OUT): n for note, n in data.notes.items() if note.startswith(LEFT_OUT)}


def test_ids_are_text_and_stay_as_they_are_written(tmp_path: Path) -> None:
    ids = [
        "0007",
        "007",
        "7",
        "9223372036854775808",
        "9223372036854775809",
        "NA",
        "null",
        "nan",
        "1e3",
        "True",
        "2024-05-01",
    ]
    lines = "\n".join(f"{user},{item},1" for user in ids for item in ids)
    items = "item,text\n" + "\n".join(f"{item},Text of {item}" for item in ids)
    data = read_text(tmp_path, "user,item,timestamp\n" + lines, items=items)
    assert histories(data) == dict.fromkeys(ids, ids)
    assert data.items.texts.to_pylist() == [f"Text of {item}." for item in ids]
    assert left_out(data) == {}
    typed = pa.table({"user": pa.array([2**63, 2**63 + 1], pa.uint64()), "item": [7.0, None], "timestamp": [1, 2]})
    pq.write_table(typed, tmp_path / "typed.parquet")
    data = read_table(tmp_path / "typed.parquet", None, TableColumns(), ALL)
    assert histories(data) == {str(2**63): ["7"]}
    assert left_out(data) == {"no item": 1}


def test_events_that_are_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    text = "user,item,timestamp\nu1,a,1\n,b,2\n ,c,3\nu1,,6\nu1,b,7\nu2, a,\nu1,b,later\nu1,b\nu2,b,9\n"
    data = read_text(tmp_path, text)
    assert histories(data) == {"u1": ["a", "b"], "u2": ["b"]}
    assert left_out(data) == {
        "no user": 2,
        "no item": 1,
        "no time": 2,
        "timestamp: is no time": 1,
        "wrong number of fields: 2 instead of 3": 1,
    }
    assert data.notes["ids_with_blanks"] == 1
    (tmp_path / "events.csv").write_text("user,item,timestamp\nu1,a,1\nu1,a,2\nu1,b,3\nu2,a,1\nu2,b,1\nu3,c,1\n")
    data = read_table(tmp_path / "events.csv", None, TableColumns(), EventFilter(core=2))
    assert list(left_out(data).values()) == [1, 1]


def test_events_of_equal_time_keep_their_order_and_their_users_are_counted(tmp_path: Path) -> None:
    data = read_text(tmp_path, "user,item,timestamp\nu1,b,5\nu1,a,5\nu2,a,5\nu2,b,6\nu3,c,6\n")
    assert histories(data)["u1"] == ["b", "a"]
    assert data.notes["users_with_equal_times"] == 1


@pytest.mark.parametrize("kind", ["s", "ms", "us", "ns"])
def test_typed_times_keep_their_milliseconds(tmp_path: Path, kind: str) -> None:
    moments = pa.array([1_700_000_000_000 + k * 1_000 for k in range(3)], pa.timestamp("ms"))
    table = pa.table({"user": ["u"] * 3, "item": ["a", "b", "c"], "timestamp": moments.cast(pa.timestamp(kind))})
    if kind != "s":
        moments = pa.array([1_700_000_000_000 + k * 100 for k in range(3)], pa.timestamp("ms"))
        table = table.set_column(2, "timestamp", moments.cast(pa.timestamp(kind)))
    pq.write_table(table.take(pa.array([2, 1, 0])), tmp_path / "events.parquet")
    data = read_table(tmp_path / "events.parquet", None, TableColumns(), ALL)
    assert histories(data) == {"u": ["a", "b", "c"]}
    assert data.interactions.timestamps is not None
    assert data.interactions.timestamps.tolist() == moments.cast(pa.int64()).to_pylist()


def test_units_and_formats_of_times_are_said_and_mixed_ones_refused(tmp_path: Path) -> None:
    seconds = "user,item,timestamp\nu,a,1714550000\nu,b,1714550001\n"
    for times, first in ((TimeSpelling(), 1714550000), (TimeSpelling("s"), 1714550000000)):
        data = read_text(tmp_path, seconds, times=times)
        assert data.interactions.timestamps is not None
        assert data.interactions.timestamps[0] == first
    dated = read_text(
        tmp_path, "user,item,timestamp\nu,b,02.05.2024\nu,a,01.05.2024\n", times=TimeSpelling(format="%d.%m.%Y")
    )
    assert histories(dated) == {"u": ["a", "b"]}
    with pytest.raises(
        InteractionsError, match=r"events\.csv: column 'timestamp' mixes units: row 1 looks like seconds, row 3"
    ):
        read_text(tmp_path, seconds + "u,c,1714550002000\n")
    with pytest.raises(
        InteractionsError, match=r"expected whole numbers or timestamps \(row 1: '1714550000'\).*--times\.unit"
    ):
        read_text(tmp_path, seconds, times=TimeSpelling("ms"))


def test_tsv_delimiters_and_encodings_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    text = "user,item,timestamp\nJosé,a,1\nJosé,b,2\n"
    expected = {"José": ["a", "b"]}
    assert histories(read_text(tmp_path, text.replace(",", "\t"), "events.tsv")) == expected
    assert histories(read_text(tmp_path, text.replace(",", ";"), text=TableText(delimiter=";"))) == expected
    assert histories(read_text(tmp_path, text.encode("latin-1"), text=TableText(encoding="latin-1"))) == expected
    with pytest.raises(InteractionsError, match=r"events\.csv: not UTF-8 text.*--encoding"):
        read_text(tmp_path, text.encode("latin-1"))
    with pytest.raises(InteractionsError, match=r"the header is one column.*--delimiter"):
        read_text(tmp_path, text.replace(",", ";"))
    with pytest.raises(
        InteractionsError, match=r"events\.csv: line 2: a quote is opened and never closed.*--no-quoting"
    ):
        read_text(tmp_path, text.replace("José,a", '"José,a'))
    with pytest.raises(InteractionsError, match="column 'timestamp' is missing; found user, item, time"):
        read_text(tmp_path, text.replace("timestamp", "time"))
    with pytest.raises(InteractionsError, match="the file is empty"):
        read_text(tmp_path, "")


def test_an_item_described_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InteractionsError, match=r"items\.csv: item 'a' is there twice, in rows 1 and 3"):
        read_text(tmp_path, "user,item,timestamp\nu,a,1\n", items="item,text\na,one\nb,two\n a,three\n")


def test_items_without_events_are_kept_as_cold_ones_when_asked(tmp_path: Path) -> None:
    events = "user,item,timestamp\nu,a,1\nu,b,2\nu,a,3\n"
    items = "item,text\nnew,New one\na,First\n,nothing\nb,\n"
    assert read_text(tmp_path, events, items=items).items.names.to_pylist() == ["a", "b"]
    data = read_text(tmp_path, events, items=items, keep_cold=True)
    assert data.items.names.to_pylist() == ["a", "b", "new"]
    assert data.items.texts.to_pylist() == ["First.", "", "New one."]
    assert left_out(data) == {"items table: no item": 1}
    assert 3 in leave_one_out(data.interactions).cold_items.tolist()
    assert read_sequences(write_sequences(tmp_path / "out", data)).interactions.num_items == 3


def test_long_texts_of_items_are_cut_and_counted(tmp_path: Path) -> None:
    data = read_text(
        tmp_path, "user,item,timestamp\nu,a,1\n", items=f"item,text\na,{'x' * 200}\n", text=TableText(max_characters=50)
    )
    assert data.items.texts.to_pylist() == ["x" * 50 + "."]
    assert left_out(data) == {"items table: texts cut": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "holds no users"),
        (b"1 1 2\n2 2 3000000000\n", "line 2: item 3000000000 is above"),
        (b"1 1 2\nJos\xe9 1 2\n", "line 2: not UTF-8 text"),
        (b"1 1 2\n2 x\n", "line 2: items must be whole numbers"),
    ],
)
def test_broken_s3rec_files_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "Set.txt").write_bytes(content)
    with pytest.raises(InteractionsError, match=message):
        read_amazon2014(tmp_path, "Set")


def test_blank_lines_of_s3rec_files_are_no_users(tmp_path: Path) -> None:
    (tmp_path / "Set.txt").write_text("1 1 2 3\n\n2 2 3 4\n")
    assert histories(read_amazon2014(tmp_path, "Set")) == {"1": ["1", "2", "3"], "2": ["2", "3", "4"]}


def test_other_public_files_in_latin_1_or_without_a_column_are_one_line(tmp_path: Path) -> None:
    for name in ("S.inter.json", "S.item.json", "reviews.json"):
        (tmp_path / name).write_bytes(b'{"Jos\xe9": [1]}')
    with pytest.raises(InteractionsError, match=r"S\.inter\.json"):
        read_amazon2018_processed(tmp_path, "S")
    with pytest.raises(InteractionsError, match=r"reviews\.json, line 1: not UTF-8 text"):
        read_steam(tmp_path / "reviews.json", tmp_path / "reviews.json", ALL)
    (tmp_path / "ratings.csv").write_text("userId,movieId,time\n007,07,5\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n07,Seven,Drama\n7,Other,Drama\n")
    with pytest.raises(InteractionsError, match="column 'timestamp' is missing; found userId, movieId, time"):
        read_movielens(tmp_path, ALL)
    (tmp_path / "ratings.csv").write_text("userId,movieId,timestamp\n007,07,5\n")
    data = read_movielens(tmp_path, ALL)
    assert histories(data) == {"007": ["07"]}
    assert data.items.texts.to_pylist() == ["Title: Seven. Genres: Drama."]


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_data_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_text(tmp_path, "user,item,timestamp\nu,a,1\nu,b,2\n")
    other = read_text(tmp_path, "user,item,timestamp\nv,c,1\n")
    out = tmp_path / "out" / "sequences"
    out.parent.mkdir()
    written = pq.write_table

    def killed(table: pa.Table, place: Path, **how: Any) -> None:
        written(table, place, **how)
        os.kill(os.getpid(), signal.SIGKILL)

    def write_and_be_killed() -> None:
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(interactions.pq, "write_table", killed)
            try:
                write_sequences(out, other, overwrite=True)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    write_and_be_killed()
    assert not out.exists()
    write_sequences(out, data)  # removes what the killed one left
    assert os.listdir(out.parent) == ["sequences"]
    write_and_be_killed()
    assert histories(read_sequences(out)) == {"u": ["a", "b"]}
    write_sequences(out, other, overwrite=True)
    assert os.listdir(out.parent) == ["sequences"]
    assert histories(read_sequences(out)) == {"v": ["c"]}
