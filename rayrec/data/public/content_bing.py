"""bing_news_dkn: raw_train.txt and raw_test.txt of the released sample of Bing News clicks, tab separated, without quoting.

A line: user, title words, click, entities. A title is an item; a user's training clicks are the history, newest first, as far as
the file's order goes. Impressions: ten lines of a user, drawn, since the files list what was not clicked first and ten of them in
that order hold one label only; to the history of that user's other clicks. There is no validation file: every tenth training
impression is it. With folds of users nothing of a tested user is trained on, and the lines of both files are pooled.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayrec.data.content import ContentError, ContentLog, ItemTexts, Lists, TextField
from rayrec.data.content.assembling import share_of
from rayrec.data.content.drawing import gather

FIELDS = (TextField("title", "News Title", 32),)


@dataclass(frozen=True)
class BingNews:
    """How the sample becomes impressions."""

    size: int = 10
    """Lines of an impression, but for those of the released test part, one a user."""
    folds: int | None = None
    """So many folds of users: one to test, the next to validate. None = the released test part (59 impressions have both labels)
    and its users in training."""
    fold: int = 0
    """Which of them is tested, from 0."""
    seed: int = 0
    """Of the draw of a user's lines."""

    def __post_init__(self) -> None:
        if self.size < 2 or self.seed < 0:
            raise ValueError("size must be at least 2, seed at least 0")
        if self.folds is not None and (self.folds < 3 or not 0 <= self.fold < self.folds):
            raise ValueError(f"folds must be at least 3 and fold one of them, not {self.folds} and {self.fold}")

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError that names file and line."""
        titles: dict[str, int] = {}
        shown: dict[str, dict[str, dict[int, int]]] = {"raw_train.txt": {}, "raw_test.txt": {}}
        repeats = 0
        for name, by_user in shown.items():
            file = source / name
            if not file.is_file():
                raise ContentError(f"{file}: no such file")
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                parts = line.split("\t")
                if len(parts) != 4 or parts[2] not in ("0", "1"):
                    raise ContentError(
                        f"{file}, line {number}: expected user, title, click 0 or 1, entities; found {line[:60]!r}"
                    )
                seen = by_user.setdefault(parts[0], {})
                item = titles.setdefault(parts[1], len(titles) + 1)
                repeats += item in seen
                seen[item] = max(seen.get(item, 0), int(parts[2]))  # of conflicting labels the click counts
        users = list(dict.fromkeys([*shown["raw_train.txt"], *shown["raw_test.txt"]]))
        if self.folds is not None:
            for user, lines in shown["raw_test.txt"].items():
                pooled = shown["raw_train.txt"].setdefault(user, {})
                repeats += len(pooled.keys() & lines)
                pooled |= {item: max(label, pooled.get(item, 0)) for item, label in lines.items()}
            shown["raw_test.txt"] = {}
        rows: list[tuple[str, int, list[int], list[int]]] = []
        owners: list[int] = []
        histories: list[list[int]] = []
        for owner, user in enumerate(users):
            seen = shown["raw_train.txt"].get(user, {})
            clicks = [item for item, label in seen.items() if label][::-1]
            drawn = np.random.default_rng((self.seed, owner)).permutation(list(seen)).tolist()
            for start in range(0, len(drawn), self.size):
                part = drawn[start : start + self.size]
                rows.append((self._split(user, len(rows)), len(histories), part, [seen[item] for item in part]))
                histories.append([item for item in clicks if item not in part])
                owners.append(owner)
            tested = shown["raw_test.txt"].get(user, {})
            if tested:
                rows.append(("test", len(histories), list(tested), list(tested.values())))
            histories.append(clicks)
            owners.append(owner)
        current = np.zeros(len(users), dtype=np.int64)
        current[owners] = np.arange(len(owners))
        return ContentLog(
            ItemTexts.of([f"n{i}" for i in titles.values()], FIELDS, {"title": list(titles)}), pa.array(users, pa.string()),
            current, np.asarray(owners, dtype=np.int64), Lists.of(histories), gather(rows), {}, "bing_news_dkn",
            {"repeated_lines": repeats, "folds": self.folds, "fold": self.fold, "seed": self.seed},
        )  # fmt: skip

    def _split(self, user: str, impression: int) -> str:
        if self.folds is None:
            return "valid" if impression % 10 == 9 else "train"
        ahead = (int(share_of(user) * self.folds) - self.fold) % self.folds
        return {0: "test", 1: "valid"}.get(ahead, "train")
