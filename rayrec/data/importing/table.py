"""A user's own tables: CSV, TSV or Parquet files with a schema file that they write."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rayrec.data.importing.checking import RawSource
from rayrec.data.importing.importing import ImportOptions, import_log
from rayrec.data.importing.reading import RawChunk, SourceError, find_files, read_delimited, read_parquet
from rayrec.data.log.raw_columns import NumberSpelling
from rayrec.data.log.schema import LogSchema, read_schema
from rayrec.data.log.splitting import ColumnSplit, FileSplit, HashSplit, Split, SplitRule, TimeSplit

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PATTERNS = (*(f"*{suffix}{gz}" for suffix in _DELIMITERS for gz in ("", ".gz")), "*.parquet")


@dataclass(frozen=True)
class TextFormat:
    """How text files are written."""

    delimiter: str | None = None
    """Default: a comma for .csv, a tab for .tsv."""
    columns: tuple[str, ...] = ()
    """Names of the columns, where the files have no header."""
    quoting: bool = True
    """Values may stand in double quotes, with delimiters and line ends in them."""
    decimal: str = "."
    """What stands before the fraction of a number; "," in much of Europe."""
    thousands: str = ""
    """What stands between groups of three digits: "," or "." or " "."""
    encoding: str = "utf-8"
    """As Python names it: latin-1, cp1252, utf-16, ..."""


@dataclass(frozen=True)
class TableFiles:
    """Files or folders of them (.csv, .tsv, each also .gz, and .parquet); they may be mixed."""

    files: tuple[Path, ...]
    """Files or folders of CSV, TSV (also .gz) or Parquet files, for the split rule."""
    valid: tuple[Path, ...] = ()
    """Those wholly for validation (with split:by-file)."""
    test: tuple[Path, ...] = ()
    """Those wholly for test (with split:by-file)."""


def import_table(
    files: TableFiles,
    schema: LogSchema | Path,
    split: SplitRule,
    out: Path,
    *,
    text: TextFormat | None = None,
    unlabeled: bool = False,
    options: ImportOptions | None = None,
) -> Path:
    """Import a user's own table as the log ``out``; returns ``out``.

    schema: declared, or already fitted (a log's ``schema.json``): then its vocabularies and statistics are used as they are, for
    logs that one model shall read. unlabeled: label columns may be absent. Raises SourceError, SchemaError or LogError.
    """
    declared = read_schema(schema) if isinstance(schema, Path) else schema
    text = text if text is not None else TextFormat()
    if (files.valid or files.test) and not isinstance(split, FileSplit):
        raise SourceError(f"files for validation or test need a split by file, not {type(split).__name__}")
    if files.valid and isinstance(split, FileSplit):
        split = FileSplit(valid_share=0.0, seed=split.seed)
    parts: list[tuple[Path, Split]] = []
    for given, part in ((files.files, "train"), (files.valid, "valid"), (files.test, "test")):
        parts += [(file, part) for path in given for file in find_files(path, *_PATTERNS)]  # type: ignore[misc]
    needed = _needed_columns(declared, split, unlabeled=unlabeled)

    def chunks() -> Iterator[RawChunk]:
        return chain.from_iterable(_read(file, part, text, needed) for file, part in parts)

    if text.decimal == text.thousands or len(text.decimal) != 1 or len(text.thousands) > 1:
        raise SourceError(f"decimal {text.decimal!r} and thousands {text.thousands!r} must be two different characters")
    spelling = NumberSpelling(text.decimal, text.thousands)
    source = RawSource(declared.name, chunks, unlabeled=unlabeled, spelling=spelling)
    return import_log(source, declared, split, out, options)


def _read(file: Path, split: Split, text: TextFormat, needed: tuple[str, ...] | None) -> Iterator[RawChunk]:
    if file.suffix == ".parquet":
        return read_parquet(file, needed, split)
    delimiter = delimiter_of(file, text.delimiter)
    return read_delimited(
        file, delimiter, columns=text.columns or None, split=split, quoting=text.quoting, encoding=text.encoding
    )


def delimiter_of(file: Path, given: str | None) -> str:
    """As given, or as the file's name tells. Raises SourceError when neither does."""
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    delimiter = given if given is not None else _DELIMITERS.get(suffix)
    if delimiter is None:
        raise SourceError(f"{file}: the delimiter is not told by the name; give one, --delimiter")
    if len(delimiter) != 1:
        raise SourceError(f"the delimiter must be one character, not {delimiter!r}")
    return delimiter


def _needed_columns(schema: LogSchema, split: SplitRule, *, unlabeled: bool) -> tuple[str, ...] | None:
    """Columns to read of Parquet files; None = all, where a row's hash is of all or some columns need not be there."""
    if unlabeled or isinstance(split, FileSplit) or (isinstance(split, HashSplit) and not split.columns):
        return None
    names = [feature.name for feature in schema.features] + [task.column for task in schema.tasks]
    names += [
        c for c in (schema.weight, schema.timestamp, schema.request_id, schema.stage, *schema.extras) if c is not None
    ]
    if isinstance(split, HashSplit):
        names += split.columns
    if isinstance(split, ColumnSplit):
        names.append(split.column)
    if isinstance(split, TimeSplit) and split.column is not None:
        names.append(split.column)
    return tuple(dict.fromkeys(names))
