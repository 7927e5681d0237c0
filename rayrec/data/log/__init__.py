"""Logs of rows for rankers: a folder of Parquet with its schema (``folder``), raw rows to batches, streams of them."""

from rayrec.data.log.folder import (
    QUARANTINE_SCHEMA,
    ROW_GROUP_ROWS,
    ROWS_PER_FILE,
    SPLITS,
    Log,
    LogError,
    LogWriter,
    arrow_schema,
    check_columns,
    check_log_place,
    read_footer,
)

__all__ = [
    "QUARANTINE_SCHEMA",
    "ROWS_PER_FILE",
    "ROW_GROUP_ROWS",
    "SPLITS",
    "Log",
    "LogError",
    "LogWriter",
    "arrow_schema",
    "check_columns",
    "check_log_place",
    "read_footer",
]
