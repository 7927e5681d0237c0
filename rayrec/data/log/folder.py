"""A log on disk: a folder of Parquet shards by split, with its fitted schema.

<log>/schema.json
<log>/import.json                     rows by split, quarantined rows by reason, the importer's config
<log>/train/part-00000.parquet ...    also valid/ and test/; a log may have any of them
<log>/quarantine/part-00000.parquet   rows set aside: reason, source, row, values
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    LogSchema,
    SchemaError,
    SequenceFeature,
    read_schema,
    write_schema,
)
from rayrec.errors import UserError
from rayrec.files import (
    check_replaceable,
    make_folder,
    put_in_place,
    raise_disk_error,
    temporary_beside,
    write_text_atomically,
)

SPLITS = ("train", "valid", "test")
IMPORT_FILE = "import.json"
ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 << 20
ROWS_PER_FILE = 1_048_576
QUARANTINE_SCHEMA = pa.schema(
    [("reason", pa.string()), ("source", pa.string()), ("row", pa.int64()), ("values", pa.string())]
)


class LogError(UserError):
    """A log that cannot be read: names the file and the column."""


def arrow_schema(schema: LogSchema, extra_types: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """The Arrow schema of a log's Parquet files: features in schema order, then labels, weight, timestamp, ..., extras."""
    fields = []
    for feature in schema.features:
        if isinstance(feature, DenseFeature):
            fields.append(pa.field(feature.name, pa.float32()))
        elif isinstance(feature, CategoricalFeature):
            fields.append(pa.field(feature.name, pa.int32()))
        elif isinstance(feature, SequenceFeature):
            fields.append(pa.field(feature.name, pa.list_(pa.int32())))
        else:
            fields.append(pa.field(feature.name, pa.string()))
    fields += [pa.field(task.column, pa.float32()) for task in schema.tasks]
    if schema.weight is not None:
        fields.append(pa.field(schema.weight, pa.float32()))
    for name in (schema.timestamp, schema.request_id):
        if name is not None:
            fields.append(pa.field(name, pa.int64()))
    if schema.stage is not None:
        fields.append(pa.field(schema.stage, pa.string()))
    fields += [pa.field(name, (extra_types or {}).get(name, pa.float64())) for name in schema.extras]
    return pa.schema(fields)


@dataclass(frozen=True)
class Log:
    """An opened log. Opening reads the schema only; ``files`` and ``rows`` look at footers."""

    path: Path
    schema: LogSchema

    @staticmethod
    def open(path: Path | str) -> "Log":
        """Raises LogError when the folder is no log, SchemaError when its schema is broken or not fitted."""
        path = Path(path)
        if not (path / "schema.json").is_file():
            raise LogError(f"{path}: not a log (no schema.json); import raw files with python -m jobs.import_logs")
        schema = read_schema(path / "schema.json")
        if not schema.fitted:
            raise SchemaError(
                f"{path / 'schema.json'}: vocabularies or statistics are missing; the log was not imported"
            )
        return Log(path, schema)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if any((self.path / split).glob("part-*.parquet")))

    def files(self, split: str) -> tuple[Path, ...]:
        """Shards of a split in order. Raises LogError when there are none, or one is truncated, or a column is absent or
        of another type than the schema says: the message names the file and the column."""
        files = tuple(sorted((self.path / split).glob("part-*.parquet")))
        if not files:
            raise LogError(
                f"{self.path}: no rows in split {split!r} (splits there: {', '.join(self.splits) or 'none'})"
            )
        for file in files:
            check_columns(file, read_footer(file).schema.to_arrow_schema(), self.schema)
        return files

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the schema and of the names and sizes of all files: equal ones hold the same log."""
        files = (file for split in SPLITS for file in sorted((self.path / split).glob("part-*.parquet")))
        described = [f"{file.parent.name}/{file.name} {file.stat().st_size}" for file in files]
        text = (self.path / "schema.json").read_text(encoding="utf-8") + "\n".join(described)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def rows(self, split: str) -> int:
        return sum(read_footer(file).num_rows for file in self.files(split))


def read_footer(file: Path) -> pq.FileMetaData:
    """Parquet footer. Raises LogError naming the file when it is truncated, empty or no Parquet at all."""
    try:
        if file.stat().st_size == 0:
            raise LogError(f"{file}: the file is empty")
        return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise LogError(f"{file}: not a readable Parquet file (truncated or damaged): {reason}") from None


def check_columns(file: Path | str, found: pa.Schema, schema: LogSchema) -> None:
    """Raises LogError naming the file and the column that is absent or of another type than the schema says."""
    for wanted in arrow_schema(schema):
        index = found.get_field_index(wanted.name)
        if index < 0:
            raise LogError(f"{file}: column {wanted.name!r} is absent; the schema expects {wanted.type}")
        if wanted.name in schema.extras:
            if not (pa.types.is_integer(found.field(index).type) or pa.types.is_floating(found.field(index).type)):
                raise LogError(f"{file}: column {wanted.name!r} is {found.field(index).type}, expected a number")
        elif not found.field(index).type.equals(wanted.type) and not (
            pa.types.is_list(wanted.type)
            and pa.types.is_list(found.field(index).type)
            and found.field(index).type.value_type.equals(wanted.type.value_type)
        ):
            raise LogError(f"{file}: column {wanted.name!r} is {found.field(index).type}, expected {wanted.type}")


def check_log_place(path: Path, *, overwrite: bool) -> None:
    """Raises LogError unless a log may be written at ``path``. Only a log, or an empty folder, is ever removed; raw files with a
    schema.json beside them are none."""
    check_replaceable(path, IMPORT_FILE, overwrite=overwrite, error=LogError)


class LogWriter:
    """Writes a log shard by shard beside its place and renames it on success: a log is whole or not there.

    Rows are buffered to ``ROW_GROUP_ROWS`` or ``ROW_GROUP_BYTES`` per split, so memory stays constant.
    Use as a context manager: leaving it by an
    exception removes what was written. Raises LogError when ``path`` exists already and ``overwrite`` is false, or is
    anything but a log.
    """

    def __init__(
        self,
        path: Path | str,
        schema: LogSchema,
        *,
        overwrite: bool = False,
        extra_types: Mapping[str, pa.DataType] | None = None,
        rows_per_file: int = ROWS_PER_FILE,
    ) -> None:
        self.path = Path(path)
        self.schema = schema
        self.arrow_schema = arrow_schema(schema, extra_types)
        self.rows: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()
        self._overwrite = overwrite
        self._rows_per_file = rows_per_file
        self._buffers: dict[str, list[pa.Table]] = {}
        self._buffered: Counter[str] = Counter()
        self._buffered_bytes: Counter[str] = Counter()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._file_rows: Counter[str] = Counter()
        self._file_count: Counter[str] = Counter()
        check_log_place(self.path, overwrite=overwrite)
        self._partial = temporary_beside(self.path)

    def __enter__(self) -> "LogWriter":
        make_folder(self._partial)
        return self

    def write(self, split: str, table: pa.Table) -> None:
        """Append encoded rows (the columns of ``arrow_schema``, any order) to a split."""
        if table.num_rows:
            self._append(split, table.select(self.arrow_schema.names).cast(self.arrow_schema))
            self.rows[split] += table.num_rows

    def quarantine(self, table: pa.Table) -> None:
        """Append set-aside rows (columns of QUARANTINE_SCHEMA)."""
        if table.num_rows:
            self._append("quarantine", table.cast(QUARANTINE_SCHEMA))
            for reason in table.column("reason").value_counts().to_pylist():
                self.quarantined[reason["values"]] += reason["counts"]

    def add_file(self, name: str, text: str) -> None:
        """A further file of the log, beside schema.json."""
        write_text_atomically(self._partial / name, text)

    def finish(self, details: Mapping[str, Any]) -> None:
        """Write schema.json and import.json (``details`` plus the row counts), then put the log in its place."""
        for name, buffer in self._buffers.items():
            if buffer:  # empty when the rows so far filled their row groups exactly
                self._flush(name, everything=True)
        for writer in self._writers.values():
            writer.close()
        write_schema(self.schema, self._partial / "schema.json")
        summary = {**details, "rows": dict(self.rows), "quarantined": dict(self.quarantined)}
        write_text_atomically(self._partial / IMPORT_FILE, json.dumps(summary, indent=2, default=str))
        check_log_place(self.path, overwrite=self._overwrite)
        put_in_place(self._partial, self.path)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for writer in self._writers.values():
                if writer.is_open:
                    writer.close()
        except OSError as error:  # of a disk that is full, when nothing else was wrong before
            if value is None:
                raise_disk_error(error, self.path)
                raise
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)  # unless finish() was reached
        if value is not None:
            raise_disk_error(value, self.path)

    def _append(self, name: str, table: pa.Table) -> None:
        self._buffers.setdefault(name, []).append(table)
        self._buffered[name] += table.num_rows
        self._buffered_bytes[name] += table.nbytes
        large = self._buffered_bytes[name] >= ROW_GROUP_BYTES
        if large or self._buffered[name] >= ROW_GROUP_ROWS:
            self._flush(name, everything=large)

    def _flush(self, name: str, *, everything: bool) -> None:
        pending = pa.concat_tables(self._buffers[name])
        while pending.num_rows >= ROW_GROUP_ROWS or (everything and pending.num_rows):
            if name not in self._writers or self._file_rows[name] >= self._rows_per_file:
                self._open_next_file(name, pending.schema)
            self._writers[name].write_table(pending.slice(0, ROW_GROUP_ROWS), row_group_size=ROW_GROUP_ROWS)
            self._file_rows[name] += min(ROW_GROUP_ROWS, pending.num_rows)
            pending = pending.slice(ROW_GROUP_ROWS)
        self._buffers[name] = [pending] if pending.num_rows else []
        self._buffered[name] = pending.num_rows
        self._buffered_bytes[name] = pending.nbytes

    def _open_next_file(self, name: str, columns: pa.Schema) -> None:
        if name in self._writers:
            self._writers[name].close()
        folder = self._partial / name
        folder.mkdir(exist_ok=True)
        self._writers[name] = pq.ParquetWriter(
            folder / f"part-{self._file_count[name]:05d}.parquet", columns, compression="zstd", compression_level=1
        )
        self._file_count[name] += 1
        self._file_rows[name] = 0
