"""Files and folders that are whole or not there: written beside their place under a temporary name, then renamed.

The temporary name holds machine and process: what a killed process left is removed by the next that writes the same place. A
folder is replaced by a writer of its own kind only, known by a file in it; the old one goes when the new one is there.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayrec.errors import DiskError, UserError, disk_trouble

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
_LEFT = re.compile(r"(\d+)-[0-9a-f]+\.(partial(?:-journal|-wal|-shm)?|old)")
_MOVED = re.compile(r"[A-Za-z0-9-]*\.\d+-[0-9a-f]+\.old")
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # of a folder that is renamed to a name that is not free


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
def whole_folder(
    path: Path, marker: str | None = None, *, overwrite: bool = True, error: type[UserError] = UserError
) -> Iterator[Path]:
    """An empty folder to fill; at the end it becomes ``path``, in place of what ``check_replaceable`` lets go. After an error
    nothing is left.

    marker, overwrite, error: as in ``check_replaceable``, which looks before and after. Raises DiskError when the disk is full,
    read-only or closed.
    """
    check_replaceable(path, marker, overwrite=overwrite, error=error)
    partial = temporary_beside(path)
    try:
        make_folder(partial)
        yield partial
        check_replaceable(path, marker, overwrite=overwrite, error=error)
        put_in_place(partial, path)
    except Exception as failure:
        raise_disk_error(failure, path)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(
    path: Path, marker: str | None = None, *, overwrite: bool = True, error: type[UserError] = UserError
) -> None:
    """Raises ``error`` unless a folder may be written at ``path``; to be asked before any work.

    It may where nothing is, and, with ``overwrite``, in place of an empty folder and of one that holds the file ``marker``, which
    this writer makes and no other; None = of an empty one only. What a killed process had moved away from there comes back first.
    """
    _put_back(path)
    if not overwrite and os.path.lexists(path):
        raise error(f"{path}: exists already; choose another name or allow overwriting")
    if path.name in ("", ".."):
        raise error(f"{path}: expected a folder with a name of its own")
    try:
        may_go = _may_go(path, marker)
    except NotADirectoryError:
        raise error(f"{path}: is no folder, so it is not overwritten; choose another name") from None
    if not may_go:
        kind = "" if marker is None else f" and no {marker}, so it is no earlier output of this kind"
        raise error(f"{path}: holds files{kind}; it is not overwritten, choose another name")


def put_in_place(partial: Path, folder: Path) -> None:
    """A finished folder takes its place; one that was there goes. A reader finds nothing for no longer than a rename takes.

    A process that is killed between two renames leaves the old one beside its place, under a name that ``check_replaceable``
    knows. Of processes that do this at once each succeeds, and the last one's folder stays.
    """
    moved: list[Path] = []
    try:
        while True:
            try:
                partial.rename(folder)  # onto nothing, or an empty folder
                break
            except OSError as error:
                if error.errno not in _IN_THE_WAY:
                    raise
            moved.append(temporary_beside(folder).with_suffix(".old"))
            with suppress(FileNotFoundError):  # another process has just moved it
                folder.rename(moved[-1])
    except BaseException:
        _put_back(folder)
        raise
    for old in moved:  # under a name that is never put back, before anything in it goes
        with suppress(OSError):  # another process took it for a leftover
            _remove(old.rename(old.with_suffix(".partial")))


def _may_go(folder: Path, marker: str | None) -> bool:
    """Whether a folder is absent, empty, or holds ``marker``, also while others replace it. Raises NotADirectoryError."""
    while True:
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.lexists(folder):
                return True
            if folder.is_dir():
                continue
            raise NotADirectoryError(folder) from None
        try:
            if marker is not None:
                with suppress(FileNotFoundError, NotADirectoryError):
                    return stat.S_ISREG(os.stat(marker, dir_fd=opened).st_mode)
            if not os.listdir(opened):
                return True
            with suppress(FileNotFoundError):  # one that was replaced is on its way out: the new one is looked at
                if os.path.samestat(os.fstat(opened), folder.stat()):
                    return False
        finally:
            os.close(opened)


def _put_back(folder: Path) -> None:
    """The newest that was moved away from ``folder`` returns where nothing has come in its place."""
    if os.path.lexists(folder):
        return
    prefix = f".{folder.name}."
    moved = [p for p in folder.parent.glob(f"{_escaped(prefix)}*.old") if _MOVED.fullmatch(p.name.removeprefix(prefix))]
    with suppress(OSError):  # another process was faster
        if moved:
            max(moved, key=lambda path: path.lstat().st_ctime_ns).rename(folder)


def _remove(path: Path) -> None:
    with suppress(OSError):  # of another user, in a folder that all share
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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


def check_file_place(path: Path) -> None:
    """Before work whose result becomes the file ``path``: makes its folder. Raises UserError where a folder has its name,
    DiskError."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected the name of a file to write")
    make_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """A new temporary name beside ``path``; leftovers of processes of this machine that are gone are removed first,
    SQLite's journals of them too."""
    for left in path.parent.glob(f".{_escaped(path.name)}.{_HOST}.*"):
        found = _LEFT.fullmatch(left.name.removeprefix(f".{path.name}.{_HOST}."))
        if found and not is_alive(int(found[1])) and (found[2] != "old" or os.path.lexists(path)):
            _remove(left)
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
