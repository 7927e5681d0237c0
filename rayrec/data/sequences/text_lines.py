"""Numbered lines of a text file that may be gzipped."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

from rayrec.data.sequences.interactions import InteractionsError


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of every line that is not blank; UTF-8.

    Raises InteractionsError when there is no such file, or it is empty, damaged or not UTF-8, naming the line.
    """
    if not file.is_file():
        raise InteractionsError(f"{file}: no such file")
    if file.stat().st_size == 0:
        raise InteractionsError(f"{file}: the file is empty")
    number = 0
    with ExitStack() as stack:
        raw: BinaryIO = stack.enter_context(file.open("rb"))
        if file.suffix == ".gz":
            raw = cast(BinaryIO, stack.enter_context(gzip.open(raw)))
        try:
            for number, line in enumerate(raw, start=1):
                if line.strip():
                    yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            raise InteractionsError(f"{file}, line {number:,}: not UTF-8 text") from None
        except (OSError, EOFError, zlib.error) as error:
            raise InteractionsError(f"{file}: damaged after line {number:,}: {error}") from None
