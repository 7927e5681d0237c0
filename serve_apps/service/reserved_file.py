"""Values in a file that processes share, on blocks that the disk has given beforehand.

prometheus_client keeps the values of several processes in sparse files that it maps into memory. When such a file grows into a
hole and the disk is full, the kernel ends the process that writes (SIGBUS); no handler of Python's can do anything about it.
"""

import logging
import mmap
import os
from pathlib import Path
from typing import BinaryIO

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

logger = logging.getLogger("ray.serve")
_BYTES = 256 * 1024  # some 2,000 label sets of each kind of metric


class ReservedDict(MmapedDict):
    """When the disk has no blocks to give, the values live on in this process only: counted, but not seen by others."""

    _f: BinaryIO | None  # type: ignore[assignment]  # None = in memory only

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            try:
                _reserve(Path(filename), _BYTES)
            except OSError as error:
                logger.error(f"{filename}: {error.strerror}; this replica's metrics are not shared with the others")
                self._in_memory(filename)
                return
        super().__init__(filename, read_mode)

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + 64 > self._capacity:
            self._grow()
        super()._init_value(key)

    def _grow(self) -> None:
        size = 2 * self._capacity
        try:
            if self._f is None:
                raise OSError
            os.posix_fallocate(self._f.fileno(), 0, size)
            grown = mmap.mmap(self._f.fileno(), size)
        except OSError:
            grown = mmap.mmap(-1, size)
            grown[: self._used] = self._m[: self._used]
            if self._f is not None:
                logger.error(
                    f"{self._fname}: cannot grow; what this replica counts further is not shared with the others"
                )
                self._f.close()
                self._f = None
        self._m, self._capacity = grown, size

    def _in_memory(self, filename: str) -> None:
        self._f, self._fname, self._capacity, self._used = None, filename, _BYTES, 8
        self._m, self._positions = mmap.mmap(-1, _BYTES), {}
        self._m[:4] = self._used.to_bytes(4, "little")


def reserve_metrics() -> None:
    """Have prometheus_client keep its values so; before the first metric is made."""
    values.MmapedDict = ReservedDict  # type: ignore[misc]


def _reserve(file: Path, size: int) -> None:
    """Raises OSError, and then leaves no file that others would read as an empty one."""
    made = not file.exists()
    try:
        with file.open("ab") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    except OSError:
        if made:
            file.unlink(missing_ok=True)
        raise
