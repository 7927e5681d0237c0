"""What a user can put right: one base of errors, and the one place that ends a job with a line instead of a traceback.

Ctrl-C ends a job with exit code 130 and says how to go on; a full, read-only or closed disk is one line with its folder.
"""

import atexit
import errno
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED = 130  # what a shell expects after Ctrl-C: 128 + SIGINT

_DISK = {
    errno.ENOSPC: "no space is left on its disk",
    errno.EDQUOT: "the quota of its disk is used up",
    errno.EROFS: "its disk is mounted read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}
# Libraries that do not raise an OSError: safetensors, torch.save, SQLite through MLflow.
_DISK_TEXTS = {
    "No space left on device": errno.ENOSPC,
    "PytorchStreamWriter failed writing": errno.ENOSPC,
    "basic_ios::clear: iostream error": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
    "Permission denied": errno.EACCES,
}
_PATH = re.compile(r"'(/[^']+)'|\"(/[^\"]+)\"")


class UserError(ValueError):
    """Something given is wrong; the message is one line that names it and what was expected."""


class DivergedError(UserError):
    """Training ran away: a loss or gradient is no longer finite."""


class DiskError(UserError):
    """A file cannot be written: the disk is full, read-only or closed to this user."""


@contextmanager
def told(*, go_on: str = "run the same command again") -> Iterator[None]:
    """Around a job's whole work: what the user can mend ends the process with one line on stderr and exit code 1, Ctrl-C with
    130 and ``go_on``, how to go on. Anything else is a fault of the program and keeps its traceback."""
    atexit.register(gc.freeze)  # else Python looks through all modules for cycles before it ends: 1.5 s of CPU
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on: {go_on}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # of a pager or head that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        sys.exit(printable(f"error: {error}"))
    except Exception as error:
        line = disk_trouble(error)
        if line is None:
            raise
        sys.exit(printable(f"error: {line}"))


def printable(text: str) -> str:
    """``text`` with what a terminal might obey (escape sequences of a file's name or header, marks of direction) spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def disk_trouble(error: BaseException, folder: Path | None = None) -> str | None:
    """One line that says where and why a disk refused, when that lies behind ``error`` or its causes; else None.

    folder: what was being written, for errors that do not say.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number not in _DISK:
            number = next((n for text, n in _DISK_TEXTS.items() if text in str(seen)), None)
        if number is not None:
            named = seen.filename if isinstance(seen, OSError) else None
            if named is None and folder is None and (match := _PATH.search(str(seen))):
                named = match[1] or match[2]
            place = named if folder is None or (named is not None and ".partial" not in str(named)) else folder
            return f"{place}: {_DISK[number]}" if place is not None else f"{_DISK[number]} ({_one_line(seen)})"
        seen = seen.__cause__ or seen.__context__
    return None


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
