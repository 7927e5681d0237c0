"""What changes about items while a service runs: added ones, and ones taken out or brought back. One file, one owner.

A change is a line of JSON, appended and synced before it is acknowledged, so that a killed owner loses nothing that it promised;
a line that was torn is cut away by the next. Knows nothing of Ray.
"""

import json
import logging
import os
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from rayrec.files import make_folder, raise_disk_error, whole_file

logger = logging.getLogger("ray.serve")
FILE = "items.jsonl"
MAX_OUT = 1_000_000  # items taken out at a time
_KEPT_CHANGES = 10_000  # a follower that is further behind is told everything


class ItemRefused(ValueError):
    """A change that cannot be taken."""


class KeeperAway(Exception):
    """The owner cannot be reached now, or cannot write."""


@dataclass(frozen=True)
class AddedItem:
    """An item that training never saw, for the retriever whose weights have this ``digest``."""

    digest: str
    item: str
    text: str
    embedding: tuple[float, ...]


@dataclass(frozen=True)
class Availability:
    """An item that is taken out, or brought back."""

    item: str
    available: bool


Change = AddedItem | Availability


@dataclass(frozen=True)
class Update:
    """What a follower has to take in to stand at ``version`` of ``epoch``. whole: in place of all that it had."""

    epoch: str
    version: int
    whole: bool
    changes: tuple[Change, ...]


class ItemJournal:
    """The owner of one file; not thread-safe. epoch: of this owner; versions count its changes."""

    def __init__(self, folder: Path) -> None:
        """Raises DiskError."""
        self.epoch, self.version = uuid.uuid4().hex, 0
        self._file = make_folder(folder) / FILE
        self._added: dict[tuple[str, str], AddedItem] = {}
        self._out: dict[str, None] = {}  # in order
        self._recent: deque[Change] = deque(maxlen=_KEPT_CHANGES)
        lines = 0
        for change in _read(self._file):
            self._take(change)
            lines += 1
        if lines > 2 * (len(self._added) + len(self._out)) + _KEPT_CHANGES:
            self._write_anew()

    def add(self, item: AddedItem, most: int) -> int:
        """The version that has it. most: items that a retriever takes. Raises ItemRefused, DiskError."""
        if (item.digest, item.item) in self._added:
            raise ItemRefused(f"{item.item!r} is known already")
        if sum(digest == item.digest for digest, _ in self._added) >= most:
            raise ItemRefused(f"{most:,} items were added already; train a new version with them")
        return self._append(item)

    def set_available(self, change: Availability) -> int:
        """The version that has it. Raises ItemRefused, DiskError."""
        if change.available == (change.item not in self._out):
            return self.version
        if not change.available and len(self._out) >= MAX_OUT:
            raise ItemRefused(f"{MAX_OUT:,} items are out already; train a new version without them")
        return self._append(change)

    def since(self, epoch: str, version: int) -> Update:
        """For a follower that stands at ``version`` of ``epoch``."""
        behind = self.version - version
        if epoch == self.epoch and 0 <= behind <= len(self._recent):
            recent = list(self._recent)
            return Update(self.epoch, self.version, False, tuple(recent[len(recent) - behind :]))
        return Update(self.epoch, self.version, True, tuple(self._state()))

    def _state(self) -> Iterable[Change]:
        yield from self._added.values()
        for item in self._out:
            yield Availability(item, False)

    def _append(self, change: Change) -> int:
        try:
            with self._file.open("ab") as file:
                _write_whole(file, _line(change))
        except OSError as error:
            raise_disk_error(error, self._file)
            raise
        self._take(change)
        return self.version

    def _take(self, change: Change) -> None:
        if isinstance(change, AddedItem):
            self._added.setdefault((change.digest, change.item), change)
        elif change.available:
            self._out.pop(change.item, None)
        else:
            self._out[change.item] = None
        self._recent.append(change)
        self.version += 1

    def _write_anew(self) -> None:
        with whole_file(self._file) as partial, partial.open("wb") as file:
            file.writelines(map(_line, self._state()))
            file.flush()
            os.fsync(file.fileno())


def _line(change: Change) -> bytes:
    return json.dumps(asdict(change)).encode() + b"\n"


def _write_whole(file: BinaryIO, line: bytes) -> None:
    """All of it and on the disk, or nothing of it. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    try:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), end)
        raise


def _read(path: Path) -> Iterable[Change]:
    """What a file holds; a torn last line is cut away, one that is no change is told and passed over."""
    if not path.is_file():
        return
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                entry = json.loads(line)
                if "available" in entry:
                    yield Availability(str(entry["item"]), bool(entry["available"]))
                else:
                    embedding = tuple(map(float, entry["embedding"]))
                    yield AddedItem(str(entry["digest"]), str(entry["item"]), str(entry["text"]), embedding)
            except (KeyError, TypeError, ValueError) as error:
                logger.error(f"{path}: line {number} is no change of an item and is passed over: {error!r}")
    if whole < path.stat().st_size:
        logger.error(f"{path}: the last line was not finished and is cut away")
        os.truncate(path, whole)
