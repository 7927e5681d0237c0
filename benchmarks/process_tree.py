"""CPU time and memory of a process and everything it has started, from Linux's /proc."""

import os
import threading
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def members(root: int) -> list[int]:
    """Process ids of ``root`` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for process in found:  # grows while it is walked
        found += children.get(process, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time that the living members have used so far."""
    stats = [_stat(process) for process in members(root)]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats if fields is not None) / _TICKS


def resident_bytes(root: int) -> int:
    """Sum of proportional set sizes: memory that several members share (the object store) counts once."""
    return sum(_proportional_bytes(process) for process in members(root))


class PeakMemory:
    """The largest ``resident_bytes(root)`` seen while the context is open, sampled every ``seconds``."""

    def __init__(self, root: int, seconds: float = 0.2) -> None:
        self.bytes = 0
        self._root, self._seconds = root, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stopped.wait(self._seconds):
            self.bytes = max(self.bytes, resident_bytes(self._root))


def _stat(process: int) -> list[str] | None:
    """Fields of /proc/<id>/stat from the state on; None when the process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _proportional_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
