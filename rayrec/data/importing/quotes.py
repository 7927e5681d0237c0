"""Stray quotes in delimited text. One that stands at the beginning of a value makes a reader take all that follows for the value,
up to the next quote: thousands of rows may vanish into it. Here it is found by line."""

from collections.abc import Iterable

MANY_LINES = 3  # line ends within a value from which its inner lines are looked at
NO_QUOTING = " (if quotes are part of the values: --no-quoting)"
STRAY = f"swallowed by a stray quote{NO_QUOTING}"


def quote_behind_blank(lines: Iterable[str], delimiter: str) -> int | None:
    """Number, from 1, of the first line with a quote behind the blanks that begin a value: it opens none, so that delimiters
    behind it part the value. None when there is none."""
    inside = False
    for number, line in enumerate(lines, start=1):
        at = 0
        while (found := line.find('"', at)) >= 0:
            before = line[:found].rstrip(" \t") if delimiter != "\t" else line[:found].rstrip(" ")
            at = found + 1
            if inside:
                at += line[at : at + 1] == '"'
                inside = at == found + 2
            elif found == 0 or line[found - 1] == delimiter:
                inside = True
            elif before == "" or before[-1] == delimiter:
                return number
    return None


def open_quote(lines: Iterable[str], delimiter: str) -> int | None:
    """Number, from 1, of the line with a quote that opens a value and is never closed; None when there is none."""
    inside, opened = False, 0
    for number, line in enumerate(lines, start=1):
        at = 0
        while (found := line.find('"', at)) >= 0:
            if not inside:
                inside = found == 0 or line[found - 1] == delimiter
                opened = number
                at = found + 1
            elif line[found + 1 : found + 2] == '"':
                at = found + 2
            else:
                inside, at = False, found + 1
    return opened if inside else None


def holds_rows(value: str, delimiter: str, columns: int) -> bool:
    """Whether most inner lines of a value of several lines look like rows of ``columns`` values."""
    inner = value.split("\n")[1:-1]
    if columns < 2 or len(inner) < MANY_LINES - 1:
        return False
    return sum(line.count(delimiter) == columns - 1 for line in inner) >= 0.9 * len(inner)
