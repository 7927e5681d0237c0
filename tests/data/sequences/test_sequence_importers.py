"""Importers of sequence data: small files in each public form, and the real sets where they are at hand."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data.public.amazon2014 import read_amazon2014
from rayrec.data.public.amazon2018 import read_amazon2018_processed, read_amazon2018_raw
from rayrec.data.public.movielens import read_movielens
from rayrec.data.public.steam import read_steam
from rayrec.data.public.yelp import read_yelp
from rayrec.data.sequences import InteractionsError, SequenceData
from rayrec.data.sequences.events import EventFilter, core_mask
from rayrec.data.sequences.table import TableColumns, read_table

ALL = EventFilter(core=1)


def history_of(data: SequenceData, user: str) -> list[str]:
    """Item names of a user, oldest first."""
    row = data.users.to_pylist().index(user)
    start, end = data.interactions.offsets[row : row + 2]
    return [data.items.names[int(item) - 1].as_py() for item in data.interactions.items[start:end]]


def text_of(data: SequenceData, item: str) -> str:
    return str(data.items.texts[data.items.names.to_pylist().index(item)].as_py())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(1, 4))
def test_the_core_filter_equals_removing_one_by_one(pairs: list[tuple[int, int]], core: int) -> None:
    users, items = np.array([p[0] for p in pairs], np.int64), np.array([p[1] for p in pairs], np.int64)
    left = set(range(len(pairs)))
    while True:
        bad = next(
            (
                i for i in sorted(left)
                if sum(users[j] == users[i] for j in left) < core or sum(items[j] == items[i] for j in left) < core
            ),
            None,
        )  # fmt: skip
        if bad is None:
            break
        left.remove(bad)
    assert np.flatnonzero(core_mask(users, items, core)).tolist() == sorted(left)


def test_a_table_of_events_becomes_histories_in_time_order(tmp_path: Path) -> None:
    events = pa.table(
        {
            "who": ["b", "a", "a", "b", "a", None],
            "what": [7, 9, 8, 7, 9, 8],
            "when": pa.array([30, 20, 10, 40, 50, 60], pa.timestamp("s")),
        }
    )
    pq.write_table(events, tmp_path / "events.parquet")
    (tmp_path / "items.csv").write_text("what,title,brand\n7,Seven,X\n8,Eight.,\n9,Nine,Y\n")
    columns = TableColumns("who", "what", "when", item_text=("title",), item_attributes=("brand",))
    data = read_table(tmp_path / "events.parquet", tmp_path / "items.csv", columns, ALL)
    assert history_of(data, "a") == ["8", "9"]  # the second 9 is a repeat
    assert history_of(data, "b") == ["7"]
    assert text_of(data, "8") == "Eight."
    assert data.notes["events_with_nulls"] == 1
    repeats = read_table(tmp_path / "events.parquet", None, columns, EventFilter(core=1, keep_repeats=True))
    assert history_of(repeats, "a") == ["8", "9", "9"]
    with pytest.raises(InteractionsError, match=r"events\.parquet: column 'nobody' is missing"):
        read_table(tmp_path / "events.parquet", None, TableColumns("nobody", "what", "when"), ALL)
    with pytest.raises(InteractionsError, match="column 'who' is string, expected whole numbers or timestamps"):
        read_table(tmp_path / "events.parquet", None, TableColumns("who", "what", "who"), ALL)
    with pytest.raises(InteractionsError, match="no events left of 6"):
        read_table(tmp_path / "events.parquet", None, columns, EventFilter(core=5))


def test_raw_amazon_2018_reviews_are_filtered_and_described(tmp_path: Path) -> None:
    reviews = [(u, i, 100 - n) for n, (u, i) in enumerate([("u", "x"), ("u", "y"), ("v", "x"), ("v", "y"), ("w", "x")])]
    with gzip.open(tmp_path / "reviews.json.gz", "wt") as stream:
        for user, item, time in reviews:
            stream.write(json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time}) + "\n")
    meta = {
        "asin": "x",
        "title": "An X",
        "brand": "B",
        "category": ["C", "D"],
        "description": ["Nice. "],
        "price": "$3",
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta) + "\n")
    data = read_amazon2018_raw(tmp_path / "reviews.json.gz", tmp_path / "meta.json", EventFilter(core=2))
    assert sorted(data.users.to_pylist()) == ["u", "v"]
    assert history_of(data, "u") == ["y", "x"]
    assert text_of(data, "x") == "Title: An X. Price: $3. Brand: B. Categories: C, D. Description: Nice."
    assert text_of(data, "y") == ""
    with gzip.open(tmp_path / "reviews.json.gz", "at") as stream:
        stream.write('{"asin": "x"}\n')
    with pytest.raises(InteractionsError, match="line 6: expected reviewerID"):
        read_amazon2018_raw(tmp_path / "reviews.json.gz", tmp_path / "meta.json", ALL)


def test_movielens_is_read_in_both_of_its_forms(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir()
    old.mkdir()
    (new / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,5\n1,20,3.0,2\n")
    (new / "movies.csv").write_text(
        'movieId,title,genres\n10,"Heat, The",Action|Crime\n20,Sabrina,(no genres listed)\n'
    )
    (old / "ratings.dat").write_text("1::10::4::5\n1::20::3::2\n")
    (old / "movies.dat").write_text(
        "10::Heat, The::Action|Crime\n20::Sabrina::(no genres listed)\n", encoding="latin-1"
    )
    for folder in (new, old):
        data = read_movielens(folder, ALL)
        assert history_of(data, "1") == ["20", "10"]
        assert text_of(data, "10") == "Title: Heat, The. Genres: Action, Crime."
        assert data.items.attributes.to_pylist() == [[], [1, 2]]


def test_yelp_reviews_are_events_since_a_date(tmp_path: Path) -> None:
    reviews = [
        ("u", "b1", "2019-02-01 10:00:00"),
        ("u", "b2", "2018-02-01 10:00:00"),
        ("u", "b3", "2019-01-01 00:00:00"),
    ]
    lines = [json.dumps({"user_id": u, "business_id": b, "date": d, "stars": 3}) for u, b, d in reviews]
    (tmp_path / "yelp_academic_dataset_review.json").write_text("\n".join(lines) + "\n")
    business = {"business_id": "b1", "name": "Joe's", "city": "Reno", "categories": "Bars, Food", "hours": None}
    (tmp_path / "yelp_academic_dataset_business.json").write_text(json.dumps(business) + "\n")
    data = read_yelp(tmp_path, ALL, since="2019-01-01")
    assert history_of(data, "u") == ["b3", "b1"]
    assert text_of(data, "b1") == "Name: Joe's. City: Reno. Categories: Bars, Food."


def test_steam_lines_are_literals_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_text(
        "{u'username': u'u', u'product_id': u'5', u'date': u'2017-12-17'}\n"
        "{u'username': u'u', u'product_id': u'6', u'date': u'2016-01-01'}\n"
    )
    (tmp_path / "games.json").write_text("{u'id': u'5', u'app_name': u'Doom', u'genres': [u'Action']}\n")
    data = read_steam(tmp_path / "reviews.json", tmp_path / "games.json", ALL)
    assert history_of(data, "u") == ["6", "5"]
    assert text_of(data, "5") == "Title: Doom. Tags: Action."
    (tmp_path / "reviews.json").write_text("__import__('os').getcwd()\n")
    with pytest.raises(InteractionsError, match="line 1"):
        read_steam(tmp_path / "reviews.json", tmp_path / "games.json", ALL)


def test_beauty_is_read_as_published(data_root: Path) -> None:
    if not (data_root / "amazon2014_seq" / "Beauty.txt").is_file():
        pytest.skip("Beauty.txt is not at hand")
    data = read_amazon2014(data_root / "amazon2014_seq", "Beauty")
    assert (data.interactions.num_users, data.interactions.num_items, len(data.interactions.items)) == (
        22_363, 12_101, 198_502,
    )  # fmt: skip
    assert data.interactions.lengths.min() == 5
    assert not data.items.has_text
    assert data.items.attributes[3].as_py() == [1, 2, 3]


def test_scientific_is_read_with_its_text(data_root: Path) -> None:
    if not (data_root / "amazon2018_scientific_text" / "Scientific.inter.json").is_file():
        pytest.skip("Scientific.inter.json is not at hand")
    data = read_amazon2018_processed(data_root / "amazon2018_scientific_text", "Scientific")
    assert (data.interactions.num_users, data.interactions.num_items, len(data.interactions.items)) == (
        8_317,
        4_344,
        58_492,
    )
    assert text_of(data, "1").startswith(
        "Title: Stanley TRA708T Sharpshooter 1/2-Inch Leg Length Staples, Steel (1000 Count)."
    )


def test_a_broken_line_of_an_s3rec_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "Toys.txt").write_text("1 1 2 3\n2 4 x\n")
    with pytest.raises(InteractionsError, match=r"Toys\.txt, line 2: items must be whole numbers"):
        read_amazon2014(tmp_path, "Toys")
    with pytest.raises(InteractionsError, match="no such file"):
        read_amazon2014(tmp_path, "Games")
