"""The table of item features: rows by item from mapped memory, and what is refused at writing and at loading."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.bundle_item_features import BundleItemFeatures, run
from rayrec.bundle import BundleError
from rayrec.data.importing.importing import ImportOptions
from rayrec.data.importing.table import TableFiles, import_table
from rayrec.data.log import Log, LogWriter
from rayrec.data.log.direct_encoding import DirectEncoder
from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    SequenceFeature,
    TaskLabel,
)
from rayrec.data.log.splitting import HashSplit
from rayrec.data.simulation import SimulationConfig, WorldConfig, simulate
from rayrec.errors import UserError
from rayrec.item_features import ItemFeaturesError, PairFeature, load_item_features, write_item_features
from rayrec.item_features.encoded import encode_items
from rayrec.item_features.from_log import item_table
from rayrec.registry import resolve_model


def write(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    write_item_features(folder, pa.table(columns), "item", run_config={}, **options)
    return folder


def test_each_item_has_the_row_that_was_written_and_strangers_have_none(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    items = [f"item {i}" for i in range(5_000)]
    prices = generator.normal(size=5_000)
    tags = [[str(i), "x"][: i % 3] for i in range(5_000)]
    table = load_item_features(
        write(tmp_path / "b", {"item": items, "price": prices, "tags": tags}), tmp_path / "mapped"
    )
    asked = [items[i] for i in generator.permutation(5_000)[:300]] + ["item", "", "item 5000"]
    rows = table.rows(asked)
    assert (rows[:300] >= 0).all()
    assert (rows[300:] == -1).all()
    found = table.columns(rows[:300], ["tags", "price", "item"])
    numbers = [int(item.split()[1]) for item in asked[:300]]
    assert found == {"tags": [tags[i] for i in numbers], "price": [prices[i] for i in numbers], "item": asked[:300]}


def test_two_loads_of_a_version_map_one_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", {"item": ["a", "b"], "price": [1.0, None]})
    first = load_item_features(folder, tmp_path / "mapped")
    (file,) = (tmp_path / "mapped").glob("*.arrow")
    written = file.stat().st_mtime_ns
    second = load_item_features(folder, tmp_path / "mapped")
    assert file.stat().st_mtime_ns == written
    for table in (first, second):
        assert table.columns(table.rows(["b", "a"]), ["price"]) == {"price": [None, 1.0]}
    assert str(file) in Path("/proc/self/maps").read_text()


def test_an_empty_table_knows_nobody(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", {"item": pa.array([], pa.string()), "price": pa.array([], pa.float64())})
    table = load_item_features(folder, tmp_path / "mapped")
    assert table.rows(["a", "b"]).tolist() == [-1, -1]


def test_kinds_follow_the_types_and_whole_numbers_name_categories_where_it_is_said(tmp_path: Path) -> None:
    columns = {
        "item": pa.array([3, 1]),
        "count": pa.array([1, 2]),
        "shop": pa.array([7, None]),
        "open": pa.array([True, False]),
        "colour": pa.array([" red ", "blue"]).dictionary_encode(),
        "codes": pa.array([[1, 2], None]),
    }
    table = load_item_features(write(tmp_path / "b", columns, codes=frozenset({"shop"})), tmp_path / "mapped")
    kinds = {"item": "code", "count": "number", "shop": "code", "open": "code", "colour": "code", "codes": "codes"}
    assert table.schema.kinds == kinds
    assert table.columns(table.rows(["3"]), list(kinds)) == {
        "item": ["3"], "count": [1.0], "shop": ["7"], "open": ["true"], "colour": ["red"], "codes": [["1", "2"]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"item": ["a", "a"]}, "item 'a' has two rows"),
        ({"item": ["a", None]}, "column 'item': row 2 names no item"),
        ({"name": ["a"]}, "column 'item' names the items and is absent"),
        ({"item": ["a", "b"], "price": [1.0, float("nan")]}, "column 'price', item 'b': nan"),
        ({"item": ["a", "b"], "price": [1e39, 1.0]}, "column 'price', item 'a': 1e\\+39"),
        ({"item": ["a"], "text": ["x" * 1_025]}, "column 'text': a code of 1,025 characters"),
        ({"item": ["a"], "when": pa.array([0], pa.timestamp("s"))}, "column 'when' is timestamp"),
    ],
)
def test_a_table_that_does_not_fit_is_not_written(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(ItemFeaturesError, match=told):
        write(tmp_path / "b", columns)
    assert not (tmp_path / "b").exists()


def test_a_changed_bundle_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", {"item": ["a", "b"], "price": [1.0, 2.0]})
    config, items = json.loads((folder / "config.json").read_text()), folder / "items.parquet"
    names = pq.read_table(items).column("item").to_pylist()

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            load_item_features(folder, tmp_path / "mapped")

    def vouch() -> None:
        digest = hashlib.sha256(items.read_bytes()).hexdigest()
        (folder / "config.json").write_text(json.dumps(config | {"sha256": {"items.parquet": digest}}))

    items.write_bytes(items.read_bytes()[:-1] + b" ")
    refused("items.parquet: does not match the sha256")
    items.unlink()
    refused("items.parquet is missing")
    for table, told in (
        (pa.table({"item": ["a", "b", "c"], "price": [1.0, 2.0, 3.0]}), "3 rows instead of 2"),
        (pa.table({"item": ["a", "b"], "price": ["x", "y"]}), "columns .* instead of"),
        (pa.table({"item": names[::-1], "price": [1.0, 2.0]}), "not in the order"),
        (pa.table({"item": ["a", "a"], "price": [1.0, 2.0]}), "item 'a' has two rows"),
        (pa.table({"item": names, "price": [1.0, float("inf")]}), "inf is not a number within float32"),
    ):
        pq.write_table(table, items)
        vouch()
        refused(told)
    items.write_bytes(b"PAR1 and no more")
    vouch()
    refused("not a readable Parquet file")


def reader(*features: Any) -> LogSchema:
    return LogSchema(name="reader", features=features, tasks=(TaskLabel("click"),))


def test_a_reader_of_another_type_or_of_what_is_missing_is_refused(tmp_path: Path) -> None:
    columns = {"item": ["a", "b"], "price": [1.0, None], "colour": ["red", ""], "tags": [["x"], None]}
    table = load_item_features(write(tmp_path / "b", columns), tmp_path / "mapped")
    fits = DenseFeature("price"), CategoricalFeature("colour"), SequenceFeature("tags")
    table.check(reader(*fits, DenseFeature("age", allow_missing=False)), "it")
    for feature, told in (
        (CategoricalFeature("price"), "column 'price' of the items is of the kind 'number', it reads 'code'"),
        (SequenceFeature("colour"), "column 'colour' of the items is of the kind 'code', it reads 'codes'"),
        (DenseFeature("tags"), "column 'tags' of the items is of the kind 'codes', it reads 'number'"),
        (DenseFeature("price", allow_missing=False), "column 'price' misses a value of item 'b'"),
        (CategoricalFeature("colour", allow_missing=False), "column 'colour' misses a value of item 'b'"),
    ):
        with pytest.raises(ItemFeaturesError, match=told):
            table.check(reader(feature), "it")


def test_another_kind_of_bundle_is_no_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", {"item": ["a"]})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kind": "ranker"}))
    with pytest.raises(BundleError, match="holds a ranker, not a item_features"):
        load_item_features(folder, tmp_path / "mapped")


def test_a_log_gives_each_item_its_last_codes_and_mean_numbers(small_log: Path) -> None:
    log = Log.open(small_log)
    found = item_table(log, "train", "item", [], ["pri*"]).to_pylist()
    rows = pa.concat_tables(pq.read_table(file) for file in log.files("train"))
    ids, prices = rows.column("item").to_numpy(), rows.column("price").to_numpy().astype(np.float64)
    assert len(found) == 20
    for row in found:
        mine = ids == 1 + int(row["item"].split("-")[1])
        assert row["price"] == pytest.approx(prices[mine].mean(), rel=1e-9)
    with pytest.raises(ItemFeaturesError, match="'user' is hashed"):
        item_table(log, "train", "item", ["user"], [])
    with pytest.raises(ItemFeaturesError, match="'pirce' names no feature that is a number"):
        item_table(log, "train", "item", [], ["pirce"])
    missing_ages = item_table(log, "train", "item", [], ["age"]).column("age")
    ages = rows.column("age").to_pandas()
    assert missing_ages.to_pylist() == pytest.approx(
        [ages[ids == 1 + int(r["item"].split("-")[1])].mean() for r in found]
    )


def test_a_log_gives_the_last_value_of_a_code(tmp_path: Path) -> None:
    schema = LogSchema(
        name="two",
        features=(
            CategoricalFeature("item", vocabulary=("a", "b", "c")),
            CategoricalFeature("colour", vocabulary=("red", "blue")),
            DenseFeature("price", statistics=DenseStatistics(0.0, 1.0, 0.0)),
        ),
        tasks=(TaskLabel("click"),),
    )
    with LogWriter(tmp_path / "log", schema, rows_per_file=3) as writer:
        items, colours = [1, 2, 0, 1, 1, 3], [1, 0, 1, 2, 2, 0]
        for start in (0, 3):
            part = slice(start, start + 3)
            columns = {
                "item": items[part],
                "colour": colours[part],
                "price": [None, 1.0, None],
                "click": [1.0, 0.0, 0.0],
            }
            writer.write("train", pa.table(columns))
        writer.finish({})
    found = item_table(Log.open(tmp_path / "log"), "train", "item", ["colour"], ["price"])
    assert found.to_pylist() == [
        {"item": "a", "colour": "blue", "price": 1.0},
        {"item": "b", "colour": None, "price": 1.0},
        {"item": "c", "colour": None, "price": None},
    ]


def test_features_of_request_and_item_together_are_those_of_the_simulated_log(tmp_path: Path) -> None:
    world = WorldConfig(users=50, ads=100, campaigns=10, advertisers=5)
    logs = simulate(SimulationConfig(requests=300, world=world, crossed_features=True), tmp_path / "world")
    log = Log.open(logs.labeled)
    rows = pq.read_table(log.files("train")[0]).to_pylist()[:200]
    coders = {feature.name: feature for feature in log.schema.categorical}

    def name(feature: str, index: int) -> str:
        return coders[feature].vocabulary[index - 1]

    joined = PairFeature("segment_category", "joined", "segment", "category")
    share = PairFeature("interest_match", "share", "history", "category")
    for row in rows:
        own = [name("category", row["category"])]
        assert joined.values(name("segment", row["segment"]), own) == [
            name("segment_category", row["segment_category"])
        ]
        history = [name("category", index) for index in row["history"]]
        assert share.values(history, own) == pytest.approx([row["interest_match"]])
    assert joined.values(None, ["x"]) == joined.values("s", [None]) == [None]
    assert share.values([], ["x"]) == share.values(None, ["x"]) == [0.0]
    with pytest.raises(TypeError, match="expected a list"):
        share.values("x", ["x"])


def test_the_job_writes_a_bundle_and_registers_it(tmp_path: Path, runs: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item,price,shop\n007,1.5,3\n8,,\n")
    command = BundleItemFeatures("item", tmp_path / "b", table=file, codes=("shop",), joined=("where=city,shop",))
    run(command)
    found = resolve_model("models:/item_features@serving")
    table = load_item_features(found.path, tmp_path / "mapped")
    assert table.columns(table.rows(["007", "8"]), ["price", "shop"]) == {"price": [1.5, None], "shop": ["3", None]}
    assert table.schema.pairs == (PairFeature("where", "joined", "city", "shop"),)
    for wrong, told in (
        (replace(command, table=None), "give either --table or --log"),
        (replace(command, joined=("where",)), "not of the form"),
        (replace(command, joined=("price=city,shop",)), "columns used twice: price"),
        (replace(command, share=("x=city,price",)), "'price', which is no code"),
        (replace(command, table=tmp_path / "none.csv"), "no such file"),
    ):
        with pytest.raises(UserError, match=told):
            run(replace(wrong, out=tmp_path / "other"))


def test_numbers_of_which_one_is_na_are_asked_about(tmp_path: Path, runs: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item,price\n1,1.5\n2,NA\n")
    command = BundleItemFeatures("item", tmp_path / "b", table=file, register=None)
    with pytest.raises(ItemFeaturesError, match=r"items\.csv: column 'price' holds numbers and NA; give --missing NA"):
        run(command)
    run(replace(command, codes=("price",)))
    assert [column.kind for column in load_item_features(tmp_path / "b", tmp_path / "m").schema.columns] == ["code"] * 2
    run(replace(command, missing=("NA",), overwrite=True))
    assert [column.kind for column in load_item_features(tmp_path / "b", tmp_path / "m").schema.columns][1] == "number"


def test_a_csv_of_items_has_the_codes_and_numbers_that_its_import_as_a_log_has(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.csv"
    file.write_text(
        "item,country,fresh,day,shop,price,rate,click\n007,NA,True,2001-02-03,007,1.5,?,1\n7, de ,False,,7,,1e3,0\n"
        'NA,null,true,nan,NULL,nan,2,1\nnull,"",False,2001-02-03,,3,,0\n'
    )
    codes = ("item", "country", "fresh", "day", "shop")
    schema = LogSchema(
        "items",
        (
            *(CategoricalFeature(name) for name in codes),
            DenseFeature("price"),
            DenseFeature("rate", missing_values=("?",)),
        ),
        (TaskLabel("click"),),
    )
    everything = HashSplit(valid_share=0.0, test_share=0.0)
    log = Log.open(
        import_table(TableFiles((file,)), schema, everything, tmp_path / "log", options=ImportOptions(quiet=True))
    )
    command = BundleItemFeatures("item", tmp_path / "b", table=file, codes=("shop",), missing=("?",), register=None)
    run(command)
    printed = capsys.readouterr().out
    assert "number:  price, rate, click\n" in printed
    assert "code:    item, country, fresh, day, shop\n" in printed
    table = load_item_features(tmp_path / "b", tmp_path / "mapped")
    numbers, ids = [], []
    for row in pq.read_table(log.files("train")[0]).to_pylist():
        numbers.append([np.nan if row[name] is None else row[name] for name in ("price", "rate")])
        ids.append([row[name] for name in codes])
    encoded = encode_items(table, log.schema, tmp_path / "mapped").rows(table.rows(["007", "7", "NA", "null"]))
    np.testing.assert_array_equal(np.stack([encoded[name] for name in codes], 1), ids)
    np.testing.assert_array_equal(np.stack([encoded[name] for name in ("price", "rate")], 1), numbers)
    run(replace(command, out=tmp_path / "c", missing=()))
    assert "number:  price, click\n" in capsys.readouterr().out
    for text, problem in (
        ("item,shop,price\n ,1,2\n", "row 1 names no item"),
        ("item,shop,price\na,1,\n", "column 'price' is null"),
        ("item,price\na,1\n", r"items\.csv: column 'shop' is missing; found item, price"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            run(replace(command, out=tmp_path / "other"))


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_encoded_items_are_what_encoding_their_values_with_a_request_gives(rows: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    schema = LogSchema(
        name="reader",
        features=(
            DenseFeature("price", missing_values=("-1",), statistics=DenseStatistics(0.0, 1.0, 0.0)),
            DenseFeature("age", statistics=DenseStatistics(0.0, 1.0, 0.0)),
            CategoricalFeature("item", encoding="hash", buckets=50, allow_missing=False),
            CategoricalFeature("colour", vocabulary=("red", "blue")),
            SequenceFeature("history", max_length=3, shares="colour"),
            SequenceFeature("tags", max_length=2, encoding="hash", buckets=9),
        ),
        tasks=(TaskLabel("click"),),
    )
    columns = {
        "item": pa.array([f"item-{i}" for i in range(rows)], pa.string()),
        "price": pa.array([None if i % 5 == 2 else [-1.0, 2.5, 1e17][i % 3] for i in range(rows)], pa.float64()),
        "colour": pa.array([["red", "blue", "green", "", None][i % 5] for i in range(rows)], pa.string()),
        "tags": pa.array([["a", "b"][: i % 3] for i in range(rows)], pa.list_(pa.string())),
    }
    table = load_item_features(write(tmp_path / "b", columns), tmp_path / "mapped")
    encoded = encode_items(table, schema, tmp_path / "mapped")
    assert encoded.names == {"item", "price", "colour"}
    again = encode_items(table, schema, tmp_path / "mapped")  # mapped
    direct = DirectEncoder(LogEncoder(schema))
    chosen = generator.integers(0, rows, 40) if rows else np.zeros(0, np.int64)
    raw = table.columns(chosen, ["item", "price", "colour", "tags"])
    for history, age in (([["blue", "red"]], [3.0]), ([["new"]], [1e17])):  # the second takes the way through Arrow
        shared = {"history": history, "age": age}
        expected, counted = direct.encode(raw, shared, [len(chosen)])
        for one in (encoded, again):
            batch, unknown = direct.encode({"tags": raw["tags"]}, shared, [len(chosen)], one.rows(chosen))
            assert torch.equal(batch.dense.nan_to_num(-9.0), expected.dense.nan_to_num(-9.0))
            assert torch.equal(batch.categorical, expected.categorical)
            assert all(map(torch.equal, batch.sequences, expected.sequences))
            assert {k: v.tolist() for k, v in unknown.items()} == {k: v.tolist() for k, v in counted.items()}
