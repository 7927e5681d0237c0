"""What changes about items: kept in one file, told to whoever is behind."""

import errno
import os
from pathlib import Path

import pytest

from rayrec.errors import DiskError
from serve_apps.items import journal as item_journal
from serve_apps.items.changes import ItemChanges
from serve_apps.items.journal import AddedItem, Availability, ItemJournal, ItemRefused


def added(name: str, digest: str = "d") -> AddedItem:
    return AddedItem(digest, name, f"text of {name}", (0.25, -1.5))


def view_of(journal: ItemJournal) -> ItemChanges:
    changes = ItemChanges()
    changes.take(journal.since("", -1))
    return changes


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    journal = ItemJournal(tmp_path)
    journal.add(added("a"), 10)
    journal.set_available(Availability("x", False))
    journal.set_available(Availability("y", False))
    journal.set_available(Availability("x", True))
    again = ItemJournal(tmp_path)
    assert again.epoch != journal.epoch
    for one in (journal, again):
        changes = view_of(one)
        assert changes.out == {"y"}
        assert list(changes.added(0)) == [added("a")]


def test_a_follower_is_told_what_is_new_and_one_of_another_epoch_everything(tmp_path: Path) -> None:
    journal, follower = ItemJournal(tmp_path), ItemChanges()
    follower.take(journal.since(follower.epoch, follower.version))
    journal.set_available(Availability("x", False))
    journal.add(added("a"), 10)
    update = journal.since(follower.epoch, follower.version)
    assert (update.whole, update.version, len(update.changes)) == (False, 2, 2)
    follower.take(update)
    assert journal.since(follower.epoch, follower.version).changes == ()
    assert (follower.out, follower.count) == ({"x"}, 1)
    ItemJournal(tmp_path).set_available(
        Availability("z", False)
    )  # by another owner, of whom this follower knows nothing
    restarted = ItemJournal(tmp_path)
    update = restarted.since(follower.epoch, follower.version)
    assert update.whole
    follower.take(update)
    assert (follower.out, follower.count) == ({"x", "z"}, 1)


def test_a_follower_too_far_behind_is_told_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_journal, "_KEPT_CHANGES", 3)
    journal, follower = ItemJournal(tmp_path), ItemChanges()
    follower.take(journal.since("", -1))
    for name in "abcd":
        journal.set_available(Availability(name, False))
    update = journal.since(follower.epoch, follower.version)
    assert update.whole
    follower.take(update)
    assert follower.out == set("abcd")


def test_a_file_of_many_changes_back_and_forth_becomes_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_journal, "_KEPT_CHANGES", 3)
    journal = ItemJournal(tmp_path)
    journal.add(added("a"), 10)
    for _ in range(4):
        journal.set_available(Availability("x", False))
        journal.set_available(Availability("x", True))
    journal.set_available(Availability("y", False))
    assert (tmp_path / "items.jsonl").read_text().count("\n") == 10
    ItemJournal(tmp_path)
    assert (tmp_path / "items.jsonl").read_text().count("\n") == 2
    again = view_of(ItemJournal(tmp_path))
    assert (again.out, list(again.added(0))) == ({"y"}, [added("a")])


def test_what_is_known_or_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = ItemJournal(tmp_path)
    journal.add(added("a"), 2)
    journal.add(added("a", "another retriever"), 2)
    with pytest.raises(ItemRefused, match="'a' is known already"):
        journal.add(added("a"), 2)
    journal.add(added("b"), 2)
    with pytest.raises(ItemRefused, match="2 items were added already"):
        journal.add(added("c"), 2)
    monkeypatch.setattr(item_journal, "MAX_OUT", 1)
    journal.set_available(Availability("x", False))
    journal.set_available(Availability("x", False))  # changes nothing
    with pytest.raises(ItemRefused, match="1 items are out already"):
        journal.set_available(Availability("y", False))
    journal.set_available(Availability("x", True))
    journal.set_available(Availability("y", False))


def test_lines_that_are_torn_or_nonsense_harm_no_other_change(tmp_path: Path) -> None:
    ItemJournal(tmp_path).set_available(Availability("x", False))
    file = tmp_path / "items.jsonl"
    file.write_text('{"item": 3}\nno JSON\n[]\n' + file.read_text() + '{"item": "torn", "avail')
    journal = ItemJournal(tmp_path)
    journal.set_available(Availability("y", False))
    assert view_of(ItemJournal(tmp_path)).out == {"x", "y"}
    assert "torn" not in file.read_text()


def test_what_the_disk_does_not_take_is_no_change_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = ItemJournal(tmp_path)
    journal.set_available(Availability("x", False))
    before = (tmp_path / "items.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskError):
            journal.set_available(Availability("y", False))
    assert (tmp_path / "items.jsonl").read_bytes() == before
    assert view_of(journal).out == {"x"}
    journal.set_available(Availability("z", False))
    assert view_of(ItemJournal(tmp_path)).out == {"x", "z"}
