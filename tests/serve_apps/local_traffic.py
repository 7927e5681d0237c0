"""The owner of decisions and feedback in this process, without its actor, and a cascade that has one."""

import time
from pathlib import Path
from typing import Any

from rayrec.traffic.earlier import Earlier, earlier_answers
from rayrec.traffic.feedback import Feedback
from rayrec.traffic.ledger import Away, Book, Judged, Ledger, UnknownBook, WrittenDecision
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.served import Recommended, ServedCascade
from serve_apps.cascade.traffic import Recorder, ShadowOutcome, TrafficOwner
from tests.serve_apps.test_cascade import InProcess


class LocalTraffic:
    """clock_ms: what it takes for now; None = the time. A new one of the same folder begins with what is in its files."""

    def __init__(self, folder: Path, window_s: float = 60.0) -> None:
        self.clock_ms: int | None = None
        self.ledger = Ledger(folder, window_ms=round(1e3 * window_s), now_ms=self.now_ms)

    @property
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 if self.clock_ms is None else self.clock_ms

    async def start(self) -> None:
        pass

    async def keep(self, book: Book, decision: WrittenDecision) -> None:
        (hindered,) = self.ledger.keep([decision])
        if isinstance(hindered, UnknownBook):
            self.ledger.open(book)
            (hindered,) = self.ledger.keep([decision])
        if isinstance(hindered, Away):
            raise hindered

    async def accept(self, feedback: Feedback) -> Judged:
        return self.ledger.accept(feedback, self.now_ms)

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        return earlier_answers(self.ledger.folder, user, asked, most)


class WithTraffic(InProcess):
    """A cascade service without Ray that logs its decisions."""

    def __init__(self, cascade: ServedCascade, stages: Any, owner: TrafficOwner, wait_ms: int = 2_000) -> None:
        super().__init__(cascade, stages)
        self._recorder = Recorder(owner, wait_ms)
        self.shadow: list[ShadowOutcome] = []

    async def ask(self, served: ServedCascade, request: RecommendRequest) -> Recommended:
        found = await self._recorder.recorded(await super().ask(served, request))
        self._recorder.watch(served.shadow, found, self.shadow.append)
        return found

    async def feedback(self, event: Feedback) -> Judged:
        return await self._recorder.accept(event)

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        return await self._recorder.earlier(user, asked, most)
