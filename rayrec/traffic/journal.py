"""An append-only file of records, each on disk when ``append`` returns; what a crash left unfinished is cut off at opening, and
a record that is damaged in front of whole ones, which no crash leaves, is refused: nothing that was accepted is lost.

A record is its length and CRC-32 (4 bytes each, little-endian), then its bytes. A damaged length, or damage to the last record,
cannot be told from what a crash leaves: what is cut off at opening is kept beside the journal, in ``cut-<journal>-<time>``.
"""

import errno
import fcntl
import logging
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from rayrec.errors import DiskError, UserError
from rayrec.files import raise_disk_error, whole_file

logger = logging.getLogger(__name__)
MAX_RECORD_BYTES = 64 << 20
_HEAD = struct.Struct("<II")


class JournalError(UserError):
    """A journal that another process writes or that is damaged, or a record that is empty or too long for one."""


class Journal:
    """One writer; opening takes the file's lock. Not for several threads at once. ``records``: how many it holds."""

    def __init__(self, path: Path) -> None:
        """Raises DiskError, or JournalError while another process has it open and for a damaged one, which stays as it is."""
        self.path = path
        new = not path.exists()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise_disk_error(error, path)
            raise
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.records, self._bytes = _whole_part(path)
            self._keep_tail()
            self._cut()
            if new:
                sync_folder(path.parent)
        except BlockingIOError:
            os.close(self._file)
            raise JournalError(f"{path}: another process writes this journal") from None
        except UserError:
            os.close(self._file)
            raise
        except OSError as error:
            os.close(self._file)
            raise_disk_error(error, path)
            raise

    def append(self, records: Sequence[bytes]) -> None:
        """Write all of them with one fsync. Raises DiskError, and then none of them is there, now or after a restart."""
        if any(not 0 < len(record) <= MAX_RECORD_BYTES for record in records):
            raise JournalError(f"{self.path}: a record has 1 to {MAX_RECORD_BYTES:,} bytes")
        text = b"".join(_HEAD.pack(len(record), zlib.crc32(record)) + record for record in records)
        if not self.there:
            raise DiskError(f"{self.path}: was taken away while it was open")
        try:
            self._cut()  # what an append that failed may have left
            view = memoryview(text)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):  # tried again before the next append
                self._cut()
            raise_disk_error(error, self.path)
            raise DiskError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._bytes += len(text)
        self.records += len(records)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def there(self) -> bool:
        """Whether the file has its name still: what is written to one that has none any more is lost."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError:
            return False

    def _keep_tail(self) -> None:
        """Copies what stands behind the whole records, unless it is zeros or the disk is full, and says so in the log.

        A full disk is what commonly leaves a tail, of a record that was never accepted, and must not keep a service from
        starting. Raises DiskError for other faults of the disk.
        """
        with self.path.open("rb") as file:
            file.seek(self._bytes)
            if not any(piece.strip(b"\0") for piece in iter(lambda: file.read(1 << 20), b"")):
                return
            kept = self.path.with_name(f"cut-{self.path.name}-{time.time_ns()}")
            file.seek(self._bytes)
            try:
                with whole_file(kept) as partial, partial.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
                    copy.flush()
                    os.fsync(copy.fileno())
            except DiskError as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in (
                    errno.ENOSPC,
                    errno.EDQUOT,
                ):
                    raise
                logger.warning("%s: what is cut off behind byte %d finds no room to be kept", self.path, self._bytes)
                return
        sync_folder(self.path.parent)
        logger.warning(
            "%s: no whole record begins at byte %d, after a crash or damage; the bytes from there on are kept in %s",
            self.path, self._bytes, kept.name,
        )  # fmt: skip

    def _cut(self) -> None:
        if os.fstat(self._file).st_size > self._bytes:
            os.ftruncate(self._file, self._bytes)
            os.fsync(self._file)


def read_journal(path: Path) -> Iterator[bytes]:
    """Records in order up to the first one that is not whole; also while another process appends. Raises JournalError when a
    whole one stands behind that."""
    with path.open("rb") as file:
        while (found := _next(file)) is not None:
            record, whole = found
            if not whole:
                break
            yield record
        else:
            return
        start = file.tell() - _HEAD.size - len(record)
        while (found := _next(file)) is not None:
            if found[1]:
                raise JournalError(
                    f"{path}: the record at byte {start:,} is damaged, and whole ones stand behind it; move the file away, "
                    "or put a copy of it back"
                )


def _next(file: BinaryIO) -> tuple[bytes, bool] | None:
    """The bytes of the record that begins here, and whether they are what was written; None for what is none: the end, or the
    zeros of blocks that a power cut left unwritten."""
    head = file.read(_HEAD.size)
    length, check = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
    if not 0 < length <= MAX_RECORD_BYTES:
        return None
    record = file.read(length)
    return None if len(record) < length else (record, zlib.crc32(record) == check)


def sync_folder(folder: Path) -> None:
    """Make names that were made, renamed or removed in a folder outlast a power cut."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _whole_part(path: Path) -> tuple[int, int]:
    """Whole records, and the bytes that they take."""
    records = size = 0
    for record in read_journal(path):
        records, size = records + 1, size + _HEAD.size + len(record)
    return records, size
