"""Steam reviews and games as published with SASRec: one Python literal a line (``{u'username': u'...', ...}``), may be gzipped.

The lines are no JSON. They are read by ``ast.literal_eval``, which builds literals only and runs nothing.
"""

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrec.data.sequences.events import EventFilter, ItemDescriptions, sequences_of_events
from rayrec.data.sequences.interactions import InteractionsError, SequenceData
from rayrec.data.sequences.text_lines import numbered_lines


def read_steam(reviews: Path | str, games: Path | str, event_filter: EventFilter) -> SequenceData:
    """Every review (username, product_id, date) is an event. Text of a game: title, developer, genres, tags.

    Raises InteractionsError naming file and line.
    """
    users, items, times = [], [], []
    for number, review in _literal_lines(Path(reviews)):
        try:
            users.append(str(review["username"]))
            items.append(str(review["product_id"]))
            times.append(int(datetime.fromisoformat(str(review["date"])).replace(tzinfo=UTC).timestamp()))
        except (KeyError, ValueError) as error:
            raise InteractionsError(
                f"{reviews}, line {number}: expected username, product_id and date ({error})"
            ) from None
    texts, attributes, titles = {}, {}, {}
    for _, game in _literal_lines(Path(games)):
        if "id" not in game:
            continue
        kinds = [str(kind) for kind in (*game.get("genres", []), *game.get("tags", []))]
        titles[str(game["id"])] = str(game.get("app_name") or game.get("title") or "")
        parts = [("Title", titles[str(game["id"])]), ("Developer", game.get("developer"))]
        parts.append(("Tags", ", ".join(dict.fromkeys(kinds))))
        texts[str(game["id"])] = " ".join(f"{label}: {value}." for label, value in parts if value)
        attributes[str(game["id"])] = tuple(dict.fromkeys(kinds))
    descriptions = ItemDescriptions(texts, attributes, titles)
    return sequences_of_events(pa.array(users), pa.array(items), pa.array(times), event_filter, descriptions, "steam")


def _literal_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(file):
        try:
            value = ast.literal_eval(line)
        except (ValueError, SyntaxError) as error:
            raise InteractionsError(f"{file}, line {number}: {error}") from None
        if not isinstance(value, dict):
            raise InteractionsError(f"{file}, line {number}: expected one literal of a dict")
        yield number, value
