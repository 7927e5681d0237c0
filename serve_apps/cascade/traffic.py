"""What a replica of a cascade does with its decisions and with feedback on them. Knows nothing of Ray or HTTP."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from rayrec.data.log import LogError
from rayrec.data.log.encoding import EncodingError
from rayrec.traffic.earlier import Earlier
from rayrec.traffic.feedback import Feedback
from rayrec.traffic.ledger import Away, Book, Judged, WrittenDecision
from serve_apps.cascade.decision import Decision
from serve_apps.cascade.decision_log import DecisionWriter, ShadowWriter
from serve_apps.cascade.served import Recommended, Watched
from serve_apps.service.refusals import one_line

logger = logging.getLogger("ray.serve")
_START_S = 30.0  # for the owner's process
_MOST_UNDER_WAY, _MOST_WATCHED = 256, 64
_WATCHED_S = 30.0
ShadowOutcome = Literal["kept", "unkept", "failed", "skipped"]


@dataclass(frozen=True)
class TrafficOptions:
    """Whether decisions are logged, and feedback on them is taken."""

    folder: str | None = None
    """Of the cluster's head node, where decisions and feedback are kept; default: nothing is."""
    ranker: Literal["early", "late"] = "late"
    """The ranker that is to be trained on them: they are kept in its columns."""
    window_s: float = 86_400.0
    """Feedback on an item that was shown longer ago, in seconds, is late."""
    wait_ms: int = 250
    """How long an answer waits for its decision to be on disk; then it goes out and says that it is not logged."""
    shadow_replicas: int = 0
    """Processes of the shadow ranker that an experiment may name; 0 = none, and an experiment with one is refused."""

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ValueError(f"window_s must be above 0, not {self.window_s}")
        if self.wait_ms < 1:
            raise ValueError(f"wait_ms must be at least 1, not {self.wait_ms}")
        if self.shadow_replicas < 0:
            raise ValueError(f"shadow_replicas must be at least 0, not {self.shadow_replicas}")
        if self.shadow_replicas and self.folder is None:
            raise ValueError("shadow_replicas: what a shadow ranker says is kept in the traffic folder; give one")


class TrafficOwner(Protocol):
    """Who keeps decisions and feedback, wherever it runs."""

    async def start(self) -> None:
        """Returns when it can be asked. Raises Away."""
        ...

    async def keep(self, book: Book, decision: WrittenDecision) -> None:
        """Returns when it is on disk. Raises Away."""
        ...

    async def accept(self, feedback: Feedback) -> Judged:
        """Raises FeedbackError, and Away when it cannot be kept now."""
        ...

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        """See ``earlier_answers``. Raises Away."""
        ...


class Recorder:
    """Of one replica: hands decisions to their owner, and never lets an answer wait for it long or fail by it."""

    def __init__(self, owner: TrafficOwner, wait_ms: int) -> None:
        self._owner, self._wait_s = owner, wait_ms / 1e3
        self._under_way: set[asyncio.Task[None]] = set()
        self._watched: set[asyncio.Task[None]] = set()
        self._told = self._shadow_told = ""

    async def start(self) -> None:
        """Before the first answer, which else would not wait for an owner that is only being started."""
        try:
            async with asyncio.timeout(_START_S):
                await self._owner.start()
        except (Away, TimeoutError) as error:
            self._unkept(one_line(error))

    async def kept(self, writer: DecisionWriter, decision: Decision) -> bool:
        """Whether the decision is known to be on disk, from where feedback on it is known. Why it is not stands in the log."""
        try:
            made = writer.written(decision)
            if made is None:
                return False  # nothing was shown
            if len(self._under_way) >= _MOST_UNDER_WAY:
                raise Away(f"{_MOST_UNDER_WAY} decisions of this replica are on their way already")
            task = asyncio.create_task(self._owner.keep(writer.book, made))
            self._under_way.add(task)
            task.add_done_callback(self._arrived)
            async with asyncio.timeout(self._wait_s):
                await asyncio.shield(task)
        except TimeoutError:
            return self._unkept(f"not on disk within {1e3 * self._wait_s:g} ms")
        except (Away, EncodingError, LogError) as error:
            return self._unkept(one_line(error))
        self._told = ""
        return True

    async def recorded(self, found: Recommended) -> Recommended:
        """The answer, which says whether it is logged. One whose arm was asked for is not: the log's arms are those that users
        drew, or what is said of them would be wrong."""
        if found.forced:
            return found
        writer = found.rankers.writer
        assert writer is not None  # loaded with the version where there is a recorder
        return replace(found, logged=await self.kept(writer, found.decision))

    def watch(self, writer: ShadowWriter | None, found: Recommended, count: Callable[[ShadowOutcome], None]) -> None:
        """Have the shadow ranker score what was answered, beside the answer, which is not touched by it. count: is told how
        it ended: skipped where so many are on their way that the shadow does not keep up."""
        if writer is None or found.watched is None or found.forced:
            return
        if len(self._watched) >= _MOST_WATCHED:
            count("skipped")
            return
        task = asyncio.create_task(self._watch(writer, found, found.watched, count))
        self._watched.add(task)
        task.add_done_callback(self._watched.discard)

    async def _watch(
        self, writer: ShadowWriter, found: Recommended, watched: Watched, count: Callable[[ShadowOutcome], None]
    ) -> None:
        outcome: ShadowOutcome = "failed"
        try:
            async with asyncio.timeout(_WATCHED_S):
                scored = await watched.ask()
                made = writer.written(found.decision, watched.kept.tolist(), scored)
                outcome = "unkept"
                await self._owner.keep(writer.book, made)
                outcome = "kept"
        except Exception as error:  # whatever a model on trial does
            if f"{outcome}: {error}" != self._shadow_told:
                logger.error(f"the shadow ranker {outcome}: {one_line(error)}")
            self._shadow_told = f"{outcome}: {error}"
        count(outcome)

    async def accept(self, feedback: Feedback) -> Judged:
        """Raises FeedbackError, Away."""
        return await self._owner.accept(feedback)

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        """Raises Away."""
        return await self._owner.earlier(user, asked, most)

    def _arrived(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # of one that nobody waits for any more

    def _unkept(self, why: str) -> bool:
        if why != self._told:
            logger.error(f"decisions are not logged: {why}")
        self._told = why
        return False
