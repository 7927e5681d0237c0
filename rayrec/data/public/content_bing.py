"""bing_news_dkn: raw_train.txt and raw_test.txt of the released sample of Bing News clicks, tab separated, without quoting.

A line: user, title words, click, entities. A title is an item; a user's training clicks are the history, newest first, as far as
the file's order goes. Training impressions: ten lines of a user, to the history of that user's other clicks. There is no
validation file: a tenth of the users' training impressions is it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayrec.data.content import ContentError, ContentLog, ItemTexts, Lists, TextField
from rayrec.data.content.drawing import gather

FIELDS = (TextField("title", "News Title", 32),)


@dataclass(frozen=True)
class BingNews:
    """How the sample becomes impressions."""

    size: int = 10
    """Lines of a training impression."""

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
        rows, owners = [], []
        histories: list[list[int]] = []
        for owner, user in enumerate(users):
            seen = shown["raw_train.txt"].get(user, {})
            clicks = [item for item, label in seen.items() if label][::-1]
            lines = list(seen.items())
            for start in range(0, len(lines), self.size):
                part = lines[start : start + self.size]
                split = "valid" if (start // self.size) % 10 == 9 else "train"
                rows.append((split, len(histories), [i for i, _ in part], [label for _, label in part]))
                histories.append([item for item in clicks if item not in dict(part)])
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
            {"repeated_lines": repeats},
        )  # fmt: skip
