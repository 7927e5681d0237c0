"""MovieLens-1M likes of 1,000 users with tastes that a language model wrote of each user's training likes.

``items.parquet`` item, title, genres, summary; ``users.parquet`` user, train, valid, test (item lists, no time order), tastes.
A history is the training likes, then those for validation, then those for test, each shuffled by a fixed seed: the files' order
means nothing, but is not random either (the last of the test likes are 265 different films of 1,000 users, likes drawn at random
681), and leave-one-out would judge on those alone. The tastes know the training likes and nothing of the others: they are
preferences made at position len(train), and may serve the targets from there on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.preferences.table import PreferenceRow
from rayrec.data.sequences.events import ItemDescriptions, describe
from rayrec.data.sequences.interactions import Interactions, InteractionsError, SequenceData

_SEED = 0


def read_movielens_tastes(folder: Path | str) -> SequenceData:
    """Text of a film: title, genres and summary. Raises InteractionsError that names the file and what is wrong."""
    films = _rows(Path(folder) / "items.parquet", ("item", "title", "genres", "summary"))
    numbers = {film["item"]: number for number, film in enumerate(films, 1)}
    if len(numbers) != len(films):
        raise InteractionsError(f"{Path(folder) / 'items.parquet'}: an item occurs twice")
    names = [str(film["item"]) for film in films]
    texts = {name: _text(film) for name, film in zip(names, films, strict=True)}
    labels = {name: tuple(f"genre: {g}" for g in film["genres"]) for name, film in zip(names, films, strict=True)}
    titles = {name: film["title"] for name, film in zip(names, films, strict=True)}
    users: list[str] = []
    lengths: list[int] = []
    flat: list[int] = []
    file = Path(folder) / "users.parquet"
    for user in _rows(file, ("user", "train", "valid", "test")):
        generator = np.random.default_rng((_SEED, len(users)))
        liked = [int(item) for part in ("train", "valid", "test") for item in generator.permutation(user[part])]
        unknown = next((item for item in liked if item not in numbers), None)
        if unknown is not None:
            raise InteractionsError(f"{file}: user {user['user']} likes item {unknown}, which items.parquet lacks")
        users.append(str(user["user"]))
        flat.extend(numbers[item] for item in liked)
        lengths.append(len(liked))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    interactions = Interactions(offsets, np.array(flat, np.int32), len(films))
    items = describe(pa.array(names), ItemDescriptions(texts, labels, titles))
    notes: dict[str, str | int | float] = {
        "order": "training, validation, test likes, each shuffled; no time order within"
    }
    return SequenceData(interactions, items, pa.array(users), "movielens_tastes", notes)


def read_tastes(folder: Path | str) -> Iterator[PreferenceRow]:
    """One row a user, as the model wrote them, at position len(train)."""
    for user in _rows(Path(folder) / "users.parquet", ("user", "train", "tastes")):
        yield PreferenceRow(str(user["user"]), len(user["train"]), tuple(user["tastes"]))


def _text(film: dict[str, Any]) -> str:
    parts = (("Title", film["title"]), ("Genres", ", ".join(film["genres"])), ("Summary", film["summary"]))
    return " ".join(f"{label}: {value.strip().rstrip('.')}." for label, value in parts if value)


def _rows(file: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    if not file.is_file():
        raise InteractionsError(f"{file}: no such file")
    try:
        rows: list[dict[str, Any]] = pq.read_table(file, columns=list(columns)).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InteractionsError(f"{file}: {error}") from None
    if rows and (missing := [name for name in columns if name not in rows[0]]):
        raise InteractionsError(f"{file}: column {missing[0]!r} is missing")
    return rows
