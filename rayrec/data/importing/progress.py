"""Progress of a long import: a line every few seconds, so that it reads well in a terminal and in a job's log."""

import sys
import time


class ImportProgress:
    """Counts rows of one pass and tells on stderr how far it is."""

    def __init__(self, what: str, *, quiet: bool, every_seconds: float = 5.0) -> None:
        self._what = what
        self._quiet = quiet
        self._every = every_seconds
        self._started = self._told = time.monotonic()
        self.rows = 0

    def advance(self, rows: int) -> None:
        self.rows += rows
        now = time.monotonic()
        if not self._quiet and now - self._told >= self._every:
            self._told = now
            rate = self.rows / (now - self._started)
            print(f"{self._what}: {self.rows:,} rows so far, {rate:,.0f} rows/s", file=sys.stderr, flush=True)
