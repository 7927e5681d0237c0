"""Numbered lines of a text file that may be gzipped."""

import gzip
import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

from rayrec.data.sequences.interactions import InteractionsError


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of every line that is not blank; UTF-8. Raises InteractionsError when there is no such file."""
    if not file.is_file():
        raise InteractionsError(f"{file}: no such file")
    with ExitStack() as stack:
        raw: BinaryIO = stack.enter_context(file.open("rb"))
        if file.suffix == ".gz":
            raw = cast(BinaryIO, stack.enter_context(gzip.open(raw)))
        for number, line in enumerate(stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8")), start=1):
            if line.strip():
                yield number, line
