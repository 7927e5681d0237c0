"""What users did with what they were shown: each event counts once, and is on disk before it is acknowledged.

<feedback>/feedback-0000001, ...   journals of accepted events, JSON: request, item, labels, id, time_ms, shown_ms
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rayrec.errors import UserError
from rayrec.files import make_folder
from rayrec.traffic.journal import Journal, read_journal

K = TypeVar("K")
V = TypeVar("V")
Shown = Callable[[str, str, int], int | None]
"""(request, item, now in ms) -> when the item was shown, Unix ms, or None where it never was (``ShownItems.time_of``)."""


class FeedbackError(UserError):
    """An event that names no task, or has a label that is no 0 or 1."""


class Outcome(StrEnum):
    """What became of an event. Only an accepted one is kept."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """All of it is known already."""
    CONFLICTING = "conflicting"
    """It says otherwise of a task than one before, or uses the id of another event: the first word holds."""
    LATE = "late"
    """Its window had closed."""
    UNKNOWN = "unknown"
    """The item was not shown in that request, or so long ago that it is not known any more."""


@dataclass(frozen=True)
class Feedback:
    """labels: 0 or 1 by task, of those that are known. id: the client's own, by which it may send an event again."""

    request: str
    item: str
    labels: Mapping[str, float]
    id: str | None = None


@dataclass(frozen=True)
class AcceptedFeedback:
    """An event as it is kept. Times in Unix ms: when it came, when the item was shown."""

    feedback: Feedback
    time_ms: int
    shown_ms: int


class FeedbackLog:
    """Accepts feedback, from any thread. Keeps in memory what came on items shown within the window. ``counts``: by outcome,
    since the log was opened."""

    def __init__(
        self,
        folder: Path,
        tasks: Collection[str],
        shown: Shown,
        *,
        window_ms: int,
        now_ms: int,
        roll_records: int = 65_536,
    ) -> None:
        """Raises DiskError, or JournalError while another process has the folder open."""
        self.folder, self.tasks, self.window_ms = folder, frozenset(tasks), window_ms
        self.counts: Counter[Outcome] = Counter()
        self._shown, self._roll_records = shown, roll_records
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[int, dict[str, float]]] = {}
        self._ids: dict[str, tuple[int, Feedback]] = {}
        make_folder(folder)
        self._number = max(_journals(folder), default=1)
        self._journal = Journal(_journal(folder, self._number))
        for accepted in read_feedback(folder):
            if now_ms - accepted.shown_ms <= window_ms:
                self._remember(accepted)

    def accept(self, feedback: Feedback, now_ms: int) -> Outcome:
        """Raises FeedbackError for an event that is wrong in itself, DiskError when it cannot be kept: it then counts as never
        sent, and may be sent again."""
        self._check(feedback)
        with self._lock:
            outcome, shown_ms = self._judge(feedback, now_ms)
            if outcome is Outcome.ACCEPTED:
                accepted = AcceptedFeedback(feedback, now_ms, shown_ms)
                self._roll()
                self._journal.append([_to_json(accepted)])
                self._remember(accepted)
                self._forget(now_ms)
            self.counts[outcome] += 1
            return outcome

    def said(self, request: str, item: str) -> Mapping[str, float]:
        """Labels by task that are known of it."""
        return dict(self._known.get((request, item), (0, {}))[1])

    @property
    def there(self) -> bool:
        """Whether its open file is in its place still."""
        return self._journal.there

    def close(self) -> None:
        """Let go of the folder."""
        self._journal.close()

    def __enter__(self) -> "FeedbackLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, feedback: Feedback) -> None:
        if not feedback.labels:
            raise FeedbackError("labels are empty; give 0 or 1 of a task")
        for task, label in feedback.labels.items():
            if task not in self.tasks:
                raise FeedbackError(f"labels: there is no task {task!r}; there are {', '.join(sorted(self.tasks))}")
            if label not in (0, 1):
                raise FeedbackError(f"labels: {task} must be 0 or 1, not {label!r}")

    def _judge(self, feedback: Feedback, now_ms: int) -> tuple[Outcome, int]:
        _, before = self._known.get((feedback.request, feedback.item), (0, {}))
        if feedback.id is not None and feedback.id in self._ids:
            same = self._ids[feedback.id][1] == feedback
            return (Outcome.DUPLICATE if same else Outcome.CONFLICTING), 0
        if any(before.get(task, label) != label for task, label in feedback.labels.items()):
            return Outcome.CONFLICTING, 0
        if feedback.labels.keys() <= before.keys():
            return Outcome.DUPLICATE, 0
        shown_ms = self._shown(feedback.request, feedback.item, now_ms)
        if shown_ms is None:
            return Outcome.UNKNOWN, 0
        return (Outcome.LATE if now_ms - shown_ms > self.window_ms else Outcome.ACCEPTED), shown_ms

    def _remember(self, accepted: AcceptedFeedback) -> None:
        feedback = accepted.feedback
        _, labels = self._known.setdefault((feedback.request, feedback.item), (accepted.shown_ms, {}))
        labels.update({task: float(label) for task, label in feedback.labels.items()})
        if feedback.id is not None:
            self._ids[feedback.id] = (accepted.shown_ms, feedback)

    def _forget(self, now_ms: int) -> None:
        """What the window has closed on, as far as it came first: later events on it are late, or not known, anyway."""
        _drop_first(self._known, now_ms - self.window_ms)
        _drop_first(self._ids, now_ms - self.window_ms)

    def _roll(self) -> None:
        if self._journal.records >= self._roll_records:
            following = Journal(_journal(self.folder, self._number + 1))
            self._journal.close()
            self._journal, self._number = following, self._number + 1


def read_feedback(folder: Path) -> Iterator[AcceptedFeedback]:
    """All accepted events, oldest first; also while a service goes on writing."""
    for _, path in sorted(_journals(folder).items()):
        for record in read_journal(path):
            plain = json.loads(record)
            feedback = Feedback(plain["request"], plain["item"], plain["labels"], plain["id"])
            yield AcceptedFeedback(feedback, plain["time_ms"], plain["shown_ms"])


def _drop_first(kept: dict[K, tuple[int, V]], before_ms: int) -> None:
    while kept and kept[first := next(iter(kept))][0] < before_ms:
        del kept[first]


def _to_json(accepted: AcceptedFeedback) -> bytes:
    feedback = accepted.feedback
    plain = {"request": feedback.request, "item": feedback.item, "labels": dict(feedback.labels), "id": feedback.id}
    return json.dumps({**plain, "time_ms": accepted.time_ms, "shown_ms": accepted.shown_ms}).encode()


def _journal(folder: Path, number: int) -> Path:
    return folder / f"feedback-{number:07d}"


def _journals(folder: Path) -> dict[int, Path]:
    found = ((re.fullmatch(r"feedback-(\d+)", path.name), path) for path in folder.glob("feedback-*"))
    return {int(match[1]): path for match, path in found if match}
