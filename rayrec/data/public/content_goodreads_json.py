"""Goodreads' public JSON lines (Wan & McAuley 2018; plain or .gz): books, and interactions with ratings, of one genre or of all.

books: book_id, title, description. interactions: user_id, book_id, rating, date_added. As in SPAR a rating above 3 is a positive,
one below 3 a negative; 3 and unrated are left out. A user's ratings in time: the positives of the first half are the history of
the third quarter, which is the training impression; those of three quarters that of the last, for validation or test.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rayrec.data.content import ContentError, ContentLog, ItemTexts, TextField
from rayrec.data.content.assembling import Assembly, share_of

FIELDS = (TextField("name", "Book Name", 24), TextField("description", "Book Description", 85))
_DATE = "%a %b %d %H:%M:%S %z %Y"


@dataclass(frozen=True)
class GoodreadsJson:
    """How books and ratings become impressions."""

    books: str = "goodreads_books.json.gz"
    """File of the books in ``source``."""
    interactions: str = "goodreads_interactions_dedup.json.gz"
    """File of the ratings in ``source``."""
    valid_share: float = 0.1
    """Of the users, for validation; the others are the test's."""
    max_history: int = 60
    """Newest books kept."""

    def __post_init__(self) -> None:
        if not 0 < self.valid_share < 1 or self.max_history < 1:
            raise ValueError("valid_share must lie in (0, 1), max_history be at least 1")

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError that names file, line and field."""
        numbers: dict[str, int] = {}
        texts: dict[str, list[str]] = {"name": [], "description": []}
        for _, book in _lines(source / self.books, ("book_id", "title", "description")):
            if str(book["book_id"]) not in numbers:
                numbers[str(book["book_id"])] = len(numbers) + 1
                texts["name"].append(str(book["title"] or ""))
                texts["description"].append(str(book["description"] or ""))
        rated: dict[str, list[tuple[float, int, int]]] = {}
        missing = 0
        for line, one in _lines(source / self.interactions, ("user_id", "book_id", "rating", "date_added")):
            if one["rating"] in (0, 3):
                continue
            number = numbers.get(str(one["book_id"]))
            missing += number is None
            if number is not None:
                moment = _moment(source / self.interactions, line, one["date_added"])
                rated.setdefault(str(one["user_id"]), []).append((moment, number, int(one["rating"] > 3)))
        seen, one_sided = Assembly(self.max_history), 0
        for user, events in rated.items():
            events.sort(key=lambda event: event[0])
            split = "valid" if share_of(user) < self.valid_share else "test"
            for first, last, name in (
                (len(events) // 2, 3 * len(events) // 4, "train"),
                (3 * len(events) // 4, len(events), split),
            ):
                labels = [label for _, _, label in events[first:last]]
                history = seen.history(user, [item for _, item, label in events[:first] if label][::-1])
                if 0 < sum(labels) < len(labels):
                    seen.impression(name, history, [item for _, item, _ in events[first:last]], labels)
                else:
                    one_sided += 1
        notes = {"ratings_of_missing_books": missing, "impressions_of_one_label": one_sided}
        return seen.log(ItemTexts.of(list(numbers), FIELDS, texts), "Goodreads", notes)


def _lines(file: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered objects."""
    if not file.is_file():
        raise ContentError(f"{file}: no such file")
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
        try:
            for number, line in enumerate(stream, 1):
                found = json.loads(line)
                lacks = next((name for name in fields if not isinstance(found, dict) or name not in found), None)
                if lacks is not None:
                    raise ContentError(f"{file}, line {number}: no {lacks!r}")
                yield number, found
        except (ValueError, OSError, EOFError) as error:
            if isinstance(error, ContentError):
                raise
            raise ContentError(f"{file}: {error}") from None


def _moment(file: Path, line: int, text: object) -> float:
    try:
        return datetime.strptime(str(text), _DATE).timestamp()
    except ValueError:
        raise ContentError(
            f"{file}, line {line}: date_added {text!r}; expected as Sun Jul 30 07:44:10 -0700 2017"
        ) from None
