"""Decisions and feedback become logs to train on: impressions with labels, and candidates that were not shown, without any.

<out>/labeled     what was shown and whose window has closed; train, valid, test by time of the request
<out>/unlabeled   the other candidates of the same requests
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log import Log, LogError, LogWriter
from rayrec.data.log.folder import IMPORT_FILE
from rayrec.data.log.schema import LogSchema, read_schema
from rayrec.files import whole_folder
from rayrec.traffic.decisions import POSITION, TIME, decision_tables, extra_types
from rayrec.traffic.feedback import read_feedback
from rayrec.typed_json import ConfigError, to_plain


@dataclass(frozen=True)
class JoinConfig:
    """How decisions and feedback become logs."""

    window_seconds: float = 86_400.0
    """Feedback that came later does not count; an impression is used when this time has gone by."""
    negatives: tuple[str, ...] | None = None
    """Tasks of which silence means no; an impression without a word on others has no label. None = all. A task observed
    when another is 1 becomes a no only where that is 1."""
    valid_share: float = 0.1
    """Of the requests, before those of the test."""
    test_share: float = 0.2
    """Of the requests, the newest: versions are judged by these."""

    def __post_init__(self) -> None:
        if not self.window_seconds >= 0:
            raise ConfigError(f"window_seconds must be at least 0, not {self.window_seconds}")
        if not (self.valid_share > 0 and self.test_share > 0 and self.valid_share + self.test_share < 1):
            raise ConfigError(
                f"valid_share and test_share must be above 0 and leave something to train on: "
                f"{self.valid_share} and {self.test_share}"
            )


@dataclass(frozen=True)
class JoinSummary:
    """Rows and what became of them.

    impressions: labeled rows. candidates: unlabeled rows. open: impressions whose window has not closed, left for later.
    silent: impressions without any label. positives: by task. late: feedback that came after its window. unmatched: feedback on
    what is no impression here, open or not.
    """

    impressions: int
    candidates: int
    open: int
    silent: int
    positives: Mapping[str, int]
    late: int
    unmatched: int


@dataclass(frozen=True)
class JoinedLogs:
    """The folder that ``join`` wrote."""

    folder: Path

    @property
    def labeled(self) -> Log:
        return Log.open(self.folder / "labeled")

    @property
    def unlabeled(self) -> Log:
        return Log.open(self.folder / "unlabeled")

    @property
    def summary(self) -> JoinSummary:
        plain = json.loads((self.folder / "labeled" / "import.json").read_text(encoding="utf-8"))["joined"]
        return JoinSummary(**{field.name: plain[field.name] for field in fields(JoinSummary)})


def join(decisions: Path, feedback: Path, out: Path, config: JoinConfig, now_ms: int) -> JoinedLogs:
    """Write the logs of all decisions whose window has closed by ``now_ms``; ``out`` appears whole or not at all.

    Memory: a part of the decisions, and the feedback (labels and two names an event). Raises LogError where no window has
    closed yet, ConfigError for tasks that the schema lacks.
    """
    if not (decisions / "schema.json").is_file():
        raise LogError(f"{decisions}: no log of decisions (no schema.json)")
    schema = read_schema(decisions / "schema.json")
    negatives = schema.task_names if config.negatives is None else config.negatives
    if unknown := sorted(set(negatives) - set(schema.task_names)):
        raise ConfigError(f"negatives: {decisions} has no task {', '.join(unknown)}")
    window_ms = round(config.window_seconds * 1000)
    bounds = _bounds(decisions, now_ms - window_ms, config)
    events = Events.read(feedback, schema, window_ms)
    counts = _Counts()
    with whole_folder(out, f"labeled/{IMPORT_FILE}") as partial:
        writers = {n: LogWriter(partial / n, schema, extra_types=extra_types(schema)) for n in ("labeled", "unlabeled")}
        with writers["labeled"] as labeled, writers["unlabeled"] as unlabeled:
            for table in decision_tables(decisions):
                in_time = pc.less_equal(table.column(TIME), now_ms - window_ms)
                closed, waiting = table.filter(in_time), table.filter(pc.invert(in_time))
                waiting = waiting.filter(pc.greater_equal(waiting.column(POSITION), 0))
                counts.open += waiting.num_rows
                counts.matched += _said_of(events.of(waiting))
                shown = pc.greater_equal(closed.column(POSITION), 0)
                for split, rows in _by_split(closed.filter(pc.invert(shown)), bounds):
                    unlabeled.write(split, rows)
                for split, rows in _by_split(events.label(closed.filter(shown), negatives, counts), bounds):
                    labeled.write(split, rows)
            summary = JoinSummary(
                impressions=sum(labeled.rows.values()),
                candidates=sum(unlabeled.rows.values()),
                open=counts.open,
                silent=counts.silent,
                positives=counts.positives,
                late=events.late,
                unmatched=len(events) - counts.matched,
            )
            details = {"importer": "traffic", "config": to_plain(config), "joined": to_plain(summary)}
            labeled.finish(details)
            unlabeled.finish(details)
    return JoinedLogs(out)


@dataclass
class _Counts:
    open: int = 0
    silent: int = 0
    matched: int = 0
    positives: Mapping[str, int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.positives = {}


class Events:
    """Feedback within its window, in memory, by request and item. late: how much came after it."""

    def __init__(self, schema: LogSchema, labels: dict[tuple[str, str], NDArray[np.float32]], late: int) -> None:
        self.schema, self.late, self._labels = schema, late, labels

    def __len__(self) -> int:
        return len(self._labels)

    @staticmethod
    def read(folder: Path, schema: LogSchema, window_ms: int) -> "Events":
        place = {task: i for i, task in enumerate(schema.task_names)}
        labels: dict[tuple[str, str], NDArray[np.float32]] = {}
        late = 0
        for accepted in read_feedback(folder):
            if accepted.time_ms - accepted.shown_ms > window_ms:
                late += 1
                continue
            event = accepted.feedback
            row = labels.setdefault((event.request, event.item), np.full(len(place), np.nan, np.float32))
            for task, label in event.labels.items():
                if task not in place:
                    raise LogError(f"{folder}: feedback on task {task!r}, which the decisions' schema lacks")
                row[place[task]] = label
        return Events(schema, labels, late)

    def of(self, rows: pa.Table) -> NDArray[np.float32]:
        """(n, T) labels of a log's rows in the order of the schema's tasks, NaN = nothing said."""
        nothing = np.full(len(self.schema.tasks), np.nan, np.float32)
        keys = zip(rows.column("served_request").to_pylist(), rows.column("served_item").to_pylist(), strict=True)
        return np.array([self._labels.get(key, nothing) for key in keys], np.float32).reshape(-1, len(nothing))

    def label(self, shown: pa.Table, negatives: tuple[str, ...], counts: _Counts) -> pa.Table:
        """The impressions with their labels, less those without any."""
        schema, labels = self.schema, self.of(shown)
        counts.matched += _said_of(labels)
        place = {task: i for i, task in enumerate(schema.task_names)}
        for task in _parents_first(schema):
            if task.name in negatives:
                column = labels[:, place[task.name]]
                silent = np.isnan(column)
                if task.observed_when is not None:
                    silent &= labels[:, place[task.observed_when]] == 1
                column[silent] = 0
        for task, column in zip(schema.tasks, labels.T, strict=True):
            array = pa.array(column, pa.float32(), from_pandas=True)
            shown = shown.set_column(shown.column_names.index(task.column), pa.field(task.column, pa.float32()), array)
            counts.positives = {
                **counts.positives,
                task.name: counts.positives.get(task.name, 0) + int((column == 1).sum()),
            }
        labeled = ~np.isnan(labels).all(1)
        counts.silent += int((~labeled).sum())
        return shown.filter(pa.array(labeled))


def _said_of(labels: NDArray[np.float32]) -> int:
    """How many of the rows (n, T) something was said of."""
    return int((~np.isnan(labels)).any(1).sum())


def _parents_first(schema: LogSchema) -> list[Any]:
    """Tasks, each after the one that it is observed by."""
    done: list[Any] = []
    left = list(schema.tasks)
    while left:
        ready = [t for t in left if t.observed_when is None or t.observed_when in {d.name for d in done}]
        if not ready:  # each observed when another is: no order helps, and none is a no by silence
            return done
        done += ready
        left = [t for t in left if t not in ready]
    return done


def _bounds(decisions: Path, until_ms: int, config: JoinConfig) -> tuple[int, int]:
    """Times at which validation and the test begin, by shares of the requests."""
    times = []
    for table in decision_tables(decisions, (TIME, "served_request")):
        table = table.filter(pc.less_equal(table.column(TIME), until_ms))
        requests = table.group_by("served_request").aggregate([(TIME, "min")])
        times.append(requests.column(f"{TIME}_min").to_numpy())
    every = np.sort(np.concatenate(times)) if times else np.zeros(0, np.int64)
    if not len(every):
        raise LogError(f"{decisions}: no decision whose window of {config.window_seconds:g} s has closed")
    test = len(every) - round(len(every) * config.test_share)
    valid = test - round(len(every) * config.valid_share)
    return int(every[min(valid, len(every) - 1)]), int(every[min(test, len(every) - 1)])


def _by_split(rows: pa.Table, bounds: tuple[int, int]) -> Iterator[tuple[str, pa.Table]]:
    split = np.searchsorted(np.asarray(bounds), rows.column(TIME).to_numpy(), side="right")
    for number, name in enumerate(("train", "valid", "test")):
        yield name, rows.filter(pa.array(split == number))
