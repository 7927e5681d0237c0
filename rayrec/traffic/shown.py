"""What was shown lately, to tell feedback on it from feedback on what never was: rebuilt from the log of decisions at a start."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow.compute as pc

from rayrec.traffic.decisions import POSITION, TIME, decision_tables


@dataclass
class ShownItems:
    """Items by request, for ``keep_ms`` after they were shown and of at most ``max_requests``, the newest: memory is bounded."""

    keep_ms: int
    max_requests: int = 1_000_000
    _shown: dict[str, tuple[int, frozenset[str], str]] = field(default_factory=dict)

    @staticmethod
    def read(decisions: Path, keep_ms: int, now_ms: int, max_requests: int = 1_000_000) -> "ShownItems":
        """From a log of decisions."""
        shown = ShownItems(keep_ms, max_requests)
        columns = (TIME, POSITION, "served_request", "served_item", "served_models")
        for table in decision_tables(decisions, columns, since_ms=now_ms - keep_ms):
            table = table.filter(
                pc.and_(pc.greater_equal(table[POSITION], 0), pc.greater_equal(table[TIME], now_ms - keep_ms))
            )
            names = ("served_request", TIME, "served_item", "served_models")
            for request, time_ms, item, models in zip(*(table.column(n).to_pylist() for n in names), strict=True):
                shown.add(request, time_ms, (item,), ranker_of(models))
        return shown

    def add(self, request: str, time_ms: int, items: Sequence[str], model: str = "") -> None:
        """Items that are in a reply; more of the same request add to it. model: that ranked them."""
        _, before, _ = self._shown.get(request, (time_ms, frozenset(), ""))
        self._shown[request] = (time_ms, before.union(items), sys.intern(model))
        while len(self._shown) > self.max_requests:
            del self._shown[next(iter(self._shown))]

    def model_of(self, request: str) -> str:
        """That ranked what the request was answered with; "" = not known."""
        return self._shown[request][2] if request in self._shown else ""

    def __contains__(self, request: str) -> bool:
        return request in self._shown

    def time_of(self, request: str, item: str, now_ms: int) -> int | None:
        """When it was shown, Unix ms; None = never, or too long ago to be known."""
        while self._shown:  # the oldest go first
            oldest = next(iter(self._shown))
            if now_ms - self._shown[oldest][0] <= self.keep_ms:
                break
            del self._shown[oldest]
        time_ms, items, _ = self._shown.get(request, (0, frozenset(), ""))
        return time_ms if item in items else None


@lru_cache(1024)
def ranker_of(models: str) -> str:
    """Of ``served_models``, JSON by stage: who ranked last; "" = no ranker did."""
    by_stage = json.loads(models)
    return str(by_stage.get("late") or by_stage.get("early") or "")
