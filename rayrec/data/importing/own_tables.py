"""Tables that users bring beside their data (reviews, preferences, texts, item features), Parquet or CSV, whole in memory.

Names of users and items are read as the imports read them: as they are written (0007 is not 7, "NA" is a name), but for blanks
around them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.importing.quotes import NO_QUOTING
from rayrec.data.importing.reading import SourceError, read_delimited, read_parquet, require_file
from rayrec.data.log.raw_columns import Codes, ColumnTypeError, as_codes, as_numbers, as_text

NO_NUMBER = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None")
"""How tables of numbers commonly spell that there is none."""
_EXPECTED = "expected UTF-8, a comma between values, and double quotes around values with commas or line ends in them"


@dataclass(frozen=True)
class OwnTable:
    """The columns of a file."""

    file: Path
    """Where they are from."""
    columns: pa.Table
    """(n rows): of CSV strings as they are written, empty = null; of Parquet as they are."""

    def __len__(self) -> int:
        return len(self.columns)

    def require(self, name: str) -> None:
        """Raises SourceError for the first row without a value in this column."""
        column = self.columns.column(name)
        if column.null_count:
            raise self.wrong(name, pc.index(column.is_null(), True).as_py(), "holds nothing, expected a value")

    def names(self, name: str, *, needed: bool = False) -> list[str]:
        """(n,) of users or items; empty where there is none. Raises SourceError for what is neither text nor a whole number, and
        where there is none but one is ``needed``."""
        column = self.columns.column(name)
        try:
            codes, _ = as_names(column)
        except ColumnTypeError as error:
            raise SourceError(f"{self.file}: column {name!r} {error}") from None
        if codes.bad.any():
            row = int(codes.bad.argmax())
            raise self.wrong(name, row, f"holds {column[row].as_py()!r}, which is neither text nor whole")
        values = [*codes.values.to_pylist(), ""]  # the last is that of index -1
        names = [values[index] for index in codes.index]
        if needed and "" in names:
            raise self.wrong(name, names.index(""), "holds nothing, expected a name")
        return names

    def texts(self, name: str) -> list[str]:
        """(n,) empty where there is none. Raises SourceError for a column that is not text."""
        try:
            return [text or "" for text in as_text(self.columns.column(name)).to_pylist()]
        except ColumnTypeError as error:
            raise SourceError(f"{self.file}: column {name!r} {error}") from None

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) float64, NaN where there is none, also by one of ``NO_NUMBER``. Raises SourceError for what is no number."""
        column = self.columns.column(name)
        try:
            numbers = as_numbers(column, NO_NUMBER)
        except ColumnTypeError as error:
            raise SourceError(f"{self.file}: column {name!r} {error}") from None
        if numbers.bad.any():
            row = int(numbers.bad.argmax())
            raise self.wrong(name, row, f"holds {column[row].as_py()!r:.80}, expected a number")
        return numbers.values

    def counts(self, name: str) -> list[int]:
        """(n,) whole numbers from 0 on. Raises SourceError for anything else, also where there is none."""
        self.require(name)
        numbers = self.numbers(name)
        with np.errstate(invalid="ignore"):
            bad = ~((numbers >= 0) & (numbers < 2**53) & (numbers == np.floor(numbers)))
        if bad.any():
            row = int(bad.argmax())
            found = self.columns.column(name)[row].as_py()
            raise self.wrong(name, row, f"holds {found!r}, expected a whole number from 0 on")
        counts: list[int] = numbers.astype(np.int64).tolist()
        return counts

    def wrong(self, name: str, row: int, problem: str) -> SourceError:
        """What is wrong with a column in a row (from 0), told as the reader of the file counts them: from 1, without a header."""
        return SourceError(f"{self.file}: column {name!r}, row {row + 1:,} {problem}")


def read_own_table(file: Path, wanted: Sequence[str], *, others: bool = False) -> OwnTable:
    """The wanted columns of a ``.parquet`` file, or of one that is comma-separated (``.tsv``, ``.tab``: tabs; each also .gz).

    others: all further columns too. Raises SourceError that names the file, and the column that is missing or the row that is
    broken.
    """
    require_file(file)
    wanted = tuple(dict.fromkeys(wanted))
    try:
        if file.suffix == ".parquet":
            _require(file, wanted, pq.read_schema(file).names)
            parts = [chunk.table for chunk in read_parquet(file, None if others else wanted)]
        else:
            parts = []
            delimiter = "\t" if {".tsv", ".tab"} & {*file.suffixes[-2:]} else ","
            for chunk in read_delimited(file, delimiter, prose=True):
                _require(file, wanted, chunk.table.column_names)
                if chunk.rejected:
                    first = chunk.rejected[0]
                    raise SourceError(f"{file}: row {first.row:,}: {first.reason.removesuffix(NO_QUOTING)}", _EXPECTED)
                parts.append(chunk.table if others else chunk.table.select(wanted))
    except SourceError as error:
        raise SourceError(error.problem, "" if error.problem == str(error) else _EXPECTED) from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file}: not a readable Parquet file: {' '.join(str(error).split())}") from None
    return OwnTable(file, pa.concat_tables(parts).unify_dictionaries().combine_chunks())


def as_names(column: pa.ChunkedArray | pa.Array) -> tuple[Codes, int]:
    """Names of users or items (n,) without the blanks around them, and how many had some; empty and missing are none.

    Raises ColumnTypeError.
    """
    codes = as_codes(column)
    stripped = pc.utf8_trim_whitespace(codes.values)
    changed = pc.and_(pc.not_equal(stripped, codes.values), pc.not_equal(stripped, ""))
    changed = pc.fill_null(changed, False).to_numpy(zero_copy_only=False)
    blanks = int(np.append(changed, False)[codes.index].sum()) if changed.any() else 0
    return Codes(stripped, codes.index, codes.bad), blanks


def _require(file: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    for name in wanted:
        if name not in there:
            raise SourceError(f"{file}: column {name!r} is missing; found {', '.join(there[:50])}")
