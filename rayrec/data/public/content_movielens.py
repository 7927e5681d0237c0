"""movielens_tastes: MovieLens-1M likes of 1,000 users, with tastes that an LLM wrote of each and a sentence about each film.

Likes have no order in time. Training: a user's likes are cut into ``folds``; the likes of a fold are impressions to the history
of the other folds. Validation and test: their own likes, to the history of all training likes.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayrec.data.content import ContentLog, ItemTexts, Lists, TextField, UserTexts
from rayrec.data.content.drawing import CandidateDraw, Drawer, gather
from rayrec.data.content.raw import read_columns

FIELDS = (
    TextField("title", "Film Title", 24),
    TextField("summary", "Film Summary", 48),
    TextField("genres", "Film Genres", 16),
)


@dataclass(frozen=True)
class MovielensTastes:
    """How likes without order become impressions."""

    folds: int = 5
    """Parts of the training likes, each predicted from the others."""
    users: int | None = None
    """Only the first so many; None = all."""
    draw: CandidateDraw = field(default_factory=CandidateDraw)
    """How candidates are drawn."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, not {self.folds}")

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError that names the file, column or item that is wrong."""
        films = read_columns(source / "items.parquet", ("item", "title", "genres", "summary"))
        users = read_columns(source / "users.parquet", ("user", "train", "valid", "test", "tastes")).slice(
            0, self.users
        )
        number = {item: row + 1 for row, item in enumerate(films["item"].to_pylist())}
        genres = films["genres"].to_pylist()
        items = ItemTexts.of(
            [str(item) for item in number], FIELDS,
            {"title": films["title"].to_pylist(), "summary": films["summary"].to_pylist(),
             "genres": [", ".join(names) for names in genres]},
        )  # fmt: skip
        random = np.random.default_rng((self.draw.seed, 1))  # the file's order means nothing, but is not random either
        likes = {
            split: [[number[i] for i in random.permutation(row).tolist()] for row in users[split].to_pylist()]
            for split in ("train", "valid", "test")
        }
        counts = np.bincount(Lists.of(likes["train"]).values, minlength=len(items) + 1)
        drawer = Drawer(self.draw, counts, _of_one_genre(genres))
        owners: list[int] = []
        histories: list[list[int]] = []
        rows = []
        for user, train in enumerate(likes["train"]):
            known = set(train) | set(likes["valid"][user]) | set(likes["test"][user])
            for fold in range(min(self.folds, len(train)) if len(train) > 1 else 0):
                left = train[fold :: self.folds]
                rows += drawer.impressions("train", len(histories), left, known)
                owners.append(user)
                histories.append([item for place, item in enumerate(train) if place % self.folds != fold])
            for split in ("valid", "test"):
                rows += drawer.impressions(split, len(histories), likes[split][user], known)
            owners.append(user)
            histories.append(train)
        current = np.zeros(len(users), dtype=np.int64)
        current[owners] = np.arange(len(owners))  # the last one, of all training likes
        tastes = pa.array([" ".join(lines) for lines in users["tastes"].to_pylist()], pa.string())
        return ContentLog(
            items, pa.array([str(user) for user in users["user"].to_pylist()]), current, np.asarray(owners, dtype=np.int64),
            Lists.of(histories), gather(rows),
            {"tastes": UserTexts("an LLM, as the data set carries it", tastes,
                                 "written from all training likes, those of training impressions among them")},
            "movielens_tastes",
            {"folds": self.folds, "negatives": self.draw.negatives, "seed": self.draw.seed, "order": "none"},
        )  # fmt: skip


def _of_one_genre(genres: list[list[str]]) -> list[np.ndarray]:
    """By item number the films that have its first genre too."""
    films: dict[str, list[int]] = {}
    for row, names in enumerate(genres):
        for name in names:
            films.setdefault(name, []).append(row + 1)
    arrays = {name: np.asarray(rows, dtype=np.int32) for name, rows in films.items()}
    nothing = np.zeros(0, dtype=np.int32)
    return [nothing, *(arrays[names[0]] if names else nothing for names in genres)]
