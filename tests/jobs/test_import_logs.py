"""The import job as a user runs it: a log and a summary, or one line that says what is wrong."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.import_logs import main
from rayrec.data.log import Log
from rayrec.data.public.logs import PUBLIC_DATASETS

SCHEMA = {
    "name": "shop",
    "features": [
        {"name": "price", "kind": "dense", "transform": "log1p"},
        {"name": "colour", "kind": "categorical"},
        {"name": "user", "kind": "categorical", "encoding": "hash", "buckets": 100},
    ],
    "tasks": [{"name": "click"}],
    "timestamp": "time",
}
ROWS = [
    f"{i % 7}.5,{'red' if i % 3 else 'blue'},u{i % 11},{int(i % 4 == 0)},2024-01-{1 + i // 10:02d}" for i in range(100)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table and its schema, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_table(ROWS)
    Path("schema.json").write_text(json.dumps(SCHEMA))
    return tmp_path


def write_table(rows: list[str], header: str = "price,colour,user,click,time") -> None:
    Path("shop.csv").write_text("\n".join([header, *rows]) + "\n")


def import_logs(*flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["import_logs", *flags])
        main()


def refused(folder: Path, *flags: str) -> str:
    """The one line with which the job ends; nothing is left behind."""
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        import_logs(*flags)
    assert sorted(path.name for path in folder.iterdir()) == before
    message = str(stop.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


TABLE = ("table", "--files", "shop.csv", "--schema", "schema.json", "--out", "log")


def test_a_table_becomes_a_log_and_the_summary_says_how(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table([*ROWS, "1.5,red,u1,7,2024-01-01", "cheap,red,u1,0,2024-01-01", "1.5,red"])
    import_logs(*TABLE, "split:by-time", "--split.test-share", "0.25")
    log = Log.open("log")
    assert {split: log.rows(split) for split in log.splits} == {"train": 60, "valid": 10, "test": 30}
    printed = capsys.readouterr().out
    assert "log: 100 rows in" in printed
    assert "train               60      0.2" in printed
    assert "quarantined: 3 rows, in log/quarantine" in printed
    assert "1  click: label is not 0 or 1, first in shop.csv, row 101 (given: '7'); say how it is spelled" in printed
    assert "1  price: is not a number, first in shop.csv, row 102 (given: 'cheap'); if it stands for missing" in printed
    assert "1  wrong number of fields: 2 instead of 5, first in shop.csv, row 103" in printed
    assert pq.read_table("log/quarantine/part-00000.parquet").num_rows == 3


def test_a_log_without_bad_rows_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_logs(*TABLE)
    assert "quarantined: none" in capsys.readouterr().out


def test_a_broken_file_ends_the_job_with_its_name_and_the_column(folder: Path) -> None:
    write_table([row.rpartition(",")[0] for row in ROWS], "price,colour,user,click")
    assert "shop.csv: column 'time' is absent" in refused(folder, *TABLE)
    write_table([row.replace(",0,2024", ",7,2024").replace(",1,2024", ",7,2024") for row in ROWS])
    assert "shop.csv: column 'click' is wrong in every row, of 100; row 1: label is not 0 or 1" in refused(
        folder, *TABLE
    )
    Path("shop.csv").write_bytes(b"")
    assert "shop.csv: the file is empty" in refused(folder, *TABLE)


def test_a_mistake_in_the_schema_file_names_the_field(folder: Path) -> None:
    Path("schema.json").write_text(json.dumps({**SCHEMA, "tasks": [{"name": "click", "lable": "clicked"}]}))
    assert "schema.json: tasks.0.lable" in refused(folder, *TABLE)


def test_a_log_that_is_there_stays_unless_told(folder: Path) -> None:
    import_logs(*TABLE)
    assert "log: exists already" in refused(folder, *TABLE)
    write_table(ROWS[:50])
    import_logs(*TABLE, "--overwrite")
    assert sum(Log.open("log").rows(split) for split in Log.open("log").splits) == 50


@pytest.mark.parametrize("name", list(PUBLIC_DATASETS))
def test_every_public_data_set_has_a_command(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_DATA", str(folder))
    assert f"{folder / PUBLIC_DATASETS[name].folder}: no such folder" in refused(folder, name, "--out", "log")  # type: ignore[index]


def test_a_public_data_set_is_found_below_the_data_folder(
    data_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (data_root / "coat").is_dir():
        pytest.skip(f"no {data_root / 'coat'}")
    monkeypatch.setenv("RAYREC_DATA", str(data_root))
    import_logs("coat", "--out", "log", "--unlabeled", "pairs")
    printed = capsys.readouterr().out
    assert "log: 11,600 rows in" in printed
    assert "train           87,000   no labels" in printed
