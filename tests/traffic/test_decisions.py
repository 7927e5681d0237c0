"""Decisions on disk: the columns that training reads, nothing accepted is lost, nothing torn is left."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrec.data.log import Log, LogError
from rayrec.data.log.schema import SchemaError
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.errors import DiskError
from rayrec.traffic import decisions as module
from rayrec.traffic.decisions import DecisionLog, decision_tables, number_of
from rayrec.traffic.journal import Journal, JournalError, read_journal
from tests.traffic.serving import SCHEMA, STAGES, decision, requests_of


def open_log(folder: Path, **options: float) -> DecisionLog:
    return DecisionLog(folder, SCHEMA, STAGES, **options)  # type: ignore[arg-type]


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "train").iterdir())


def test_rolled_decisions_are_a_log_that_training_streams(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([decision("r1"), decision("r2", 2_000)])
        log.roll()
    opened = Log.open(tmp_path)
    assert opened.rows("train") == 8
    [batch] = LogStream(opened, "train", StreamConfig(8, shuffle=False)).epoch_batches()
    assert batch.labels.isnan().all()
    assert batch.labels.shape == (8, 2)
    table = pq.read_table(list(opened.files("train")))
    assert table.column("timestamp").to_pylist() == [1_000] * 4 + [2_000] * 4
    assert table.column("served_position").to_pylist() == [0, 1, -1, -1] * 2
    assert table.column("served_score_late").to_pylist() == [0.5, 0.5, None, None] * 2
    assert table.column("served_user").to_pylist() == [number_of("ann")] * 8
    assert table.column("price").to_pylist() == [0.5, 1.5, 2.5, 3.5] * 2
    assert set(table.column("served_arm").to_pylist()) == {"new"}


def test_a_restart_keeps_what_was_accepted_and_goes_on(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([decision("r1")])
    with open_log(tmp_path) as log:
        log.append([decision("r2")])
        log.roll()
        log.append([decision("r3")])
    assert requests_of(list(decision_tables(tmp_path))) == ["r1", "r2", "r3"]


def test_files_are_rolled_by_rows_and_by_seconds(tmp_path: Path) -> None:
    with open_log(tmp_path / "rows", roll_rows=8) as log:
        for i in range(5):
            log.append([decision(f"r{i}")])
    assert [pq.read_metadata(part).num_rows for part in parts(tmp_path / "rows")] == [8, 8]
    with open_log(tmp_path / "seconds", roll_seconds=0) as log:
        log.append([decision("r")])
    assert len(parts(tmp_path / "seconds")) == 1


def test_the_tail_of_a_crash_is_cut_off_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append([b"first", b"second"])
        whole = path.stat().st_size
        journal.append([b"third"])
    text = path.read_bytes()
    for end in range(whole, len(text)):
        path.write_bytes(text[:end])
        with Journal(path) as journal:
            assert journal.records == 2
            assert path.stat().st_size == whole
            journal.append([b"fourth"])
        assert list(read_journal(path)) == [b"first", b"second", b"fourth"]
    path.write_bytes(text[:-1] + b"\0")  # its length there, its bytes not
    with Journal(path) as journal:
        assert journal.records == 2


def test_a_crash_between_parquet_and_the_end_of_its_journal_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(tmp_path) as log:
        log.append([decision("r1")])
        monkeypatch.setattr(module.Path, "unlink", _killed)
        with pytest.raises(KeyboardInterrupt):
            log.roll()
        monkeypatch.undo()
    assert [t.num_rows for t in decision_tables(tmp_path)] == [4]
    with open_log(tmp_path):
        assert len(list(tmp_path.glob("journal-*"))) == 1  # the open one
    assert [t.num_rows for t in decision_tables(tmp_path)] == [4]


def _killed(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from rayrec.traffic.decisions import DecisionLog
        from tests.traffic.serving import SCHEMA, STAGES, decision
        log = DecisionLog(Path({str(tmp_path)!r}), SCHEMA, STAGES, roll_rows=12)
        for i in range(100_000):
            log.append([decision(f"r{{i}}")])
            print(f"r{{i}}", flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.wait()
    with open_log(tmp_path) as log:
        log.roll()
    found = requests_of([pq.read_table(part) for part in parts(tmp_path)])
    assert found[: len(told)] == told
    assert len(found) <= len(told) + 1


def test_a_write_that_the_disk_refuses_is_not_accepted_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(tmp_path) as log:
        log.append([decision("r1")])
        for call in ("write", "fsync"):
            with monkeypatch.context() as full:
                full.setattr(os, call, _half_written(os.write) if call == "write" else _no_space)
                with pytest.raises(DiskError, match="no space is left"):
                    log.append([decision(f"refused-{call}")])
        log.append([decision("r2")])
    assert requests_of(list(decision_tables(tmp_path))) == ["r1", "r2"]


def _no_space(*args: object, **options: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _half_written(write: object) -> object:
    calls: list[int] = []

    def half(file: int, text: memoryview) -> int:
        if calls:
            return _no_space()
        calls.append(1)
        return write(file, text[: len(text) // 2])  # type: ignore[operator]

    return half


def test_parquet_that_the_disk_refuses_waits_in_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_log(tmp_path, roll_rows=4) as log:
        with monkeypatch.context() as full:
            full.setattr(module.pq, "write_table", _no_space)
            for i in range(3):
                log.append([decision(f"r{i}")])  # accepted all the same
            assert log.trouble is not None
            assert "no space is left" in log.trouble
            with pytest.raises(DiskError):
                log.roll()
        assert parts(tmp_path) == []
        log.append([decision("r3")])
        assert log.trouble is None
    assert [pq.read_metadata(part).num_rows for part in parts(tmp_path)] == [4, 4, 4, 4]
    assert requests_of(list(decision_tables(tmp_path))) == ["r0", "r1", "r2", "r3"]


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_on_a_disk_of_one_megabyte_what_was_accepted_is_there_and_every_file_is_whole(small_disk: Path) -> None:
    accepted: list[str] = []
    with open_log(small_disk, roll_rows=40) as log:
        refused = None
        while refused is None:
            try:
                log.append([decision(f"r{len(accepted)}")])
                accepted.append(f"r{len(accepted)}")
            except DiskError as error:
                refused = str(error)
        assert "no space is left" in refused
        shutil.move(small_disk / "train" / "part-0000001.parquet", small_disk.parent / "moved.parquet")
        log.append([decision("after")])
    assert len(accepted) > 100
    moved = requests_of([pq.read_table(small_disk.parent / "moved.parquet")])
    with open_log(small_disk):
        assert [*moved, *requests_of(list(decision_tables(small_disk)))] == [*accepted, "after"]
    for part in parts(small_disk):
        assert part.suffix == ".parquet"
        assert pq.read_table(part).num_rows == 40


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        wrong = decision("r")
        object.__setattr__(wrong, "features", wrong.features.drop_columns(["price"]))
        with pytest.raises(LogError, match="features are absent: price"):
            log.append([decision("good"), wrong])
        object.__setattr__(wrong, "features", decision("r", count=3).features)
        with pytest.raises(LogError, match="genre has 3 values of 4 items"):
            log.append([wrong])
        with pytest.raises(JournalError, match="another process"):
            open_log(tmp_path)
    assert list(decision_tables(tmp_path)) == []
    with pytest.raises(SchemaError, match="another schema"):
        DecisionLog(tmp_path, SCHEMA, ("early",))


def test_a_damaged_record_with_whole_ones_behind_it_is_told_and_nothing_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append([b"first", b"second", b"third"])
    whole = path.read_bytes()
    second = len(b"first") + 8
    for place in (second + 4, second + 9):  # of its checksum, of its bytes
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        for use in (Journal, lambda file: list(read_journal(file))):
            with pytest.raises(JournalError, match=rf"journal: the record at byte {second} is damaged"):
                use(path)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    with Journal(path) as journal:  # the refused ones hold no lock
        assert journal.records == 3


def test_what_a_damaged_length_hides_is_kept_beside_the_journal_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, damaged_byte in (
        ("journal", 3),
        ("other", 0),
    ):  # a length that no record has, one that ends behind the file
        path = tmp_path / name
        with Journal(path) as journal:
            journal.append([b"first", b"second", b"third"])
        damaged = bytearray(path.read_bytes())
        damaged[damaged_byte] ^= 0x80
        path.write_bytes(damaged)
        for _ in range(2):
            with Journal(path) as journal:
                assert journal.records == 0
        (kept,) = tmp_path.glob(f"cut-{name}-*")
        assert kept.read_bytes() == damaged
        assert f"{name}: no whole record begins at byte 0" in caplog.text
        assert kept.name in caplog.text


def test_a_torn_tail_keeps_no_journal_closed_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.append([b"first"])
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"torn")

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with Journal(tmp_path / "journal") as journal:
        assert journal.records == 1
    assert "finds no room to be kept" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


def test_a_journal_that_becomes_parquet_loses_nothing_that_a_damaged_length_hides(tmp_path: Path) -> None:
    with open_log(tmp_path, roll_rows=10**6) as log:
        log.append([decision(f"r{i}") for i in range(3)])
    (path,) = tmp_path.glob("journal-*")
    damaged = bytearray(path.read_bytes())
    second = 8 + int.from_bytes(damaged[:4], "little")
    damaged[second + 3] ^= 0x80
    path.write_bytes(damaged)
    path.with_name("journal-0000002").touch()  # the first one is sealed then
    with open_log(tmp_path) as log:
        log.append([decision("r3")])
        log.roll()
    assert [row for t in decision_tables(tmp_path) for row in t.column("served_request").unique().to_pylist()] == [
        "r0",
        "r3",
    ]
    (kept,) = tmp_path.glob("cut-*")
    assert kept.read_bytes() == damaged[second:]


def test_the_zeros_that_a_power_cut_leaves_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append([b"first"])
        with pytest.raises(JournalError, match="a record has 1 to"):
            journal.append([b""])
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert list(read_journal(path)) == [b"first"]
    with Journal(path) as journal:
        journal.append([b"second"])
    assert list(read_journal(path)) == [b"first", b"second"]
    assert list(tmp_path.iterdir()) == [path]
