"""Raw chunks, checked: each row with its split, each bad row with its reason, and files that are wholly wrong as one error."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayrec.data.importing.reading import RawChunk, SourceError
from rayrec.data.log import QUARANTINE_SCHEMA
from rayrec.data.log.raw_columns import PLAIN, Bad, NumberSpelling
from rayrec.data.log.row_checks import NOT_A_NUMBER, CheckedColumns, ColumnError, RowProblem, check_rows
from rayrec.data.log.schema import LogSchema
from rayrec.data.log.splitting import NO_SPLIT, RowSplitter, SplitInput

_VALUES_SHOWN = 10_000
_REJECTED = "wrong number of fields"


def _same(table: pa.Table) -> pa.Table:
    return table


@dataclass(frozen=True)
class RawSource:
    """Where raw rows come from. chunks can be called again: each call reads from the start.

    columns: raw columns that must be there. columns_of: from the raw columns of a chunk to those of the schema (renamed, joined,
    derived); the raw ones are what the quarantine shows and what rows are split by. unlabeled: label columns may be absent.
    spelling: how text files write numbers.
    """

    name: str
    chunks: Callable[[], Iterator[RawChunk]]
    columns: tuple[str, ...] = ()
    columns_of: Callable[[pa.Table], pa.Table] = _same
    unlabeled: bool = False
    spelling: NumberSpelling = PLAIN


@dataclass(frozen=True)
class CheckedChunk:
    """n rows of one file. splits: (n,) int8, an index into SPLITS, or NO_SPLIT. good: (n,) bool, the rows to keep."""

    raw: RawChunk
    checked: CheckedColumns
    splits: NDArray[np.int8]
    good: Bad

    @property
    def rows(self) -> int:
        """Rows of the chunk, those that could not even be split into fields included."""
        return self.checked.rows + len(self.raw.rejected)

    def reasons(self) -> Counter[str]:
        """Bad rows by their first reason."""
        reasons = Counter(rejected.reason for rejected in self.raw.rejected)
        reasons.update(self.checked.problems[i].reason for i in self._first_problem()[~self.good])
        return reasons

    def quarantine(self) -> pa.Table:
        """The bad rows, as QUARANTINE_SCHEMA; values: the raw row as JSON, or its text."""
        bad = np.flatnonzero(~self.good)
        rows = [
            (self.checked.problems[problem].reason, int(number), json.dumps(values, default=str)[:_VALUES_SHOWN])
            for problem, number, values in zip(
                self._first_problem()[bad],
                self.raw.row_numbers[bad],
                self.raw.table.take(pa.array(bad)).to_pylist(),
                strict=True,
            )
        ]
        rows += [(rejected.reason, rejected.row, rejected.text[:_VALUES_SHOWN]) for rejected in self.raw.rejected]
        return pa.table(
            {
                "reason": pa.array([reason for reason, _, _ in rows], pa.string()),
                "source": pa.array([self.raw.source] * len(rows), pa.string()),
                "row": pa.array([number for _, number, _ in rows], pa.int64()),
                "values": pa.array([values for _, _, values in rows], pa.string()),
            },
            schema=QUARANTINE_SCHEMA,
        )

    def examples(self) -> dict[str, str]:
        """The first bad row of each reason, its value and what may help."""
        found = {problem.reason: "".join(_first(self.raw, problem)) for problem in self.checked.problems}
        for rejected in self.raw.rejected:
            found.setdefault(rejected.reason, f"row {rejected.row}")
        return found

    def _first_problem(self) -> NDArray[np.int64]:
        """(n,) index of each row's first problem; -1 = none."""
        first = np.full(self.checked.rows, -1)
        for i, problem in enumerate(self.checked.problems):
            first[problem.rows & (first < 0)] = i
        return first


def checked_chunks(source: RawSource, schema: LogSchema, splitter: RowSplitter) -> Iterator[CheckedChunk]:
    """All rows of a source, checked. Raises SourceError, naming file and column, when a column is absent, of a hopeless type, or
    wrong in every row of a file."""
    file = FileHealth()
    for chunk, position in positioned(source):
        if chunk.source != file.source:
            file.require_some_good()
            file = FileHealth(chunk.source)
        try:
            columns = source.columns_of(chunk.table)
            checked = check_rows(schema, columns, unlabeled=source.unlabeled, spelling=source.spelling)
            splits = splitter.assign(SplitInput(chunk.table, position, chunk.split))
        except ColumnError as error:
            raise SourceError(f"{chunk.source}: {error}") from None
        checked.note("split", "the row tells no split", splits == NO_SPLIT)
        file.update(chunk, checked)
        yield CheckedChunk(chunk, checked, splits, checked.good())
    file.require_some_good()


def positioned(source: RawSource) -> Iterator[tuple[RawChunk, int]]:
    """Chunks with the number of rows before them. The next one is read while the last one is worked on."""
    position = 0
    chunks = source.chunks()
    with ThreadPoolExecutor(1, thread_name_prefix="read raw rows") as reader:
        future = reader.submit(next, chunks, None)
        while (chunk := future.result()) is not None:
            future = reader.submit(next, chunks, None)
            for column in source.columns:
                if column not in chunk.table.column_names:
                    there = ", ".join(chunk.table.column_names[:50])
                    raise SourceError(f"{chunk.source}: column {column!r} is absent (columns there: {there})")
            yield chunk, position
            position += chunk.table.num_rows


@dataclass
class FileHealth:
    """How many rows of a file are wrong in each column, to tell a broken file from a few bad rows."""

    source: str | None = None
    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def update(self, chunk: RawChunk, checked: CheckedColumns) -> None:
        self.rows += checked.rows + len(chunk.rejected)
        for rejected in chunk.rejected[:1]:
            hint = f"; {rejected.hint}" if rejected.hint else ""
            example = f"row {rejected.row}: {rejected.reason}, in {rejected.text!r:.80}{hint}"
            self.examples.setdefault(_REJECTED, example)
        self.bad[_REJECTED] += len(chunk.rejected)
        wrong: dict[str, Bad] = {}
        for problem in checked.problems:
            wrong[problem.column] = wrong.get(problem.column, np.zeros(checked.rows, np.bool_)) | problem.rows
            if problem.column not in self.examples:
                row, shown = _first(chunk, problem)
                self.examples[problem.column] = f"{row}: {problem.what}{shown}"
        for column, rows in wrong.items():
            self.bad[column] += int(rows.sum())

    def require_some_good(self) -> None:
        """Raises SourceError when one and the same thing is wrong in every row, or in every one that has its fields."""
        for column, count in self.bad.items():
            whole = self.rows if column == _REJECTED else self.rows - self.bad[_REJECTED]
            if whole and count == whole:
                what = "every row is broken" if column == _REJECTED else f"column {column!r} is wrong in every row"
                raise SourceError(f"{self.source}: {what}, of {self.rows:,}; {self.examples[column]}")


def _first(chunk: RawChunk, problem: RowProblem) -> tuple[str, str]:
    """The first row of a problem, and the value as it stands there with what may help."""
    row = int(np.flatnonzero(problem.rows)[0])
    raw = chunk.table
    given = raw.column(problem.column)[row].as_py() if problem.column in raw.column_names else None
    hint = problem.hint or (_number_hint(given) if problem.what == NOT_A_NUMBER and isinstance(given, str) else "")
    shown = "" if given is None else f" (given: {given!r:.80})"
    return f"row {chunk.row_numbers[row]}", f"{shown}{f'; {hint}' if hint else ''}"


def _number_hint(given: str) -> str:
    """What a number that cannot be read may be meant as."""
    text = given.strip()
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", text) and not re.fullmatch(r"[+-]?0,\d{3}", text):
        return "a comma between thousands is told by --thousands ,"
    if re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+(,\d*)?|[+-]?\d+\.\d{3}\.\d{3}.*", text):
        return "points between thousands and a decimal comma are told by --thousands . --decimal ,"
    if re.fullmatch(r"[+-]?\d*,\d*", text):
        return "a decimal comma is told by --decimal ,"
    if len(text) <= 12 and not any(c.isdigit() for c in text):
        return f'if it stands for missing, say so: "missing_values": [{json.dumps(text, ensure_ascii=False)}]'
    return ""
