"""A JSON line for each answered request, in a folder; a request keeps the id that it came with, or gets one."""

import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

GIVEN_HEADER = "x-request-id"  # a client's own id, or the one that Ray's proxy made
REQUEST_ID_HEADER = "x-rayrec-request"  # in the reply
_FILE_BYTES, _FILES = 64 * 2**20, 8
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(given: str | None) -> str:
    """The client's own where it is 1 to 128 letters, digits and . _ : -, which no log can be broken by; else a new one."""
    return given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex


class RequestLog:
    """Of one replica: ``requests-PROCESS.jsonl`` in the folder, 64 MB and then the next, the last eight kept. None = no log.

    What cannot be written is counted by ``lost`` and costs no request its answer.
    """

    def __init__(self, folder: str | None, lost: Callable[[], None]) -> None:
        self._handler = None if folder is None else _Lines(Path(folder), lost)

    def write(self, line: Mapping[str, Any]) -> None:
        """One request; its time is set here."""
        if self._handler is not None:
            text = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line})
            self._handler.emit(logging.LogRecord("requests", logging.INFO, "", 0, text, None, None))


class _Lines(RotatingFileHandler):
    def __init__(self, folder: Path, lost: Callable[[], None]) -> None:
        self._lost = lost
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            folder / f"requests-{os.getpid()}.jsonl",
            maxBytes=_FILE_BYTES,
            backupCount=_FILES - 1,
            encoding="utf-8",
            delay=True,
        )

    def handleError(self, record: logging.LogRecord) -> None:
        self._lost()
