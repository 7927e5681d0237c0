"""All that one service decided, and what came of it, in the hands of one owner: a book for each ranker's schema.

<folder>/<book>/decisions   a log of decisions, see ``DecisionLog``
<folder>/<book>/feedback    what came of them, see ``FeedbackLog``
"""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rayrec.data.log.schema import LogSchema, read_schema
from rayrec.errors import DiskError
from rayrec.traffic.decisions import DecisionLog, LoggedDecision, decision_schema, decision_table
from rayrec.traffic.feedback import Feedback, FeedbackLog, Outcome
from rayrec.traffic.journal import JournalError
from rayrec.traffic.shown import ShownItems, ranker_of
from rayrec.typed_json import to_json

_AGAIN_S = 1.0  # after a disk failed


@dataclass(frozen=True)
class Book:
    """A ranker's schema and the stages that give scores. Two rankers of one schema have one book."""

    schema: LogSchema
    stages: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        digest = hashlib.sha256(f"{to_json(decision_schema(self.schema, self.stages))} {self.stages}".encode())
        return f"{re.sub(r'[^A-Za-z0-9_-]', '_', self.schema.name)[:40]}-{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class WrittenDecision:
    """A decision in the columns of its book, as it is handed to the owner. items: that were shown. model: that ranked them."""

    book: str
    request: str
    time_ms: int
    items: tuple[str, ...]
    model: str
    table: pa.Table


def written(decision: LoggedDecision, book: str, schema: LogSchema, stages: Sequence[str]) -> WrittenDecision:
    """schema: a ``decision_schema``, that of the book. Raises LogError for a decision that does not fit it."""
    table = decision_table(decision, schema, stages)
    shown = tuple(
        item for item, place in zip(decision.items, table["served_position"].to_pylist(), strict=True) if place >= 0
    )
    model = ranker_of(json.dumps(dict(decision.models)))
    return WrittenDecision(book, decision.request, decision.time_ms, shown, model, table)


@dataclass(frozen=True)
class Judged:
    """What became of an event. model: that ranked what it is about. positives: tasks that it was the first to say a yes of."""

    outcome: Outcome
    model: str = ""
    positives: tuple[str, ...] = ()


class Away(Exception):
    """Nothing can be kept now, and nothing was: it may be sent again. Says why in one line."""


class UnknownBook(Exception):
    """A decision of a book that this owner was not told of."""


class Ledger:
    """The owner of a folder. Not for several threads at once. Opening reads what was shown within the window."""

    def __init__(self, folder: Path, *, window_ms: int, now_ms: int) -> None:
        """window_ms: feedback that comes later is late. Raises DiskError."""
        self.folder, self.window_ms = folder, window_ms
        self._books: dict[str, Book] = {}
        self._decisions: dict[str, DecisionLog] = {}
        self._feedback: dict[str, FeedbackLog] = {}
        self._shown: dict[str, ShownItems] = {}
        self._trouble: dict[str, tuple[float, str]] = {}
        for schema in sorted(folder.glob("*/decisions/schema.json")):
            self._shown[schema.parts[-3]] = ShownItems.read(schema.parent, 2 * window_ms, now_ms)

    def open(self, book: Book) -> None:
        """Take decisions of this book from now on."""
        self._books[book.name] = book
        self._shown.setdefault(book.name, ShownItems(2 * self.window_ms))

    def keep(self, decisions: Sequence[WrittenDecision]) -> list[Away | UnknownBook | None]:
        """None for each decision that is on disk now, one that was before too; what hindered the others."""
        found: list[Away | UnknownBook | None] = [None] * len(decisions)
        for name in {decision.book for decision in decisions}:
            rows = [i for i, decision in enumerate(decisions) if decision.book == name]
            trouble = self._keep(name, [decisions[i] for i in rows])
            for i in rows:
                found[i] = trouble
        return found

    def accept(self, feedback: Feedback, now_ms: int) -> Judged:
        """Raises FeedbackError for an event that is wrong in itself, Away when it cannot be kept."""
        books = [name for name, shown in self._shown.items() if feedback.request in shown]
        if not books:
            return Judged(Outcome.UNKNOWN)
        shown_in = (b for b in books if self._shown[b].time_of(feedback.request, feedback.item, now_ms) is not None)
        name = next(shown_in, books[0])
        try:
            log = self._feedback_of(name, now_ms)
            before = log.said(feedback.request, feedback.item)
            outcome = log.accept(feedback, now_ms)
        except (DiskError, JournalError) as error:
            raise self._failed(name, error) from None
        if outcome is not Outcome.ACCEPTED:
            return Judged(outcome)
        positives = tuple(task for task, label in feedback.labels.items() if label and task not in before)
        return Judged(outcome, self._shown[name].model_of(feedback.request), positives)

    def close(self) -> None:
        logs: list[DecisionLog | FeedbackLog] = [*self._decisions.values(), *self._feedback.values()]
        for log in logs:
            log.close()
        self._decisions, self._feedback = {}, {}

    def _keep(self, name: str, decisions: Sequence[WrittenDecision]) -> Away | UnknownBook | None:
        if name not in self._books:
            return UnknownBook(name)
        shown = self._shown[name]
        new = list({d.request: d for d in decisions if d.request not in shown}.values())
        try:
            if new:
                self._decisions_of(name).append_tables([decision.table for decision in new])
        except Away as error:
            return error
        except (DiskError, JournalError) as error:
            return self._failed(name, error)
        for decision in new:
            shown.add(decision.request, decision.time_ms, decision.items, decision.model)
        return None

    def _decisions_of(self, name: str) -> DecisionLog:
        """Raises Away, DiskError, JournalError."""
        self._wait(name)
        if name not in self._decisions:
            book = self._books[name]
            self._decisions[name] = DecisionLog(self.folder / name / "decisions", book.schema, book.stages)
        return self._decisions[name]

    def _feedback_of(self, name: str, now_ms: int) -> FeedbackLog:
        """Raises Away, DiskError, JournalError."""
        self._wait(name)
        if name not in self._feedback:
            tasks = self._tasks(name)
            folder, shown = self.folder / name / "feedback", self._shown[name].time_of
            self._feedback[name] = FeedbackLog(folder, tasks, shown, window_ms=self.window_ms, now_ms=now_ms)
        return self._feedback[name]

    def _tasks(self, name: str) -> Sequence[str]:
        if name in self._books:
            return self._books[name].schema.task_names
        return read_schema(self.folder / name / "decisions" / "schema.json").task_names

    def _wait(self, name: str) -> None:
        """Raises Away for a while after a failure: a disk that is full or gone is not asked at each request."""
        until, why = self._trouble.get(name, (0.0, ""))
        if time.monotonic() < until:
            raise Away(why)

    def _failed(self, name: str, error: Exception) -> Away:
        """What was taken away is opened anew at the next attempt."""
        kinds: tuple[dict[str, DecisionLog] | dict[str, FeedbackLog], ...] = (self._decisions, self._feedback)
        for logs in kinds:
            if name in logs and not logs[name].there:
                logs.pop(name).close()
        self._trouble[name] = time.monotonic() + _AGAIN_S, str(error)
        return Away(str(error))
