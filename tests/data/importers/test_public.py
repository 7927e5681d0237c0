"""The public data sets, imported from the real files: rows, known rates, and nothing that tells the label among the features."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayrec.data import public
from rayrec.data.importing.reading import SourceError
from rayrec.data.log import Log
from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.fitting import SchemaFitter
from rayrec.data.log.row_checks import check_rows
from rayrec.data.log.schema import CategoricalFeature
from rayrec.data.public.logs import PUBLIC_DATASETS, PublicName, find_datasets, import_public

Imported = Callable[[PublicName], Log]


@pytest.fixture(scope="module")
def imported(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """A log of each data set, imported once."""
    folder = tmp_path_factory.mktemp("public")

    def log(name: PublicName) -> Log:
        source = data_root / PUBLIC_DATASETS[name].folder
        if not source.is_dir():
            pytest.skip(f"no {source}")
        if not (folder / name).exists():
            unlabeled = folder / f"{name}-unlabeled" if PUBLIC_DATASETS[name].open_unlabeled else None
            import_public(name, folder / name, source, unlabeled=unlabeled)
        return Log.open(folder / name)

    return log


def rows(log: Log, *splits: str) -> pa.Table:
    """All columns of the given splits (default: all of them), in order."""
    return pa.concat_tables(pq.read_table(f) for split in splits or log.splits for f in log.files(split))


def shares(log: Log) -> dict[str, float]:
    table = rows(log)
    return {task.name: round(pc.mean(table.column(task.column)).as_py(), 3) for task in log.schema.tasks}


def quarantined(log: Log) -> dict[str, int]:
    return json.loads((log.path / "import.json").read_text())["quarantined"]


def values(log: Log, name: str, table: pa.Table) -> list[str | None]:
    """A categorical column as the values that its ids stand for."""
    feature = next(f for f in log.schema.categorical if f.name == name)
    assert feature.vocabulary is not None
    names = (None, *feature.vocabulary)
    return [names[i] for i in table.column(name).to_pylist()]


@pytest.mark.parametrize("name", list(PUBLIC_DATASETS))
def test_every_row_of_the_real_files_is_good(imported: Imported, name: PublicName) -> None:
    log = imported(name)
    expected = {
        "census-income": 99_762,
        "census-income-education": 99_762,
        "kuairand": 41_828,
        "criteo": 10_000,
        "ipinyou": 26_773 + 21_150,
        "open-bandit": 20_000,
        "coat": 6_960 + 4_640,
    }
    assert rows(log).num_rows == expected[name]
    assert quarantined(log) == {}
    assert log.splits == ("train", "valid", "test")


def test_census_income_has_the_published_rates(imported: Imported) -> None:
    assert shares(imported("census-income")) == {"income": 0.062, "never_married": 0.432}


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("census-income", {"income", "marital_status", "instance_weight"}),
        ("census-income-education", {"income", "marital_status", "instance_weight", "education"}),
    ],
)
def test_census_income_labels_are_no_features(imported: Imported, name: PublicName, hidden: set[str]) -> None:
    features = {feature.name for feature in imported(name).schema.features}
    assert not features & hidden
    assert len(features) == 42 - len(hidden)


def test_census_income_splits_by_a_hash_of_the_row(imported: Imported) -> None:
    log = imported("census-income")
    total = sum(log.rows(split) for split in log.splits)
    assert log.rows("test") / total == pytest.approx(0.2, abs=0.005)
    assert log.rows("valid") / total == pytest.approx(0.1, abs=0.005)


def test_census_income_question_marks_are_missing(imported: Imported) -> None:
    log = imported("census-income")
    table = rows(log)
    assert values(log, "migration_msa", table).count(None) == 49_946 + 723  # "?" and "Not in universe"
    vocabulary = {v for f in log.schema.categorical for v in f.vocabulary or ()}
    assert not vocabulary & {"?", "Not in universe", "", " Private"}
    assert "Private" in vocabulary


def test_kuairand_has_the_published_rates(imported: Imported) -> None:
    found = shares(imported("kuairand"))
    published = {
        "click": 0.657,
        "long_view": 0.462,
        "comment": 0.030,
        "follow": 0.007,
        "forward": 0.008,
        "profile_enter": 0.053,
    }
    assert {name: found[name] for name in published} == published
    assert set(found) - set(published) == {"like"}


def test_kuairand_test_rows_come_after_all_others(imported: Imported) -> None:
    log = imported("kuairand")
    times = {split: rows(log, split).column("time_ms").to_numpy() for split in log.splits}
    assert times["train"].max() < times["valid"].min() <= times["valid"].max() < times["test"].min()
    assert log.rows("test") == pytest.approx(0.2 * 41_828, abs=50)


def test_kuairand_knows_nothing_of_the_time_played(imported: Imported) -> None:
    names = {feature.name for feature in imported("kuairand").schema.features}
    rates = {name for name in names if name.endswith("_rate")}
    assert names - rates == {"user_id", "video_id", "hour", "weekday", "duration_ms"}
    assert rates == {
        f"{key}_{task}_rate" for key in ("user", "video") for task in imported("kuairand").schema.task_names
    }


def test_kuairand_rates_are_those_of_earlier_rows(imported: Imported) -> None:
    table = rows(imported("kuairand"))
    times, users, clicks, rates = (
        table.column(name).to_numpy() for name in ("time_ms", "user_id", "click", "user_click_rate")
    )
    for row in np.argsort(times)[[0, 1_000, 20_000, -1]]:
        earlier = times < times[row]
        overall = (clicks[earlier].sum() + 1) / (earlier.sum() + 2)
        own = earlier & (users == users[row])
        assert rates[row] == pytest.approx((clicks[own].sum() + 20 * overall) / (own.sum() + 20), rel=1e-5)


def test_kuairand_hours_are_those_of_the_file(imported: Imported, data_root: Path) -> None:
    log = imported("kuairand")
    table = rows(log)
    first = values(log, "hour", table.filter(pc.equal(table.column("time_ms"), 1649664552983)))
    assert first == ["16"]  # 2022-04-11 08:09 UTC is 16:09 in Beijing, a Monday
    assert values(log, "weekday", table.filter(pc.equal(table.column("time_ms"), 1649664552983))) == ["0"]


def test_kuairand_is_read_from_the_published_files_too(tmp_path: Path) -> None:
    header = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
        "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
    )
    lines = [
        f"{i % 5},{i % 9},20220408,1200,{1649400000000 + i},1,{i % 2},0,0,0,0,1,{i},9000,0,0,0,0,1" for i in range(60)
    ]
    (tmp_path / "data").mkdir()
    for name, part in (("log_standard_4_08.csv", lines[:40]), ("log_standard_4_22.csv", lines[40:])):
        (tmp_path / "data" / name).write_text("\n".join([header, *part]) + "\n")
    (tmp_path / "data" / "video_features_basic.csv").write_text("video_id,author_id\n1,2\n")
    log = Log.open(import_public("kuairand", tmp_path / "log", tmp_path / "data"))
    assert rows(log).num_rows == 60
    assert pc.sum(rows(log).column("like")).as_py() == 30
    assert quarantined(log) == {}


def test_criteo_test_rows_are_the_last_of_the_file(imported: Imported, data_root: Path) -> None:
    log = imported("criteo")
    lines = (data_root / "criteo_kaggle_10k" / "criteo_10k.tsv").read_text().splitlines()
    clicks = [float(line.split("\t")[0]) for line in lines]
    assert rows(log).column("click").to_pylist() == clicks
    assert [log.rows(split) for split in log.splits] == [7_000, 1_000, 2_000]
    assert shares(log)["click"] == 0.218


def test_criteo_rare_values_are_unknown_and_numbers_stay_raw(imported: Imported, data_root: Path) -> None:
    log = imported("criteo")
    lines = (data_root / "criteo_kaggle_10k" / "criteo_10k.tsv").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    seen = [row[14] for row in cells[:7_000]]
    known = {value for value in set(seen) if value and seen.count(value) >= 4}
    table = rows(log)
    assert values(log, "C1", table) == [row[14] if row[14] in known else None for row in cells]
    assert table.column("I2").to_pylist() == [float(row[2]) if row[2] else None for row in cells]


def test_ipinyou_rows_are_decoded_by_field(imported: Imported) -> None:
    log = imported("ipinyou")
    assert rows(log, "train", "valid").num_rows == 26_773
    assert pc.sum(rows(log, "train", "valid").column("click")).as_py() == 255
    assert pc.sum(rows(log, "test").column("click")).as_py() == 50
    first = rows(log, "test").slice(0, 1)
    assert values(log, "useragent", first) == ["android_safari"]
    assert values(log, "city", first) == ["255"]
    assert values(log, "slotprice", first) == ["11-50"]


def test_open_bandit_carries_the_propensities_of_both_policies(imported: Imported) -> None:
    log = imported("open-bandit")
    table = rows(log)
    uniform = table.filter(pc.equal(table.column("uniform_policy"), 1.0))
    assert uniform.num_rows == 10_000
    np.testing.assert_allclose(uniform.column("propensity_score").to_numpy(), 1 / 34)
    assert pc.sum(uniform.column("click")).as_py() == 46
    assert pc.sum(table.column("click")).as_py() == 46 + 69
    assert pc.min(table.column("propensity_score")).as_py() == pytest.approx(1.7e-4, rel=0.05)
    assert "propensity_score" not in {feature.name for feature in log.schema.features}


def test_coat_trains_on_chosen_and_tests_on_random_ratings(imported: Imported) -> None:
    log = imported("coat")
    assert rows(log, "train", "valid").num_rows == 6_960
    assert rows(log, "test").num_rows == 4_640
    assert pc.mean(rows(log, "train", "valid").column("rating")).as_py() == pytest.approx(2.611, abs=5e-4)
    assert pc.mean(rows(log, "test").column("rating")).as_py() == pytest.approx(2.229, abs=5e-4)
    table = rows(log)
    liked = pc.greater_equal(table.column("rating"), 4).cast(pa.float32())
    assert table.column("liked").equals(liked)


def test_coat_unlabeled_rows_are_all_pairs_encoded_like_the_labeled_ones(imported: Imported) -> None:
    log = imported("coat")
    unlabeled = Log.open(log.path.with_name("coat-unlabeled"))
    assert unlabeled.schema == log.schema
    pairs = rows(unlabeled)
    assert pairs.num_rows == 290 * 300
    assert pairs.column("liked").null_count == pairs.num_rows
    ids = [f.name for f in log.schema.features if isinstance(f, CategoricalFeature)]
    of_pair = {(row["user"], row["item"]): row for row in pairs.select(ids).to_pylist()}
    assert len(of_pair) == pairs.num_rows
    assert all(of_pair[row["user"], row["item"]] == row for row in rows(log, "test").select(ids).to_pylist())


LABELS = {  # raw columns that hold them, and what turns one value into another
    "census-income": {"income": (" - 50000.", " 50000+.")},
    "census-income-education": {"income": (" - 50000.", " 50000+.")},
    "criteo": {"click": ("0", "1")},
    "ipinyou": {"click": ("0", "1")},
    "open-bandit": {"click": ("0", "1")},
    "coat": {"liked": (0, 1)},
}


@pytest.mark.parametrize("name", [name for name in PUBLIC_DATASETS if name != "kuairand"])
def test_no_feature_of_a_row_changes_with_any_label(data_root: Path, name: PublicName) -> None:
    """Rows as they are, and with all labels turned: what is fitted and encoded is the same, and the labels are not."""
    dataset = PUBLIC_DATASETS[name]
    source = dataset.open_source(data_root / dataset.folder)
    raw = next(iter(source.chunks())).table.slice(0, 3_000)
    turned = raw
    for column, (one, other) in LABELS[name].items():
        old = raw.column(column)
        is_one = pc.equal(pc.utf8_trim_whitespace(old), one.strip()) if isinstance(one, str) else pc.equal(old, one)
        new = pc.if_else(is_one, pa.scalar(other, old.type), pa.scalar(one, old.type))
        turned = turned.set_column(raw.schema.get_field_index(column), column, new)
    found = []
    for table in (raw, turned):
        checked = check_rows(dataset.schema, source.columns_of(table))
        fitter = SchemaFitter(dataset.schema)
        fitter.update(checked, np.ones(len(table), np.bool_))
        fitted = fitter.fit()
        found.append((fitted, pa.table(LogEncoder(fitted).encode_checked(checked) | checked.others)))
    (schema, rows_as_they_are), (others_schema, others) = found
    assert schema == others_schema
    assert schema.made_of_labels == ()
    for feature in schema.features:
        assert rows_as_they_are.column(feature.name).equals(others.column(feature.name)), feature.name
    changed = [t.column for t in schema.tasks if not rows_as_they_are.column(t.column).equals(others.column(t.column))]
    assert changed


def test_kuairand_features_change_with_earlier_labels_alone_and_those_that_do_are_declared(
    data_root: Path, tmp_path: Path
) -> None:
    lines = (
        (data_root / PUBLIC_DATASETS["kuairand"].folder / "processed_standard_kcore_15.csv").read_text().splitlines()
    )
    head, body = (
        lines[0].split("\t" if "\t" in lines[0] else ","),
        [line.split("\t" if "\t" in lines[0] else ",") for line in lines[1:4_001]],
    )
    when = head.index("time_ms")
    middle = sorted(int(row[when]) for row in body)[2_000]
    places = [
        head.index(c)
        for c in ("is_click", "long_view", "label", "is_comment", "is_follow", "is_forward", "is_profile_enter")
    ]
    logs = []
    for name, turned in (("as-they-are", False), ("turned", True)):
        changed = [
            [
                str(1 - int(float(v))) if turned and i in places and int(row[when]) >= middle else v
                for i, v in enumerate(row)
            ]
            for row in body
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(",".join(row) for row in [head, *changed]) + "\n")
        logs.append(Log.open(import_public("kuairand", tmp_path / name, tmp_path / f"{name}.csv")))
    before, after = (rows(log) for log in logs)
    assert before.column("time_ms").equals(after.column("time_ms"))
    known = pc.less_equal(before.column("time_ms"), middle)
    features = [feature.name for feature in logs[0].schema.features]
    for feature in features:
        assert before.column(feature).filter(known).equals(after.column(feature).filter(known)), feature
    differ = {name for name in features if not before.column(name).equals(after.column(name))}
    assert differ == {made.column for made in logs[0].schema.made_of_labels}


def test_a_data_set_without_unlabeled_rows_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="census-income: this data set has no unlabeled rows"):
        import_public("census-income", tmp_path / "log", tmp_path, unlabeled=tmp_path / "unlabeled")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(PUBLIC_DATASETS))
def test_a_folder_without_the_files_is_one_clear_error(name: PublicName, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(SourceError, match=str(tmp_path / "raw")):
        import_public(name, tmp_path / "log", tmp_path / "raw")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_absent_default_folder_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_DATA", str(tmp_path))
    with pytest.raises(SourceError, match="RAYREC_DATA"):
        import_public("criteo", tmp_path / "log")


def test_a_file_in_the_folder_is_all_that_a_new_data_set_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clicks_of_mine.py").write_text(
        "from dataclasses import replace\n"
        "from rayrec.data.public.criteo import CRITEO\n"
        "CLICKS = replace(CRITEO, schema=replace(CRITEO.schema, name='clicks-of-mine'), signal='strong')\n"
    )
    monkeypatch.setattr("rayrec.data.public.__path__", [*public.__path__, str(tmp_path)])
    found = find_datasets()
    assert set(found) == {*PUBLIC_DATASETS, "clicks-of-mine"}
    assert list(found) == sorted(found)
    (tmp_path / "clicks_again.py").write_text(
        "from dataclasses import replace\n"
        "from rayrec.data.public.criteo import CRITEO\nAGAIN = replace(CRITEO, folder='elsewhere')\n"
    )
    with pytest.raises(ValueError, match="two public data sets are called 'criteo'"):
        find_datasets()
