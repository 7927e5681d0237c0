"""Impressions of EB-NeRD, own tables, Amazon Scientific and Goodreads' JSON lines as content logs."""

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data.content import ContentError, ContentLog, read_content, write_content
from rayrec.data.content.assembling import share_of
from rayrec.data.public.content_ebnerd import Ebnerd
from rayrec.data.public.content_goodreads_json import GoodreadsJson
from rayrec.data.public.content_scientific import AmazonScientific
from rayrec.data.public.content_table import OwnTables


def names(log: ContentLog, items: Any) -> list[str]:
    return [log.items.names[int(item) - 1].as_py() for item in items]


def shown(log: ContentLog, row: int) -> tuple[str, str, list[str], dict[str, int]]:
    """Split, user, history and labels by candidate of an impression."""
    one, history = log.impressions, int(log.impressions.history[row])
    labels = dict(zip(names(log, one.candidates[row]), one.labels[row].tolist(), strict=True))
    return str(one.split[row]), log.users[int(log.owners[history])].as_py(), names(log, log.histories[history]), labels


def write_ebnerd(folder: Path, *, nested: bool, articles: bool) -> Path:
    for part, clicked in (("train", [[11]]), ("validation", [[12]])):
        place = folder / part if nested else folder
        place.mkdir(parents=True, exist_ok=True)
        prefix = "" if nested else f"{part}_"
        pq.write_table(
            pa.table({"user_id": [7], "article_id_fixed": [[10, 11] if part == "validation" else [10]]}),
            place / f"{prefix}history.parquet",
        )
        pq.write_table(
            pa.table({"user_id": [7], "article_ids_inview": [[12, 11, 12]], "article_ids_clicked": clicked}),
            place / f"{prefix}behaviors.parquet",
        )
    if articles:
        pq.write_table(
            pa.table(
                {
                    "article_id": [10, 11],
                    "title": ["Ti", None],
                    "subtitle": ["", "Sub"],
                    "category_str": ["sport", "krimi"],
                }
            ),
            folder / "articles.parquet",
        )
    return folder


@pytest.mark.parametrize("nested", [True, False])
def test_ebnerd_is_read_with_and_without_article_text(tmp_path: Path, nested: bool) -> None:
    log = Ebnerd(valid_share=1e-9).read(write_ebnerd(tmp_path / "with", nested=nested, articles=True))
    assert shown(log, 0) == ("train", "7", ["10"], {"12": 0, "11": 1})
    assert shown(log, 1) == ("test", "7", ["11", "10"], {"12": 1, "11": 0})  # newest first
    assert [log.items.texts[name].to_pylist() for name in ("title", "category")] == [
        ["Ti", "", ""],
        ["sport", "krimi", ""],
    ]
    assert log.notes["articles_without_text"] == 1
    bare = Ebnerd().read(write_ebnerd(tmp_path / "without", nested=nested, articles=False))
    assert bare.notes["articles_without_text"] == 3
    with pytest.raises(ContentError, match=r"train_history\.parquet: no such file"):
        Ebnerd().read(tmp_path)


@pytest.mark.slow
def test_the_ebnerd_demo_keeps_each_impression(data_root: Path) -> None:
    source = data_root / "ebnerd_demo"
    if not source.is_dir():
        pytest.skip("no ebnerd_demo")
    log = Ebnerd().read(source)
    assert len(log.impressions) == 24_724 + 25_356
    users = [log.users[int(owner)].as_py() for owner in log.owners[log.impressions.history[:200]]]
    assert users == [
        str(user) for user in pq.read_table(source / "train_behaviors.parquet")["user_id"][:200].to_pylist()
    ]
    judged = log.impressions.rows("test")
    owners = {log.users[int(owner)].as_py() for owner in log.owners[log.impressions.history[judged]]}
    assert min(map(share_of, owners)) >= 0.1


def write_tables(folder: Path, suffix: str) -> Path:
    folder.mkdir()
    tables: dict[str, dict[str, list[Any]]] = {
        "items": {"item": ["a", "b", "c"], "title": ["A title", "B title", "C title"], "note": ["x", "", "z"]},
        "histories": {"user": ["u", "v"], "items": [["b", "a"], ["c"]]},
        "impressions": {"split": ["train", "test"], "user": ["u", "w"], "candidates": [["c", "a"], ["a", "b"]],
                        "labels": [[1, 0], [0, 1]]},
    }  # fmt: skip
    for name, columns in tables.items():
        if suffix == ".parquet":
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        elif suffix == ".jsonl":
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            words = {
                key: [" ".join(map(str, one)) if isinstance(one, list) else one for one in column]
                for key, column in columns.items()
            }
            lines = [",".join(words), *(",".join(row) for row in zip(*words.values(), strict=True))]
            (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_own_tables_are_read_in_three_forms(tmp_path: Path, suffix: str) -> None:
    source = write_tables(tmp_path / "own", suffix)
    log = read_content(write_content(tmp_path / "log", OwnTables(fields=("title=8", "note")).read(source)))
    assert shown(log, 0) == ("train", "u", ["b", "a"], {"c": 1, "a": 0})
    assert shown(log, 1) == ("test", "w", [], {"a": 0, "b": 1})
    assert [(one.name, one.label, one.max_tokens) for one in log.items.fields] == [
        ("title", "Title", 8),
        ("note", "Note", 64),
    ]
    user = log.users.to_pylist().index("v")
    assert names(log, log.histories[int(log.current[user])]) == ["c"]


def test_an_empty_history_in_a_csv_is_one_unless_all_are_empty(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "own", ".csv")
    lines = "split,user,candidates,labels,history\ntrain,u,c a,1 0,{}\ntrain,u,c a,1 0,\n"
    (source / "impressions.csv").write_text(lines.format("c"))
    log = OwnTables().read(source)
    assert [shown(log, row)[2] for row in (0, 1)] == [["c"], []]
    (source / "impressions.csv").write_text(lines.format(""))
    log = OwnTables().read(source)
    assert [shown(log, row)[2] for row in (0, 1)] == [["b", "a"]] * 2


def test_what_is_wrong_with_own_tables_is_named(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "own", ".jsonl")
    with pytest.raises(ContentError, match="column 'colour' is missing; found item, title, note"):
        OwnTables(fields=("colour",)).read(source)
    shown_file = source / "impressions.jsonl"
    line = {"split": "train", "user": "u", "candidates": ["a"], "labels": [1]}
    for change, problem in (
        ({"candidates": ["x"]}, "row 1: candidates holds 'x', which is no item"),
        ({"labels": [1, 0]}, "row 1: labels .* 0 or 1 for each of 1"),
        ({"split": "dev"}, "row 1: split 'dev'; expected train"),
    ):
        shown_file.write_text(json.dumps({**line, **change}) + "\n")
        with pytest.raises(ContentError, match=problem):
            OwnTables().read(source)
    shown_file.write_text(json.dumps({**line, "history": ["c"]}) + "\n")
    assert shown(OwnTables().read(source), 0)[2] == ["c"]
    shown_file.unlink()
    with pytest.raises(ContentError, match=r"expected one of impressions\.parquet"):
        OwnTables().read(source)
    (source / "items.jsonl").write_text('{"item": "a", "title": "A"}\n{"item": "a", "title": "B"}\n')
    with pytest.raises(ContentError, match="'a' stands there twice"):
        OwnTables().read(source)
    (source / "items.jsonl").write_text('{"item": "a", "title": "A"}\n{"item": null, "title": "B"}\n')
    with pytest.raises(ContentError, match=r"items\.jsonl: column 'item', row 2 holds nothing"):
        OwnTables().read(source)
    (source / "items.jsonl").write_text('{"item": "a", "title": "A"}\n{"item": \n')
    with pytest.raises(ContentError, match=r"items\.jsonl, row 2: expected a JSON object a line"):
        OwnTables().read(source)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_users_and_items_of_own_tables_stay_as_they_are_written(tmp_path: Path, suffix: str) -> None:
    tables: dict[str, list[dict[str, Any]]] = {
        "items": [
            {"item": one, "title": two}
            for one, two in (("007", "a\nb"), ("008", "NA"), ("7", "null"), ("2001-02-03", "2001-02-03"))
        ],
        "histories": [
            {"user": "0042", "items": "007 008"},
            {"user": "0043", "items": "7"},
            {"user": "42", "items": ""},
        ],
        "impressions": [
            {"split": "train", "user": "0042", "history": "7", "candidates": "008 2001-02-03", "labels": "1 0"},
            {"split": "valid", "user": "0043", "history": None, "candidates": "007", "labels": "1"},
        ],
    }
    for name, rows in tables.items():
        if suffix == ".jsonl":
            text = "".join(json.dumps(row) + "\n" for row in rows)
        else:
            quoted = [[f'"{value}"' if value else "" for value in row.values()] for row in rows]
            text = "\n".join(map(",".join, [list(rows[0]), *quoted])) + "\n"
        (tmp_path / f"{name}{suffix}").write_text(text)
    log = OwnTables().read(tmp_path)
    assert log.items.names.to_pylist() == ["007", "008", "7", "2001-02-03"]
    assert log.items.texts["title"].to_pylist() == ["a\nb", "NA", "null", "2001-02-03"]
    assert sorted(log.users.to_pylist()) == ["0042", "0043", "42"]
    assert shown(log, 0) == ("train", "0042", ["7"], {"008": 1, "2001-02-03": 0})
    # null: no history of its own, but that of its user; an empty cell beside full ones: a history of nothing
    assert shown(log, 1) == ("valid", "0043", ["7"] if suffix == ".jsonl" else [], {"007": 1})


def test_scientific_is_split_in_time_against_products_that_the_user_never_bought(data_root: Path) -> None:
    source = data_root / "amazon2018_scientific_text"
    if not source.is_dir():
        pytest.skip("no amazon2018_scientific_text")
    log = AmazonScientific(users=60).read(source)
    bought = json.loads((source / "Scientific.inter.json").read_text())
    seen: dict[str, list[tuple[str, list[str], str]]] = {}
    for row in range(len(log.impressions)):
        split, user, history, labels = shown(log, row)
        (positive,) = (item for item, label in labels.items() if label)
        assert len(labels) == 21
        assert not {item for item, label in labels.items() if not label} & set(map(str, bought[user]))
        seen.setdefault(user, []).append((split, history, positive))
    for user, rows in seen.items():
        own = [str(item) for item in bought[user]]
        assert [positive for _, _, positive in rows] == own[1:]
        assert [history for _, history, _ in rows] == [own[:place][::-1] for place in range(1, len(own))]
        assert [split for split, _, _ in rows] == ["train"] * (len(own) - 3) + ["valid", "test"]
    assert not log.items.texts["title"][0].as_py().endswith(".")
    assert np.bincount(log.impressions.labels.values).tolist() == [20 * len(log.impressions), len(log.impressions)]


@pytest.mark.parametrize("zipped", [True, False])
def test_goodreads_json_lines_become_quarters_in_time(tmp_path: Path, zipped: bool) -> None:
    books = [{"book_id": str(i), "title": f"T{i}", "description": "" if i else None} for i in range(9)]
    ratings = [5, 1, 4, 3, 2, 5, 1, 5, 0, 4]  # of books in time; 3 and 0 are left out
    events = [
        {"user_id": "u", "book_id": str(i), "rating": rating,
         "date_added": datetime(2017, 1, 1 + i).strftime("%a %b %d %H:%M:%S -0700 %Y")}
        for i, rating in enumerate(ratings)
    ]  # fmt: skip
    suffix = ".json.gz" if zipped else ".json"
    for name, rows in (("books", books), ("interactions", events[::-1])):
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(text) if zipped else text)
    reader = GoodreadsJson(f"books{suffix}", f"interactions{suffix}", valid_share=1e-9)
    log = reader.read(tmp_path)
    # left in time: 0+ 1- 2+ 4- 5+ 6- 7+ (9 is no book)
    assert log.notes == {"ratings_of_missing_books": 1, "impressions_of_one_label": 0}
    assert shown(log, 0) == ("train", "u", ["2", "0"], {"4": 0, "5": 1})
    assert shown(log, 1) == ("test", "u", ["5", "2", "0"], {"6": 0, "7": 1})
    if not zipped:
        (tmp_path / "interactions.json").write_text(
            '{"user_id": "u", "book_id": "1", "rating": 5, "date_added": "2017"}\n'
        )
        with pytest.raises(ContentError, match="line 1: date_added '2017'"):
            reader.read(tmp_path)
        (tmp_path / "books.json").write_text('{"book_id": "1"}\n')
        with pytest.raises(ContentError, match="line 1: no 'title'"):
            reader.read(tmp_path)
