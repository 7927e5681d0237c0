"""Scarce labels: a share of rows keeps them, the rest is there without, and nothing else changes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.keep_labels import KeepLabels, run
from rayrec.data.log import Log, LogError
from rayrec.data.log.scarce_labels import keep_labels


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


def test_validation_and_test_rows_stay_where_they_are(small_log: Path, tmp_path: Path) -> None:
    keep_labels(Log.open(small_log), 0.1, tmp_path / "scarce")
    for split in ("valid", "test"):
        assert rows(tmp_path / "scarce" / "labeled", split).equals(rows(small_log, split))
    assert Log.open(tmp_path / "scarce" / "unlabeled").splits == ("train",)


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
    with pytest.raises(LogError, match="leaves 0 labeled"):
        keep_labels(log, 1e-9, tmp_path / "none")
    (tmp_path / "there").mkdir()
    with pytest.raises(LogError, match="exists already"):
        keep_labels(log, 0.5, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
