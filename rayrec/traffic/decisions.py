"""Every decision of a service, in the columns that training reads: journalled before it counts, rolled into Parquet.

<decisions>/schema.json               of a log (``decision_schema``), so that ``Log.open`` and ``Log.files("train")`` read it
<decisions>/train/part-0000012.parquet one row a candidate that was scored
<decisions>/journal-0000013           accepted, not yet Parquet; a number that has a part is done with, and removed at opening
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from rayrec.data.log import ROW_GROUP_ROWS, LogError, arrow_schema
from rayrec.data.log.schema import LogSchema, SchemaError, read_schema, write_schema
from rayrec.errors import DiskError
from rayrec.files import make_folder, whole_file
from rayrec.traffic.journal import Journal, read_journal, sync_folder

USER, POSITION, TIME = "served_user", "served_position", "served_ms"
TEXTS = (
    "served_request", "served_asked", "served_user_name", "served_item", "served_arm", "served_models", "served_stage",
)  # fmt: skip
"""Columns beside those of the schema, all text: logs carry numbers only."""
SCORE, PREDICTED = "served_score_", "served_predicted_"


@dataclass(frozen=True)
class LoggedDecision:
    """One answered request with the N candidates that were scored.

    request: its id. time_ms: Unix time in ms. user: None = unknown. models: version by stage.
    items: (N,) names. stages: (N,) the last stage each reached. position: (N,) place in the reply from 0, -1 = not shown.
    scores: by stage, (N,), NaN = not scored there. features: N rows of the schema's features, encoded.
    predicted: by task, (N,), probabilities of the last ranker that answered. asked: the same for the same question.
    """

    request: str
    time_ms: int
    user: str | None
    arm: str
    models: Mapping[str, str]
    items: Sequence[str]
    stages: Sequence[str]
    position: ArrayLike
    scores: Mapping[str, ArrayLike]
    features: pa.Table
    predicted: Mapping[str, ArrayLike] = field(default_factory=dict)
    asked: str = ""


def decision_schema(schema: LogSchema, stages: Sequence[str]) -> LogSchema:
    """What a ranker reads, with what serving adds: the same features and tasks, so that it trains and judges that ranker.

    Weights and extras are of the log that the ranker was trained on, and are left out. stages: that give scores.
    """
    predicted = (f"{PREDICTED}{task}" for task in schema.task_names)
    extras = (USER, POSITION, TIME, *(f"{SCORE}{stage}" for stage in stages), *predicted)
    made = tuple(m for m in schema.made_of_labels if m.column not in schema.extras)
    found = replace(
        schema,
        weight=None,
        timestamp=schema.timestamp or "timestamp",
        request_id=schema.request_id or "request",
        stage=None,
        extras=extras,
        made_of_labels=made,
    )
    taken = sorted({column.name for column in arrow_schema(found)} & set(TEXTS))
    if taken:
        raise SchemaError(f"schema {schema.name!r}: columns that a log of decisions needs itself: {', '.join(taken)}")
    return found


def extra_types(schema: LogSchema) -> dict[str, pa.DataType]:
    """Arrow types of the extras of a ``decision_schema``."""
    return {name: pa.int64() if name in (USER, POSITION, TIME) else pa.float64() for name in schema.extras}


def number_of(name: str) -> int:
    """A name as a number for logs: the same everywhere, 53 bits, so that float64 holds it too."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 11


class DecisionLog:
    """Accepts decisions, from any thread. ``roll_rows`` bounds a Parquet file, the memory to make it, and what opening reads."""

    def __init__(
        self,
        folder: Path,
        schema: LogSchema,
        stages: Sequence[str],
        *,
        roll_rows: int = ROW_GROUP_ROWS,
        roll_seconds: float = 300.0,
    ) -> None:
        """Raises DiskError, SchemaError when the folder holds decisions of another schema, JournalError when another
        process has it open."""
        if not schema.fitted:
            raise SchemaError(
                f"schema {schema.name!r}: decisions are logged with a fitted schema, that of a trained ranker"
            )
        self.folder, self.schema, self.stages = folder, decision_schema(schema, stages), tuple(stages)
        self.arrow_schema = _columns(self.schema)
        self._roll_rows, self._roll_seconds = roll_rows, roll_seconds
        self._lock = threading.Lock()
        make_folder(folder / "train")
        if not (folder / "schema.json").exists():
            write_schema(self.schema, folder / "schema.json")
        elif read_schema(folder / "schema.json") != self.schema:
            raise SchemaError(f"{folder}: holds decisions of another schema; give each its folder")
        waiting = _journals(folder)
        for number in [n for n in waiting if _part(folder, n).exists()]:
            waiting.pop(number).unlink()
        number = max([*waiting, *(int(p.stem.removeprefix("part-")) for p in (folder / "train").glob("part-*")), 0])
        self._number = number if number in waiting else number + 1
        self._journal = Journal(_journal(folder, self._number))
        self._rows = sum(table.num_rows for table in _tables(self._journal.path))
        self._since = time.monotonic()
        self._sealed = sorted(n for n in waiting if n != self._number)
        self.trouble: str | None = None
        """Why the last attempt to write Parquet failed; what was accepted stays in journals until one succeeds."""

    def append(self, decisions: Sequence[LoggedDecision]) -> None:
        """Accept decisions: all of them are on disk when this returns. Raises DiskError (nothing was accepted), LogError for
        one that does not fit the schema."""
        self.append_tables([decision_table(decision, self.schema, self.stages) for decision in decisions])

    def append_tables(self, tables: Sequence[pa.Table]) -> None:
        """``append`` of what ``decision_table`` made by this schema. Raises DiskError, LogError for a table of another one."""
        for table in tables:
            if not table.schema.equals(self.arrow_schema):
                raise LogError(f"{self.folder}: a decision in other columns than those of its schema.json")
        with self._lock:
            self._journal.append([_ipc(table) for table in tables])
            self._rows += sum(table.num_rows for table in tables)
            if self._rows >= self._roll_rows or time.monotonic() - self._since >= self._roll_seconds:
                self._roll()

    def roll(self) -> None:
        """Make Parquet of all that was accepted. Raises DiskError; then it stays in journals, and is tried again."""
        with self._lock:
            self._roll()
            if self.trouble is not None:
                raise DiskError(self.trouble)

    @property
    def there(self) -> bool:
        """Whether its open file is in its place still."""
        return self._journal.there

    def close(self) -> None:
        """Let go of the folder; journals are read where the next process opens it."""
        self._journal.close()

    def __enter__(self) -> "DecisionLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _roll(self) -> None:
        """Seals the journal by opening the next one, then makes a part of each sealed one, as far as the disk allows."""
        self._since, self.trouble = time.monotonic(), None
        try:
            if self._rows:
                following = Journal(_journal(self.folder, self._number + 1))
                self._journal.close()
                self._sealed.append(self._number)
                self._journal, self._number, self._rows = following, self._number + 1, 0
            while self._sealed:
                self._write_part(self._sealed[0])
                self._sealed.pop(0)
        except DiskError as error:
            self.trouble = str(error)

    def _write_part(self, number: int) -> None:
        journal = _journal(self.folder, number)
        Journal(journal).close()  # keeps what is no whole record
        tables = list(_tables(journal))
        if tables:
            with whole_file(_part(self.folder, number)) as partial:
                pq.write_table(pa.concat_tables(tables), partial, compression="zstd", row_group_size=ROW_GROUP_ROWS)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(self.folder / "train")
        journal.unlink()


def decision_table(decision: LoggedDecision, schema: LogSchema, stages: Sequence[str]) -> pa.Table:
    """Its rows, in the columns of a log of decisions. schema: a ``decision_schema`` of these stages. Raises LogError."""
    count = len(decision.items)
    if not count:
        raise LogError(f"request {decision.request!r}: a decision without candidates")
    given = {name: decision.features.column(name) for name in decision.features.column_names}
    absent = [f.name for f in schema.features if f.name not in given]
    if absent:
        raise LogError(f"request {decision.request!r}: features are absent: {', '.join(absent)}")
    if unknown := sorted(decision.scores.keys() - set(stages)):
        raise LogError(f"request {decision.request!r}: scores of stages that this log lacks: {', '.join(unknown)}")
    if unknown := sorted(decision.predicted.keys() - set(schema.task_names)):
        raise LogError(f"request {decision.request!r}: predictions of tasks that this log lacks: {', '.join(unknown)}")
    assert schema.timestamp is not None
    assert schema.request_id is not None
    same: dict[str, int | str | None] = {
        schema.timestamp: decision.time_ms,
        schema.request_id: number_of(decision.request),
        USER: None if decision.user is None else number_of(decision.user),
        TIME: decision.time_ms,
        "served_request": decision.request,
        "served_asked": decision.asked,
        "served_user_name": decision.user,
        "served_arm": decision.arm,
        "served_models": json.dumps(dict(decision.models), sort_keys=True),
    }
    columns = {
        POSITION: np.asarray(decision.position, np.int64),
        "served_item": list(decision.items),
        "served_stage": list(decision.stages),
    }
    columns |= {f"{SCORE}{stage}": np.asarray(scores, np.float64) for stage, scores in decision.scores.items()}
    columns |= {f"{PREDICTED}{task}": np.asarray(p, np.float64) for task, p in decision.predicted.items()}
    wanted = _columns(schema)
    arrays = []
    for column in wanted:
        if column.name in same:
            array = pa.repeat(pa.scalar(same[column.name], column.type), count)
        elif column.name in columns:
            array = pa.array(columns[column.name], type=column.type, from_pandas=True)
        elif column.name in given:
            array = given[column.name].combine_chunks().cast(column.type)
        else:
            array = pa.nulls(count, column.type)  # labels; scores of a stage that did not answer
        if len(array) != count:
            raise LogError(f"request {decision.request!r}: {column.name} has {len(array)} values of {count} items")
        arrays.append(array)
    labels = {task.column for task in schema.tasks} & given.keys()
    if labels:
        raise LogError(f"request {decision.request!r}: labels are not known when serving: {', '.join(sorted(labels))}")
    return pa.table(arrays, schema=wanted)


def decision_tables(
    folder: Path, columns: Sequence[str] | None = None, since_ms: int | None = None
) -> Iterator[pa.Table]:
    """All accepted decisions, oldest first, a table of bounded size each; also while a service goes on writing.

    since_ms: files that hold older ones only are passed over unread.
    """
    seen: set[int] = set()
    while True:  # a journal may become a part meanwhile: looked for in this order, none is missed or read twice
        parts = {int(p.stem.removeprefix("part-")): p for p in (folder / "train").glob("part-*.parquet")}
        left = sorted((parts.keys() | _journals(folder).keys()) - seen)
        if not left:
            return
        number = left[0]
        seen.add(number)
        if not _part(folder, number).exists():
            try:
                tables = list(_tables(_journal(folder, number)))
            except FileNotFoundError:
                tables = []
            if not _part(folder, number).exists():
                if tables:
                    table = pa.concat_tables(tables)
                    yield table if columns is None else table.select(list(columns))
                continue
        part = pq.ParquetFile(_part(folder, number))
        if since_ms is None or _newest(part) >= since_ms:
            for batch in part.iter_batches(ROW_GROUP_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])


def newest_pieces(folder: Path) -> Iterator["Piece"]:
    """All accepted decisions in pieces of bounded size, the newest piece first; also while a service goes on writing."""
    parts = {int(p.stem.removeprefix("part-")) for p in (folder / "train").glob("part-*.parquet")}
    for number in sorted(parts | _journals(folder).keys(), reverse=True):
        if not _part(folder, number).exists():
            try:
                tables = list(_tables(_journal(folder, number)))
            except FileNotFoundError:  # a part by now
                tables = []
            if not _part(folder, number).exists():
                if tables:
                    table = pa.concat_tables(tables)
                    yield Piece(table.num_rows, table.select)
                continue
        with pq.ParquetFile(_part(folder, number)) as part:
            for group in reversed(range(part.metadata.num_row_groups)):
                yield Piece(part.metadata.row_group(group).num_rows, partial(_read_group, part, group))


@dataclass(frozen=True)
class Piece:
    """Some decisions, oldest first; to be read before the next piece is asked for. read: a table of these columns."""

    rows: int
    read: Callable[[list[str]], pa.Table]


def _read_group(part: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
    return part.read_row_group(group, columns=columns)


def _newest(part: pq.ParquetFile) -> int:
    """Time of its newest decision in ms, by the file's statistics."""
    groups = [part.metadata.row_group(i) for i in range(part.metadata.num_row_groups)]
    columns = (group.column(i) for group in groups for i in range(group.num_columns))
    return max(int(column.statistics.max) for column in columns if column.path_in_schema == TIME)


def _columns(schema: LogSchema) -> pa.Schema:
    fields = list(arrow_schema(schema, extra_types(schema)))
    return pa.schema([*fields, *(pa.field(name, pa.string()) for name in TEXTS)])


def _part(folder: Path, number: int) -> Path:
    return folder / "train" / f"part-{number:07d}.parquet"


def _journal(folder: Path, number: int) -> Path:
    return folder / f"journal-{number:07d}"


def _journals(folder: Path) -> dict[int, Path]:
    return {int(path.name.removeprefix("journal-")): path for path in sorted(folder.glob("journal-*"))}


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _tables(journal: Path) -> Iterator[pa.Table]:
    for record in read_journal(journal):
        with pa.ipc.open_stream(record) as reader:
            yield reader.read_all()
