"""Metrics on their way to a tracking store that may be slow or away: sent beside training, which never waits for them.

What the store does not take is told once, tried again, and at the end kept in ``<run>/unsent_metrics.json`` for the next command.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rayrec.errors import UserError
from rayrec.files import make_folder, write_text_atomically
from rayrec.training.tracking import Tracker
from rayrec.typed_json import from_json, to_json

FILE = "unsent_metrics.json"
_CHANGING = threading.Lock()


@dataclass(frozen=True)
class _Unsent:
    steps: tuple[tuple[int, dict[str, float]], ...]


class MetricQueue:
    """Sends metrics of one run in a thread, in order.

    retry_seconds: pause after a failure. patience_seconds: how long ``close`` waits for what is left. quiet_seconds: for so long
    metrics go to ``<run>/unsent_metrics.json`` at once; a run that has ended by then imports no client of the store, and whoever
    completes it sends them. The longer one sends them itself then.
    """

    def __init__(
        self, folder: Path, tracker: Tracker, run_id: str, *, retry_seconds: float = 5.0, patience_seconds: float = 20.0,
        quiet_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        self.folder, self.tracker, self.run_id = folder, tracker, run_id
        self.retry_seconds, self.patience_seconds, self.quiet_seconds = retry_seconds, patience_seconds, quiet_seconds
        self._quiet, self._changing = quiet_seconds > 0, threading.Lock()
        self._waiting: deque[tuple[int, dict[str, float]]] = deque()
        self._something = threading.Event()
        self._closing = threading.Event()
        self._told = self._owed = False
        self._thread = threading.Thread(target=self._send, name="metrics", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Waits for no store; while it is quiet, writes a small file. Values that are None are left out."""
        entry = step, {name: float(value) for name, value in metrics.items() if value is not None}
        with self._changing:
            if self._quiet:
                with suppress(UserError):  # a disk that refuses ends no training here: it stays in memory
                    return keep_unsent(self.folder, (entry,))
        self._waiting.append(entry)
        self._something.set()

    def close(self) -> None:
        """Send what is left, for a while; then keep it beside the run."""
        self._closing.set()
        self._something.set()
        self._thread.join(self.patience_seconds)
        if self._waiting:
            keep_unsent(self.folder, tuple(self._waiting))

    def _send(self) -> None:
        if self.quiet_seconds:
            if self._closing.wait(self.quiet_seconds):
                return
            with self._changing:
                self._quiet = False
            self._send_kept()
        closing_at: float | None = None
        while True:
            if not self._waiting:
                if self._closing.is_set():
                    return
                self._something.wait()
                self._something.clear()
                continue
            step, metrics = self._waiting[0]
            try:
                self.tracker.log_metrics(self.run_id, metrics, step)
            except Exception as error:  # each store has its own client, with errors of its own
                self._tell(error)
                if self._closing.is_set():
                    closing_at = closing_at or time.monotonic()
                    if time.monotonic() - closing_at > self.patience_seconds / 2:
                        return
                self._closing.wait(self.retry_seconds) if closing_at is None else time.sleep(0.5)
            else:
                self._waiting.popleft()
                if self._owed:
                    self._send_kept()

    def _send_kept(self) -> None:
        try:
            send_unsent(self.folder, self.tracker, self.run_id)
            self._owed = False
        except Exception as error:  # each store has its own client; tried again behind the next that it takes
            self._owed = True
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            print(
                f"the tracking store does not take metrics: {self.tracker.trouble(error)}; training goes on, they are kept and "
                "sent when it is back",
                file=sys.stderr,
                flush=True,
            )


def keep_unsent(folder: Path, steps: Sequence[tuple[int, dict[str, float]]]) -> None:
    """Behind what is kept there already: metrics by step, for ``send_unsent``."""
    file = make_folder(folder) / FILE
    with _CHANGING:
        before = from_json(_Unsent, file.read_bytes(), str(file)).steps if file.is_file() else ()
        write_text_atomically(file, to_json(_Unsent((*before, *steps))))


def has_unsent(folder: Path) -> bool:
    return (folder / FILE).is_file()


def send_unsent(folder: Path, tracker: Tracker, run_id: str) -> None:
    """Send what an earlier process could not. Raises what the store's client raises."""
    kept = folder / FILE
    if kept.is_file():
        sent = from_json(_Unsent, kept.read_bytes(), str(kept)).steps
        for step, metrics in sent:
            tracker.log_metrics(run_id, metrics, step)
        with _CHANGING:  # what another thread has kept meanwhile stays
            left = from_json(_Unsent, kept.read_bytes(), str(kept)).steps[len(sent) :]
            write_text_atomically(kept, to_json(_Unsent(left))) if left else kept.unlink()
