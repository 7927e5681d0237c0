"""Log folders: written whole or not at all, opened with one clear error when something is wrong."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data.log import Log, LogError, LogWriter
from rayrec.data.log import folder as log_module
from rayrec.data.log.schema import CategoricalFeature, LogSchema, TaskLabel, write_schema

SCHEMA = LogSchema("tiny", (CategoricalFeature("id", encoding="hash", buckets=9),), (TaskLabel("click"),))


def rows(n: int) -> pa.Table:
    return pa.table({"click": np.zeros(n, np.float32), "id": np.arange(n, dtype=np.int32)})


@pytest.mark.parametrize("parts", [[5], [10], [20, 20], [7, 7, 7], [43]])
def test_row_groups_and_files_are_filled_whatever_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[int]
) -> None:
    monkeypatch.setattr(log_module, "ROW_GROUP_ROWS", 10)
    with LogWriter(tmp_path / "log", SCHEMA, rows_per_file=20) as writer:
        for part in parts:
            writer.write("train", rows(part))
        writer.finish({})
    files = Log.open(tmp_path / "log").files("train")
    groups = [pq.read_metadata(file) for file in files]
    sizes = [group.row_group(i).num_rows for group in groups for i in range(group.num_row_groups)]
    total = sum(parts)
    assert sizes == [10] * (total // 10) + [total % 10] * (total % 10 > 0)
    assert [group.num_rows for group in groups][:-1] == [20] * (len(files) - 1)
    assert Log.open(tmp_path / "log").rows("train") == total


def test_a_log_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SCHEMA) as writer:
        writer.write("train", rows(5))
        assert [path.name[:5] + path.name[-8:] for path in tmp_path.iterdir()] == [".log..partial"]
        writer.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_rows_of_other_columns_than_the_schema_says_are_refused_and_nothing_remains(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="click"), LogWriter(tmp_path / "log", SCHEMA) as writer:
        writer.write("train", rows(5).drop_columns(["click"]))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_log_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=f"{tmp_path}: not a log.*jobs.import_logs"):
        Log.open(tmp_path)


def test_only_a_log_is_ever_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("words")
    write_schema(SCHEMA, precious / "schema.json")  # as it lies beside raw files
    with pytest.raises(LogError, match=r"precious: holds files and no import\.json"):
        LogWriter(precious, SCHEMA, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "words"
