"""Feedback: each event once, late and unknown ones refused, acknowledged only when it is on disk, kept over a restart."""

import errno
import os
from pathlib import Path

import pytest

from rayrec.errors import DiskError
from rayrec.traffic.decisions import DecisionLog
from rayrec.traffic.feedback import Feedback, FeedbackError, FeedbackLog, Outcome, read_feedback
from rayrec.traffic.shown import ShownItems
from tests.traffic.serving import SCHEMA, STAGES, decision

WINDOW = 1_000


def shown() -> ShownItems:
    items = ShownItems(keep_ms=2 * WINDOW)
    items.add("r1", 0, ("a", "b"))
    items.add("r2", 500, ("a",))
    return items


def open_log(folder: Path, now_ms: int = 0, roll_records: int = 65_536) -> FeedbackLog:
    times = shown().time_of
    return FeedbackLog(folder, ("click", "buy"), times, window_ms=WINDOW, now_ms=now_ms, roll_records=roll_records)


def click(request: str = "r1", item: str = "a", id: str | None = None, **labels: float) -> Feedback:
    return Feedback(request, item, labels or {"click": 1}, id)


def test_the_same_event_counts_once_with_an_id_or_without(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        told = [log.accept(event, 10) for event in (click(), click(), click(id="x", item="b"), click(id="x", item="b"))]
    assert told == ["accepted", "duplicate", "accepted", "duplicate"]
    assert log.counts == {"accepted": 2, "duplicate": 2}
    assert [kept.feedback for kept in read_feedback(tmp_path)] == [click(), click(id="x", item="b")]


def test_another_word_on_the_same_task_is_conflicting_and_the_first_one_holds(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        assert log.accept(click(id="x"), 10) == Outcome.ACCEPTED
        assert log.accept(click(click=0.0), 20) == Outcome.CONFLICTING
        assert log.accept(click(item="b", id="x"), 30) == Outcome.CONFLICTING  # the id of another event
        assert log.accept(click(click=1.0, buy=1.0), 40) == Outcome.ACCEPTED  # a further task
        assert log.accept(click(click=1.0, buy=0.0), 50) == Outcome.CONFLICTING
    assert [kept.feedback.labels for kept in read_feedback(tmp_path)] == [{"click": 1}, {"click": 1, "buy": 1}]


def test_feedback_on_what_never_was_and_after_the_window_is_refused(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        assert log.accept(click("r0"), 10) == Outcome.UNKNOWN
        assert log.accept(click("r1", "z"), 10) == Outcome.UNKNOWN
        assert log.accept(click("r1"), WINDOW) == Outcome.ACCEPTED  # to the last millisecond
        assert log.accept(click("r1", "b"), WINDOW + 1) == Outcome.LATE
        assert log.accept(click("r2"), WINDOW + 1) == Outcome.ACCEPTED
        assert log.accept(click("r1", "b"), 2 * WINDOW + 1) == Outcome.UNKNOWN  # forgotten
    assert len(list(read_feedback(tmp_path))) == 2


def test_a_restart_keeps_all_and_still_knows_what_it_accepted(tmp_path: Path) -> None:
    for second in range(3):
        with open_log(tmp_path, roll_records=1) as log:
            told = [log.accept(event, 10) for event in (click(), click("r2", id="x"))]
        assert told == (["accepted"] * 2 if second == 0 else ["duplicate"] * 2)
    assert len(list(tmp_path.glob("feedback-*"))) == 2
    assert [kept.shown_ms for kept in read_feedback(tmp_path)] == [0, 500]


def test_what_the_disk_refuses_is_not_acknowledged_and_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_log(tmp_path) as log:
        for call in ("write", "fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, full)
                with pytest.raises(DiskError, match="no space is left"):
                    log.accept(click(), 10)
        assert not log.counts
        assert log.accept(click(), 10) == Outcome.ACCEPTED
    assert len(list(read_feedback(tmp_path))) == 1


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [({"like": 1}, "no task 'like'"), ({"click": 0.5}, "0 or 1"), ({"click": float("nan")}, "0 or 1")],
)
def test_an_event_that_is_wrong_in_itself_is_told(tmp_path: Path, labels: dict[str, float], wrong: str) -> None:
    with open_log(tmp_path) as log, pytest.raises(FeedbackError, match=wrong):
        log.accept(Feedback("r1", "a", labels), 10)


def test_memory_holds_no_more_than_the_window_and_the_newest_requests(tmp_path: Path) -> None:
    items = ShownItems(keep_ms=2 * WINDOW, max_requests=100)
    with FeedbackLog(tmp_path, ("click",), items.time_of, window_ms=WINDOW, now_ms=0) as log:
        for i in range(150):
            items.add(f"r{i}", i * 100, ("a",))
            assert log.accept(click(f"r{i}", id=str(i)), i * 100) == Outcome.ACCEPTED
        assert len(log._known) == len(log._ids) == WINDOW // 100 + 1
    assert len(items._shown) == 2 * WINDOW // 100 + 1
    for i in range(200):
        items.add(f"s{i}", 15_000, ("a",))
    assert len(items._shown) == 100


def test_what_was_shown_is_read_back_from_the_log_of_decisions(tmp_path: Path) -> None:
    with DecisionLog(tmp_path, SCHEMA, STAGES) as log:
        log.append([decision("old", 0), decision("r1", 1_000)])
        log.roll()
        log.append([decision("r2", 2_000)])
    items = ShownItems.read(tmp_path, keep_ms=1_500, now_ms=2_100)
    told = [items.time_of(request, item, 2_100) for request in ("old", "r1", "r2") for item in ("item-1", "item-2")]
    assert told == [None, None, 1_000, None, 2_000, None]
