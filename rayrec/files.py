"""Files and folders that are whole or not there: written beside their place under a temporary name, then renamed.

The temporary name holds machine and process: what a killed process left is removed by the next that writes the same place.
"""

import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayrec.errors import DiskError, UserError, disk_trouble

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
_LEFT = re.compile(r"(\d+)-[0-9a-f]+\.partial(?:-journal|-wal|-shm)?")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write; at the end it becomes ``path``, replacing it. After an error nothing is left.

    Raises DiskError when the disk is full, read-only or closed.
    """
    partial = temporary_beside(path)
    try:
        yield partial
        os.replace(partial, path)
    except Exception as error:
        raise_disk_error(error, path)
        raise
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; at the end it becomes ``path``, replacing it. After an error nothing is left.

    Raises DiskError when the disk is full, read-only or closed.
    """
    partial = temporary_beside(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        put_in_place(partial, path)
    except Exception as error:
        raise_disk_error(error, path)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, folder: Path) -> None:
    """A finished folder takes its place; one that was there goes. A reader finds nothing for no longer than a rename takes."""
    if folder.exists():
        old = temporary_beside(folder)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(folder)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> Path:
    """The folder, with its parents. Raises DiskError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise_disk_error(error, path)
        raise DiskError(f"{path}: no folder can be made there: {error.strerror}") from None
    return path


def temporary_beside(path: Path) -> Path:
    """A new temporary name beside ``path``; leftovers of processes of this machine that are gone are removed first,
    SQLite's journals of them too."""
    for left in path.parent.glob(f".{_escaped(path.name)}.{_HOST}.*.partial*"):
        found = _LEFT.fullmatch(left.name.removeprefix(f".{path.name}.{_HOST}."))
        if found and not is_alive(int(found[1])):
            with suppress(OSError):  # of another user, in a folder that all share
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    # Threads write the same place; in a container a killed process's successor has its number; others share a temporary folder.
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}-{secrets.token_hex(8)}.partial")


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """An empty folder in the system's temporary one; it goes at the end, and what killed processes left of that name before."""
    folder = temporary_beside(Path(tempfile.gettempdir()) / name)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it when its process ends, however that ends.

    busy: None = wait for it; else raise UserError at once while another holds it, with this text and that process.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{busy} ({file.read().strip() or 'another process'} holds {path})") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def raise_disk_error(error: BaseException, path: Path) -> None:
    """Raise DiskError when a full, read-only or closed disk lies behind an error in writing ``path``."""
    line = None if isinstance(error, DiskError) else disk_trouble(error, path.parent)
    if line is not None:
        raise DiskError(line) from error
