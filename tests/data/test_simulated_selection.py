"""A simulated selection: who is selected, what keeps its label, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data.log import Log, LogError, LogWriter
from rayrec.data.log.schema import DenseFeature, DenseStatistics, LogSchema, TaskLabel
from studies.simulated_selection import SelectionConfig, simulate_selection

ROWS = {"train": 1_010, "valid": 100, "test": 50}


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """One feature that is the row's number, labels that are its parity, and a score that rises with it."""
    schema = LogSchema(
        "rows",
        (DenseFeature("row", statistics=DenseStatistics(0.0, 1.0, 0.0)),),
        (TaskLabel("odd"),),
        extras=("score",),
    )
    with LogWriter(tmp_path / "log", schema) as writer:
        for split, rows in ROWS.items():
            row = np.arange(rows, dtype=np.float32)
            writer.write(split, pa.table({"row": row, "odd": row % 2, "score": (row + 1.0) / (rows + 1)}))
        writer.finish({"importer": "test"})
    return Log.open(tmp_path / "log")


def column(log: Log, split: str, name: str) -> np.ndarray:
    return pq.read_table(list(log.files(split))).column(name).to_numpy()


def test_selected_and_other_rows_are_the_whole_and_only_the_selected_and_the_test_keep_labels(log, tmp_path) -> None:
    counts = simulate_selection(log, SelectionConfig("score", pool=20, shown=3), tmp_path / "out")
    labeled, unlabeled = Log.open(tmp_path / "out" / "labeled"), Log.open(tmp_path / "out" / "unlabeled")
    assert counts == (150, 850)  # 50 pools of 20; the ten rows that are left over belong to none
    for split, pools in (("train", 50), ("valid", 5)):
        rows = column(labeled, split, "row"), column(unlabeled, split, "row")
        assert [len(r) for r in rows] == [3 * pools, 17 * pools]
        assert len(np.unique(np.concatenate(rows))) == 20 * pools
        np.testing.assert_array_equal(column(labeled, split, "odd"), rows[0] % 2)
        assert np.isnan(column(unlabeled, split, "odd").astype(float)).all()
    np.testing.assert_array_equal(column(labeled, "test", "odd"), np.arange(50) % 2)


def test_without_noise_the_best_of_a_pool_are_selected_and_noise_lets_others_in(log, tmp_path) -> None:
    means = []
    for noise in (0.0, 1.0, 100.0):
        folder = tmp_path / f"noise-{noise}"
        simulate_selection(log, SelectionConfig("score", pool=10, shown=1, noise=noise), folder)
        means.append(column(Log.open(folder / "labeled"), "train", "row").mean())
    assert means[0] == pytest.approx(1_010 * 10 / 11, rel=0.02)  # the mean of the largest of ten uniform draws
    assert means[0] > means[1] > means[2]
    assert means[2] == pytest.approx(505, rel=0.15)


def test_a_pool_as_large_as_a_split_shows_its_very_best(log, tmp_path) -> None:
    simulate_selection(log, SelectionConfig("score", pool=100, shown=4, noise=0.0), tmp_path / "out")
    assert sorted(column(Log.open(tmp_path / "out" / "labeled"), "valid", "row")) == [96, 97, 98, 99]


def test_what_cannot_be_selected_is_refused_by_name(log, tmp_path) -> None:
    with pytest.raises(LogError, match=r"no extra 'rank' to select by \(extras: score\)"):
        simulate_selection(log, SelectionConfig("rank"), tmp_path / "out")
    with pytest.raises(LogError, match="100 rows in split 'valid', a pool has 200"):
        simulate_selection(log, SelectionConfig("score", pool=200), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(LogError, match="exists already"):
        simulate_selection(log, SelectionConfig("score"), log.path)
    with pytest.raises(ValueError, match="between 1 and 19 can be shown, not 20"):
        SelectionConfig("score", shown=20)
