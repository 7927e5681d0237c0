"""What importers of real impressions share: users, histories and impressions as they come, each history stored once."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.content.drawing import gather
from rayrec.data.content.lists import Lists
from rayrec.data.content.log import ContentLog, ItemTexts


@dataclass
class Assembly:
    """max_history: newest items of a history that are kept."""

    max_history: int = 60
    users: dict[str, int] = field(default_factory=dict)
    _histories: dict[tuple[int, tuple[int, ...]], int] = field(default_factory=dict)
    _current: dict[int, int] = field(default_factory=dict)
    _rows: list[tuple[str, int, list[int], list[int]]] = field(default_factory=list)

    def history(self, user: str, newest_first: Sequence[int]) -> int:
        """Row of a user's history, who has it from now on."""
        owner = self.users.setdefault(user, len(self.users))
        key = (owner, tuple(newest_first[: self.max_history]))
        self._current[owner] = self._histories.setdefault(key, len(self._histories))
        return self._current[owner]

    def impression(self, split: str, history: int, candidates: Sequence[int], labels: Sequence[int]) -> None:
        self._rows.append((split, history, list(candidates), list(labels)))

    def log(self, items: ItemTexts, source: str, notes: Mapping[str, Any]) -> ContentLog:
        owners = np.asarray([owner for owner, _ in self._histories], dtype=np.int64)
        current = np.full(len(self.users), -1, dtype=np.int64)
        current[list(self._current)] = list(self._current.values())
        return ContentLog(
            items, pa.array(list(self.users), pa.string()), current, owners,
            Lists.of(list(row) for _, row in self._histories), gather(self._rows), {}, source, notes,
        )  # fmt: skip


def share_of(user: str) -> float:
    """Of a user's name, uniform in [0, 1): the same split each time, whoever else is there."""
    return int(hashlib.sha256(user.encode()).hexdigest()[:8], 16) / 16**8
