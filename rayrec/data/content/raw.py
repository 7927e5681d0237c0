"""Columns of a raw Parquet file, checked."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.content.log import ContentError


def read_columns(file: Path, columns: Sequence[str]) -> pa.Table:
    """Raises ContentError that names the file and the column that is missing."""
    if not file.is_file():
        raise ContentError(f"{file}: no such file")
    try:
        found = pq.read_schema(file).names
        for column in columns:
            if column not in found:
                raise ContentError(f"{file}: column {column!r} is missing; found {', '.join(found)}")
        return pq.read_table(file, columns=list(columns))
    except pa.ArrowInvalid as error:
        raise ContentError(f"{file}: {error}") from None
