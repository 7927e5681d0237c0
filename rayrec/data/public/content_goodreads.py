"""goodreads_once: Goodreads likes (at most nine a user, no time order) with descriptions and interests that an LLM wrote.

Each user with two likes or more gives one impression: a third of the likes against books that are not liked, drawn by popularity,
to the history of the others. Users are split by their number: 80 % train, 10 % valid, 10 % test.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayrec.data.content import ContentError, ContentLog, ItemTexts, Lists, TextField, UserTexts
from rayrec.data.content.drawing import CandidateDraw, Drawer, gather
from rayrec.data.content.raw import read_columns

FIELDS = (TextField("title", "Book Name", 24), TextField("description", "Book Description", 85))


@dataclass(frozen=True)
class GoodreadsOnce:
    """How likes without order become impressions."""

    users: int | None = None
    """Only the first so many; None = all."""
    draw: CandidateDraw = field(default_factory=lambda: CandidateDraw(negatives=2, by_kind=0.0))
    """How candidates are drawn; two negatives a like, as in SPAR."""

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError that names the file, column or book that is wrong."""
        books = read_columns(source / "items.parquet", ("item", "title", "description"))
        users = read_columns(source / "users.parquet", ("user", "liked", "interests")).slice(0, self.users)
        number = {item: row + 1 for row, item in enumerate(books["item"].to_pylist())}
        items = ItemTexts.of(list(number), FIELDS, {name: books[name].to_pylist() for name in ("title", "description")})
        random = np.random.default_rng((self.draw.seed, 1))
        likes: list[list[int]] = []
        for user, row in zip(users["user"].to_pylist(), users["liked"].to_pylist(), strict=True):
            unknown = next((book for book in row if book not in number), None)
            if unknown is not None:
                raise ContentError(
                    f"{source / 'users.parquet'}: user {user} likes {unknown!r}, which items.parquet lacks"
                )
            likes.append([number[book] for book in random.permutation(row).tolist()])
        splits = random.choice(["train", "valid", "test"], len(likes), p=[0.8, 0.1, 0.1])
        trained = Lists.of(row for row, split in zip(likes, splits, strict=True) if split == "train")
        drawer = Drawer(self.draw, np.bincount(trained.values, minlength=len(items) + 1), None)
        rows = []
        histories = []
        for user, row in enumerate(likes):
            held = max(1, len(row) // 3) if len(row) > 1 else 0
            histories.append(row[held:])
            rows += drawer.impressions(str(splits[user]), user, row[:held], set(row))
        interests = pa.array([", ".join(words) for words in users["interests"].to_pylist()], pa.string())
        place = np.arange(len(likes), dtype=np.int64)
        return ContentLog(
            items, pa.array([str(user) for user in users["user"].to_pylist()]), place, place, Lists.of(histories), gather(rows),
            {"interests": UserTexts("an LLM, as the data set carries it", interests,
                                    "written from all likes, those of the impressions among them: of every split")},
            "goodreads_once", {"seed": self.draw.seed, "order": "none"},
        )  # fmt: skip
