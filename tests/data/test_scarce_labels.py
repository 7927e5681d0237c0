"""Scarce labels: a share of rows keeps them, the rest is there without, and nothing else changes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.keep_labels import KeepLabels, run
from rayrec.data.log import Log, LogError, LogWriter
from rayrec.data.log.running_rates import running_rates
from rayrec.data.log.scarce_labels import keep_labels, without_lost_labels
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    MadeOfLabels,
    SchemaError,
    TaskLabel,
)


def rows(folder: Path, split: str = "train") -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in Log.open(folder).files(split)])


def test_every_training_row_is_in_one_of_the_two_logs_and_only_the_labeled_one_has_labels(
    small_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(KeepLabels(small_log, 0.1, tmp_path / "scarce"))
    labeled, unlabeled = rows(tmp_path / "scarce" / "labeled"), rows(tmp_path / "scarce" / "unlabeled")
    assert f"{labeled.num_rows:,} labeled rows" in capsys.readouterr().out
    assert labeled.num_rows == pytest.approx(1200, abs=120)
    assert unlabeled.column("click").null_count == unlabeled.column("buy").null_count == unlabeled.num_rows
    assert labeled.column("click").null_count == 0
    whole = rows(small_log)
    assert sorted(whole["price"].to_pylist()) == sorted(
        (*labeled["price"].to_pylist(), *unlabeled["price"].to_pylist())
    )
    by_price = {row["price"]: row for row in whole.to_pylist()}
    assert all(by_price[row["price"]] == row for row in labeled.to_pylist())


def test_test_rows_stay_where_they_are_and_validation_is_thinned_like_the_training_rows(
    small_log: Path, tmp_path: Path
) -> None:
    keep_labels(Log.open(small_log), 0.1, tmp_path / "scarce")
    assert rows(tmp_path / "scarce" / "labeled", "test").equals(rows(small_log, "test"))
    kept, others = (rows(tmp_path / "scarce" / part, "valid") for part in ("labeled", "unlabeled"))
    assert kept.num_rows + others.num_rows == rows(small_log, "valid").num_rows
    assert kept.num_rows == pytest.approx(0.1 * rows(small_log, "valid").num_rows, rel=0.25)
    assert others.column("click").null_count == others.num_rows
    assert Log.open(tmp_path / "scarce" / "unlabeled").splits == ("train", "valid")
    keep_labels(Log.open(small_log), 0.1, tmp_path / "whole", whole_validation=True)
    assert rows(tmp_path / "whole" / "labeled", "valid").equals(rows(small_log, "valid"))
    assert Log.open(tmp_path / "whole" / "unlabeled").splits == ("train",)


def log_with_rates(folder: Path, seed: int = 0) -> Log:
    """300 rows of five users over 100 times, their true running rates of like, and an extra that a model made of labels."""
    generator = np.random.default_rng(seed)
    users, times = generator.integers(0, 6, 300), np.sort(generator.integers(0, 100, 300))  # 0 = unknown
    likes = generator.integers(0, 2, 300).astype(np.float32)
    rates = running_rates(np.where(users > 0, users, -np.arange(300)), times, likes[:, None])[:, 0]
    schema = LogSchema(
        "rates",
        (
            CategoricalFeature("user", vocabulary=tuple("abcde")),
            DenseFeature("user_like_rate", statistics=DenseStatistics(0.5, 1.0, 0.0)),
        ),
        (TaskLabel("like"),),
        timestamp="time",
        extras=("teacher",),
        made_of_labels=(MadeOfLabels("user_like_rate", ("like",), rate_of="user"), MadeOfLabels("teacher", ("like",))),
    )
    table = pa.table(
        {"user": users.astype(np.int32), "user_like_rate": rates, "like": likes, "time": times, "teacher": likes + 0.5}
    )
    with LogWriter(folder, schema) as writer:
        for split, part in (("train", slice(0, 200)), ("valid", slice(200, 250)), ("test", slice(250, 300))):
            writer.write(split, table.slice(part.start, part.stop - part.start))
        writer.finish({})
    return Log.open(folder)


def test_rates_are_made_again_of_the_labels_that_are_left_and_what_cannot_be_is_left_out(tmp_path: Path) -> None:
    log = log_with_rates(tmp_path / "log")
    keep_labels(log, 0.3, tmp_path / "scarce")
    labeled, unlabeled = Log.open(tmp_path / "scarce" / "labeled"), Log.open(tmp_path / "scarce" / "unlabeled")
    assert labeled.schema == unlabeled.schema
    assert labeled.schema.extras == ()
    assert [made.column for made in labeled.schema.made_of_labels] == ["user_like_rate"]
    parts = [(part, split) for part in (labeled, unlabeled) for split in part.splits if split != "test"]
    every = [row for part, split in parts for row in rows(part.path, split).to_pylist()]
    tested = rows(labeled.path, "test").to_pylist()
    assert (len(every), len(tested)) == (250, 50)
    assert all(row["like"] is not None for row in tested)
    draws = np.random.default_rng(0)
    draws.random(250)  # of the training and validation rows
    drawn = draws.random(50) < 0.3
    every += [{**row, "like": row["like"] if known else None} for row, known in zip(tested, drawn, strict=True)]
    for row in every:
        earlier = [r for r in every if r["time"] < row["time"] and r["like"] is not None]
        overall = (sum(r["like"] for r in earlier) + 1) / (len(earlier) + 2)
        own = [r["like"] for r in earlier if r["user"] == row["user"] != 0]
        assert row["user_like_rate"] == pytest.approx((sum(own) + 20 * overall) / (len(own) + 20), rel=1e-5)
    train = np.array([r["user_like_rate"] for part in (labeled, unlabeled) for r in rows(part.path).to_pylist()])
    (rate,) = labeled.schema.dense
    assert rate.statistics is not None
    assert (rate.statistics.mean, rate.statistics.std) == pytest.approx((train.mean(), train.std()), rel=1e-5)


def test_no_feature_of_a_log_with_scarce_labels_depends_on_a_label_that_was_taken(tmp_path: Path) -> None:
    log = log_with_rates(tmp_path / "log")
    kept = {"train": np.arange(200) % 4 == 0, "valid": np.arange(50) % 4 == 0}
    (tmp_path / "other").mkdir()
    with LogWriter(tmp_path / "other" / "log", log.schema) as writer:
        for split in log.splits:
            table = rows(log.path, split)
            own = kept.get(split, np.ones(len(table), np.bool_))
            flipped = np.where(own, table.column("like").to_numpy(), 1 - table.column("like").to_numpy())
            writer.write(split, table.set_column(2, "like", pa.array(flipped, pa.float32())))
        writer.finish({})
    first, second = (without_lost_labels(l, kept) for l in (log, Log.open(tmp_path / "other" / "log")))
    assert first[0].schema == second[0].schema
    for split, columns in first[1].items():
        np.testing.assert_array_equal(columns["user_like_rate"], second[1][split]["user_like_rate"])
        assert not np.array_equal(columns["user_like_rate"], rows(log.path, split).column("user_like_rate").to_numpy())


def test_a_smaller_share_is_part_of_a_larger_one_and_the_seed_decides(small_log: Path, tmp_path: Path) -> None:
    prices = {}
    for name, share, seed in (("few", 0.05, 0), ("more", 0.2, 0), ("others", 0.05, 1)):
        keep_labels(Log.open(small_log), share, tmp_path / name, seed=seed)
        prices[name] = set(rows(tmp_path / name / "labeled")["price"].to_pylist())
    assert prices["few"] < prices["more"]
    assert len(prices["few"] & prices["others"]) < 0.2 * len(prices["few"])


def test_what_cannot_be_done_leaves_nothing_behind(small_log: Path, tmp_path: Path) -> None:
    log = Log.open(small_log)
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        keep_labels(log, 1.0, tmp_path / "all")
    with pytest.raises(LogError, match="seed must be at least 0, not -1"):
        keep_labels(log, 0.5, tmp_path / "seed", seed=-1)
    with pytest.raises(LogError, match="leaves 0 labeled"):
        keep_labels(log, 1e-9, tmp_path / "none")
    (tmp_path / "there").mkdir()
    with pytest.raises(LogError, match="exists already"):
        keep_labels(log, 0.5, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_is_said_of_columns_made_of_labels_is_checked() -> None:
    def schema(made: MadeOfLabels) -> LogSchema:
        return LogSchema(
            "x", (CategoricalFeature("user"), DenseFeature("rate")), (TaskLabel("like"),), made_of_labels=(made,)
        )

    with pytest.raises(SchemaError, match="names no feature or extra: 'gone'"):
        schema(MadeOfLabels("gone", ("like",)))
    with pytest.raises(SchemaError, match="rate_of names no categorical feature: 'rate'"):
        schema(MadeOfLabels("rate", ("like",), rate_of="rate"))
    with pytest.raises(SchemaError, match="a rate is a dense feature made of one task"):
        schema(MadeOfLabels("rate", ("like", "other"), rate_of="user"))
    assert schema(MadeOfLabels("rate", ("like",))).without_columns(frozenset({"rate"})).made_of_labels == ()
