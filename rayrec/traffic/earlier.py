"""How a user, or the same question, was answered before: out of the log of decisions, newest first, as far back as allowed."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.log.schema import read_schema
from rayrec.traffic.decisions import POSITION, SCORE, TIME, USER, newest_pieces, number_of

_STAGES = ("late", "early", "retrieve")  # the last one that scored what was shown
_TEXTS = ["served_request", "served_asked", "served_user_name", "served_item", "served_arm", "served_models"]


@dataclass(frozen=True)
class EarlierAnswer:
    """One reply that was sent. time_ms: Unix time. asked: the same for the same question (``LoggedDecision``).

    models: versions by stage. items: in the order of the reply. scores: of the last stage that answered, one an item.
    """

    request: str
    time_ms: int
    user: str | None
    asked: str
    arm: str
    models: Mapping[str, str]
    items: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Earlier:
    """answers: newest first. rows: of the log that were looked at. whole: whether these are all there are, or as many as were
    wanted; else the search ended before the log did."""

    answers: tuple[EarlierAnswer, ...]
    rows: int
    whole: bool


@dataclass(frozen=True)
class EarlierBounds:
    """What a search may cost. rows: of each book, a row a candidate. seconds: in all, looked at between pieces of the log."""

    rows: int = 5_000_000
    seconds: float = 2.0


def earlier_answers(
    folder: Path, user: str | None, asked: str, most: int, bounds: EarlierBounds | None = None
) -> Earlier:
    """The newest ``most`` answers in all books of a traffic folder to this user; None = to the question ``asked``.

    Of a piece of the log only users and questions are read where neither fits. Raises SchemaError, JournalError, OSError.
    """
    bounds = EarlierBounds() if bounds is None else bounds
    until = time.monotonic() + bounds.seconds
    found: list[EarlierAnswer] = []
    rows, whole = 0, True
    for file in sorted(folder.glob("*/decisions/schema.json")):
        schema = read_schema(file)
        if not schema.features:  # a shadow ranker's: nothing of it was shown
            continue
        scores = [f"{SCORE}{stage}" for stage in _STAGES if f"{SCORE}{stage}" in schema.extras]
        table, looked, all_of_it = _shown(file.parent, scores, user, asked, most, bounds.rows, until)
        found += _answers(table, scores) if table is not None else []
        rows, whole = rows + looked, whole and all_of_it
    newest = sorted(found, key=lambda answer: answer.time_ms, reverse=True)
    return Earlier(tuple(newest[:most]), rows, whole)


def _shown(
    folder: Path, scores: list[str], user: str | None, asked: str, most: int, most_rows: int, until: float
) -> tuple[pa.Table | None, int, bool]:
    """What was shown in more than ``most`` answers, as far as there are so many: a decision may lie in two pieces, and of the
    oldest one found the older piece may be missing. The rows looked at, and whether the search came to its end."""
    key, wanted = ("served_asked", asked) if user is None else (USER, number_of(user))
    tables: list[pa.Table] = []
    requests: set[str] = set()
    rows = 0
    for piece in newest_pieces(folder):
        if len(requests) > most:
            break
        if rows >= most_rows or time.monotonic() >= until:
            return pa.concat_tables(tables) if tables else None, rows, False
        rows += piece.rows
        there = pc.fill_null(pc.equal(piece.read([key])[key], wanted), False)
        if not pc.any(there).as_py():
            continue
        table = piece.read([TIME, POSITION, *_TEXTS, *scores]).filter(there)
        table = table.filter(pc.greater_equal(table[POSITION], 0))
        if user is not None:  # numbers of two names could be the same
            table = table.filter(pc.fill_null(pc.equal(table["served_user_name"], user), False))
        tables.append(table)
        requests.update(table["served_request"].unique().to_pylist())
    return pa.concat_tables(tables) if tables else None, rows, True


def _answers(table: pa.Table, scores: list[str]) -> list[EarlierAnswer]:
    """Newest first, each in the order of its reply. table: of what was shown."""
    table = table.sort_by([(TIME, "descending"), ("served_request", "ascending"), (POSITION, "ascending")])
    requests = table["served_request"].to_pylist()
    starts = [i for i, request in enumerate(requests) if not i or request != requests[i - 1]]
    by_stage = [table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in scores]
    last: NDArray[np.float64] = reduce(lambda one, other: np.where(np.isnan(one), other, one), by_stage)
    items = table["served_item"].to_pylist()
    answers = []
    for start, end in zip(starts, [*starts[1:], len(requests)], strict=True):
        (first,) = table.slice(start, 1).to_pylist()
        answers.append(
            EarlierAnswer(
                first["served_request"],
                first[TIME],
                first["served_user_name"],
                first["served_asked"],
                first["served_arm"],
                json.loads(first["served_models"]),
                tuple(items[start:end]),
                tuple(last[start:end].tolist()),
            )
        )
    return answers
