"""Raw rows to a log in two streaming passes: the first finds what is wrong and fits the schema, the second encodes and writes.

A split by time or by position needs one look at all rows before. Memory does not grow with the rows (quarantined ones neither).
Whatever goes wrong, the log is whole or not there.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.importing.checking import CheckedChunk, RawSource, checked_chunks, positioned
from rayrec.data.importing.progress import ImportProgress
from rayrec.data.importing.reading import SourceError
from rayrec.data.log import SPLITS, LogWriter, check_log_place
from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.fitting import SchemaFitter
from rayrec.data.log.row_checks import ColumnError
from rayrec.data.log.schema import LogSchema, SchemaError
from rayrec.data.log.splitting import TRAIN, RowSplitter, SplitInput, SplitRule, prepare
from rayrec.typed_json import ConfigError, to_plain

_OVER_LINES = "rows with a value over more than one line (if none should be: --no-quoting)"


@dataclass(frozen=True)
class ImportOptions:
    """When an import fails, and what it says."""

    max_quarantined: float = 0.5
    """Share of bad rows above which the import is an error."""
    overwrite: bool = False
    """Replace a log of the same name."""
    quiet: bool = False
    """No progress lines."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_quarantined <= 1:
            raise ConfigError(f"max_quarantined must lie in [0, 1], not {self.max_quarantined:g}")


def import_log(
    source: RawSource, schema: LogSchema, split: SplitRule, out: Path, options: ImportOptions | None = None
) -> Path:
    """Import ``source`` as the log ``out``; what ``schema`` lacks is fitted on the training split. Returns ``out``.

    Raises SourceError (no or broken raw data, an absent column, one that is wrong in every row, too many bad rows, none left for
    training), LogError (``out`` exists), ConfigError (the rule needs a time column), SchemaError (it names a task that is none).
    """
    options = options if options is not None else ImportOptions()
    for made in schema.made_of_labels:
        unknown = sorted(set(made.tasks) - set(schema.task_names))
        if unknown or not made.tasks:
            named = f"names no task: {', '.join(unknown)}" if unknown else "names no task"
            raise SchemaError(f"made_of_labels {made.column!r} {named}; tasks: {', '.join(schema.task_names)}")
    check_log_place(out, overwrite=options.overwrite)
    started = time.monotonic()
    splitter = _prepared(source, schema, split, options)
    fitted, extra_types, first_bad = _fit(source, schema, splitter, options)
    with LogWriter(out, fitted, overwrite=options.overwrite, extra_types=extra_types) as writer:
        labels, over_lines = _write(source, fitted, splitter, writer, options)
        notes: dict[str, int | None] = {splitter.note: None} if splitter.note else {}
        if over_lines:
            notes[_OVER_LINES] = over_lines
        writer.finish(
            {
                "notes": notes,
                "first_bad": first_bad,
                "importer": source.name,
                "split": {"rule": type(split).__name__, **to_plain(split)},
                "labels": labels,
                "max_quarantined": options.max_quarantined,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    return out


def _prepared(source: RawSource, schema: LogSchema, split: SplitRule, options: ImportOptions) -> RowSplitter:
    current = source.name

    def scan() -> Iterator[SplitInput]:
        nonlocal current
        progress = ImportProgress("finding the splits", quiet=options.quiet)
        for chunk, position in positioned(source):
            current = chunk.source
            yield SplitInput(chunk.table, position, chunk.split)
            progress.advance(chunk.table.num_rows)

    try:
        return prepare(split, schema.timestamp, scan, schema.time_spelling)
    except ColumnError as error:
        raise SourceError(f"{current}: {error}") from None


def _fit(
    source: RawSource, schema: LogSchema, splitter: RowSplitter, options: ImportOptions
) -> tuple[LogSchema, dict[str, pa.DataType], dict[str, str]]:
    """Pass 1: the fitted schema, the types of the extras, and where the first bad row of each reason stands. Raises SourceError
    when the rows are not worth a log."""
    progress = ImportProgress("pass 1 of 2, fitting", quiet=options.quiet)
    fitter = SchemaFitter(schema)
    types: dict[str, pa.DataType] = dict.fromkeys(schema.extras, pa.int64())
    reasons: Counter[str] = Counter()
    first_bad: dict[str, str] = {}
    good_rows = 0
    last_file = source.name
    for chunk in checked_chunks(source, schema, splitter):
        fitter.update(chunk.checked, chunk.good & (chunk.splits == TRAIN))
        good_rows += int(chunk.good.sum())
        for name in schema.extras:
            if not pa.types.is_integer(chunk.checked.others[name].type):
                types[name] = pa.float64()
        found = chunk.reasons()
        reasons.update(found)
        if found.keys() - first_bad.keys():
            for reason, example in chunk.examples().items():
                first_bad.setdefault(reason, f"{chunk.raw.source}, {example}")
        progress.advance(chunk.rows)
        last_file = chunk.raw.source
    bad_rows = reasons.total()
    if good_rows + bad_rows == 0:
        raise SourceError(f"{last_file}: the raw data hold no rows")
    if bad_rows > options.max_quarantined * (good_rows + bad_rows) or good_rows == 0:
        reason, count = reasons.most_common(1)[0]
        most = f", more than the share of {options.max_quarantined:g} that may be" if good_rows else ""
        raise SourceError(
            f"{source.name}: {bad_rows:,} of {good_rows + bad_rows:,} rows are bad{most}; most often ({count:,} rows) "
            f"{reason!r}, first in {first_bad[reason]}"
        )
    if fitter.rows == 0 and not schema.fitted:
        raise SourceError(f"{source.name}: none of {good_rows:,} good rows falls into the training split")
    return fitter.fit(), types, first_bad


def _write(
    source: RawSource, schema: LogSchema, splitter: RowSplitter, writer: LogWriter, options: ImportOptions
) -> tuple[dict[str, Any], int]:
    """Pass 2: every row into its split or into quarantine. Returns observed and positive labels by split and task, and how many
    rows have a value over more than one line."""
    progress = ImportProgress("pass 2 of 2, writing", quiet=options.quiet)
    encoder = LogEncoder(schema)
    over_lines = 0
    labels: dict[str, dict[str, Counter[str]]] = {}
    for chunk in checked_chunks(source, schema, splitter):
        for split, table in _encoded(chunk, encoder):
            writer.write(split, table)
            by_task = labels.setdefault(split, {task.name: Counter() for task in schema.tasks})
            for task in schema.tasks:
                column = table.column(task.column)
                by_task[task.name]["observed"] += len(column) - column.null_count
                by_task[task.name]["positive"] += int(pc.sum(column).as_py() or 0)
        writer.quarantine(chunk.quarantine())
        over_lines += chunk.raw.over_lines
        progress.advance(chunk.rows)
    return labels, over_lines


def _encoded(chunk: CheckedChunk, encoder: LogEncoder) -> Iterator[tuple[str, pa.Table]]:
    """The good rows of a chunk as a log stores them, by split."""
    table = pa.table(encoder.encode_checked(chunk.checked) | chunk.checked.others)
    for index, split in enumerate(SPLITS):
        rows = chunk.good & (chunk.splits == index)
        if rows.all():
            yield split, table
        elif rows.any():
            yield split, table.filter(pa.array(rows))
