"""Whole or not there, whatever ends the writing: an error, a full disk, a kill."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from rayrec.errors import DiskError, UserError
from rayrec.files import (
    check_file_place,
    check_replaceable,
    make_folder,
    scratch_folder,
    temporary_beside,
    whole_file,
    whole_folder,
    write_text_atomically,
)


def test_a_folder_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with whole_folder(tmp_path / "model", "weights") as partial:
            (partial / "weights").write_text(text)
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.mark.parametrize("ended", [RuntimeError("wrong"), KeyboardInterrupt()])
def test_what_ends_in_the_middle_leaves_the_old_one(tmp_path: Path, ended: BaseException) -> None:
    with whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("old")
    with whole_file(tmp_path / "file") as partial:
        partial.write_text("old")

    def write_folder() -> None:
        with whole_folder(tmp_path / "model", "weights") as partial:
            (partial / "weights").write_text("new")
            raise ended

    def write_file() -> None:
        with whole_file(tmp_path / "file") as partial:
            partial.write_text("new")
            raise ended

    for write in (write_folder, write_file):
        with pytest.raises(type(ended)):
            write()
    assert (tmp_path / "model" / "weights").read_text() == (tmp_path / "file").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "file"}


def test_only_an_empty_folder_or_one_of_the_same_writer_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(2):  # nothing, then an empty folder
        with whole_folder(folder):
            pass
    (folder / "thesis.txt").write_text("words")
    (tmp_path / "a file").write_text("words")
    (tmp_path / "away").symlink_to(tmp_path / "not mounted")
    refused = {
        ("out", None): "out: holds files; it is not overwritten",
        ("out", "weights"): "out: holds files and no weights, so it is no earlier output",
        ("a file", None): "a file: is no folder",
        ("away", None): "away: is no folder",
        ("out/..", "out"): "expected a folder with a name of its own",
    }
    for (name, marker), told in refused.items():
        with pytest.raises(UserError, match=told), whole_folder(tmp_path / name, marker):
            pytest.fail("work began")
    with (
        pytest.raises(DiskError, match="choose another"),
        whole_folder(folder, "weights", overwrite=False, error=DiskError),
    ):
        pytest.fail("work began")
    assert (folder / "thesis.txt").read_text() == (tmp_path / "a file").read_text() == "words"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "a file", "away"}


def test_what_came_to_its_place_while_a_folder_was_written_stays(tmp_path: Path) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "model", "weights") as partial:
            (partial / "weights").write_text("new")
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "thesis.txt").write_text("words")

    with pytest.raises(UserError, match="holds files and no weights"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "thesis.txt"]


_KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from rayrec.files import whole_folder
rename = Path.rename
def once(self, target):
    rename(self, target)
    if str(target).endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = once
with whole_folder(Path(sys.argv[1]), "weights") as partial:
    (partial / "weights").write_text("new")
"""


@pytest.mark.parametrize("name", ["model", "name [1].v2"])
def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, name: str) -> None:
    with whole_folder(tmp_path / name, "weights") as partial:
        (partial / "weights").write_text("old")
    killed = subprocess.run([sys.executable, "-c", _KILLED_BETWEEN, str(tmp_path / name)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / name).exists()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / name, "weights") as partial:
        raise RuntimeError("and the next one fails")
    assert (tmp_path / name / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == [name]


def test_what_was_replaced_does_not_come_back_when_a_kill_leaves_it_half_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("old", "new"):
        with whole_folder(tmp_path / "model", "weights") as partial:
            (partial / "weights").write_text(text)
            monkeypatch.setattr(shutil, "rmtree", lambda path, **how: None)  # as killed in front of it
    monkeypatch.undo()
    assert len(os.listdir(tmp_path)) == 2
    shutil.rmtree(tmp_path / "model")
    check_replaceable(tmp_path / "model", "weights", overwrite=False)
    assert not (tmp_path / "model").exists()


def test_of_several_that_replace_a_folder_at_once_each_succeeds_and_one_is_there(tmp_path: Path) -> None:
    def write(number: int) -> None:
        with whole_folder(tmp_path / "model", "weights") as partial:
            for name in ("weights", "more"):
                (partial / name).write_text(str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(400)))
    assert (tmp_path / "model" / "weights").read_text() == (tmp_path / "model" / "more").read_text()
    assert os.listdir(tmp_path) == ["model"]


_KILLED = """
import sys, time
from pathlib import Path
from rayrec.files import whole_folder
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_but_not_that_of_a_living_one(tmp_path: Path) -> None:
    target = tmp_path / "name [1]"
    running = [subprocess.Popen([sys.executable, "-c", _KILLED, str(target)], stdout=subprocess.PIPE) for _ in range(2)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
    os.kill(running[0].pid, signal.SIGKILL)
    running[0].wait()
    with whole_folder(target) as partial:
        (partial / "whole").write_text("x")
    left = [path.name for path in tmp_path.iterdir() if path != target]
    running[1].kill()
    running[1].wait()
    assert len(left) == 1
    assert f".{running[1].pid}-" in left[0]
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_what_a_process_of_the_same_number_left_and_names_of_others_are_in_nobodys_way(tmp_path: Path) -> None:
    """As in a container, whose processes are numbered alike each time it starts: what has that number may live elsewhere."""
    mine = temporary_beside(tmp_path / "model").name
    place = mine.rpartition(f".{os.getpid()}-")[0]
    same_number = f"{place}.{os.getpid()}-0.partial"
    others = [same_number, f"{place}.foo.partial", f"{place}.12.partial", f"{place}.9-9.partial.lock"]
    for name in others:
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {"model", *others}


def test_a_scratch_folder_goes_with_all_that_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work() -> None:
        with scratch_folder("work") as folder:
            (folder / "file").write_text("x")
            assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_every_writer_says_in_one_line_that_a_disk_is_full(small_disk: Path) -> None:
    big = torch.zeros(1_000_000)
    writers = {
        "safetensors": lambda file: save_file({"big": big}, file),
        "torch": lambda file: torch.save({"big": torch.randn(1_000_000)}, file),
        "parquet": lambda file: pq.write_table(pa.table({"x": torch.randn(1_000_000).numpy()}), file),
        "text": lambda file: file.write_text("x" * 4_000_000),
    }
    for name, write in writers.items():
        with (
            pytest.raises(DiskError, match=r"^\S*/disk: no space is left on its disk$"),
            whole_file(small_disk / name) as file,
        ):
            write(file)
        with pytest.raises(DiskError, match=r"^\S*/disk: no space is left"), whole_folder(small_disk / name) as folder:
            write(folder / "file")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_disk_that_is_mounted_read_only_is_one_line_with_the_folder(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DiskError, match=r"/disk: its disk is mounted read-only$"):
        write_text_atomically(small_disk / "a", "x")
    with pytest.raises(DiskError, match=r"mounted read-only$"):
        make_folder(small_disk / "a" / "b")


def test_a_file_that_is_written_after_much_work_is_looked_at_before_it(tmp_path: Path) -> None:
    check_file_place(tmp_path / "new" / "folder" / "report.json")
    write_text_atomically(tmp_path / "new" / "folder" / "report.json", "{}")
    with pytest.raises(UserError, match="new: is a folder, expected the name of a file"):
        check_file_place(tmp_path / "new")
    with pytest.raises(DiskError, match="Not a directory"):
        check_file_place(tmp_path / "new" / "folder" / "report.json" / "a" / "b")


def test_a_folder_under_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="Not a directory"):
        make_folder(tmp_path / "file" / "runs")
