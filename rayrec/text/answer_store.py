"""Answers that were paid for, in one SQLite file: each is written in its own transaction the moment it is there.

A killed process loses no answer that it had received, and a row is there whole or not at all. Refused answers are kept too, so
that a second run does not pay for them again.
"""

import fcntl
import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class Answer:
    """input_tokens, output_tokens: as the endpoint counted them. counted: False where it did not, and they are estimates."""

    text: str
    input_tokens: int
    output_tokens: int
    counted: bool = True


class AnswerStore:
    """Keyed by what was asked and how often it had been asked before (``turn``).

    One process at a time: two would both pay. Raises ConfigError when another one holds the file, or it is no such store.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = file.with_name(f"{file.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(
                f"{file}: another process is asking with this cache; wait for it or name another"
            ) from None
        try:
            self._rows = sqlite3.connect(file, isolation_level=None)
            self._rows.execute("PRAGMA synchronous = FULL")
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT, turn INTEGER, text TEXT NOT NULL, input_tokens INTEGER NOT NULL,"
                " output_tokens INTEGER NOT NULL, counted INTEGER NOT NULL, PRIMARY KEY (key, turn))"
            )
        except sqlite3.DatabaseError as error:
            self._lock.close()
            raise ConfigError(f"{file}: not a cache of answers: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(sqlite3.Error):
            self._rows.close()
        self._lock.close()

    def get(self, key: str, turn: int) -> Answer | None:
        found = self._rows.execute(
            "SELECT text, input_tokens, output_tokens, counted FROM answers WHERE key = ? AND turn = ?", (key, turn)
        ).fetchone()
        return None if found is None else Answer(found[0], found[1], found[2], bool(found[3]))

    def put(self, key: str, turn: int, answer: Answer) -> None:
        """On disk when this returns."""
        row = (key, turn, answer.text, answer.input_tokens, answer.output_tokens, answer.counted)
        self._rows.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)


def answer_key(request: Mapping[str, Any]) -> str:
    """Of all that decides an answer: model, sampling and messages."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
