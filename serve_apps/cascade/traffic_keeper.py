"""The one owner of a cascade's decisions and feedback, a named Ray actor on the cluster's head node, and how replicas reach it.

One owner for all replicas of all nodes: any of them may get the feedback on what another one decided, and whether that was shown
and said before is known in one place only. A decision costs one message; what comes while the disk syncs is written with one
sync after it. When its process dies Ray starts it again, and it reads its files. Nobody asked it for ten minutes: it ends, and
is there again when somebody asks.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle

from rayrec.errors import UserError
from rayrec.traffic.earlier import Earlier, earlier_answers
from rayrec.traffic.feedback import Feedback, FeedbackError
from rayrec.traffic.ledger import Away, Book, Judged, Ledger, UnknownBook, WrittenDecision
from serve_apps.service.owner_actor import end_owner, owner_of
from serve_apps.service.refusals import one_line

_ALONE_S = 600.0
_AGAIN_S = 2.0  # after a ledger could not be opened
_MOST_SEARCHES = 8  # one at a time, beside the ledger
T = TypeVar("T")
Trouble = Away | UnknownBook | FeedbackError


class TrafficKeeper:
    """The actor. Its methods run in one event loop, the ledger in one thread beside it. What hinders is a value: an exception
    would lose its type on the way."""

    def __init__(self, folder: str, window_s: float) -> None:
        self._folder, self._window_ms = Path(folder), round(1e3 * window_s)
        self._ledger: Ledger | None = None
        self._until, self._trouble = 0.0, Away("")
        self._thread, self._reader = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._searches = 0
        self._waiting: list[tuple[WrittenDecision, asyncio.Future[Trouble | None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._asked = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    async def open(self, book: Book) -> Trouble | None:
        """Take decisions of this book."""
        return await self._by_ledger(lambda ledger: ledger.open(book))

    async def keep(self, decision: WrittenDecision) -> Trouble | None:
        """None when it is on disk."""
        done: asyncio.Future[Trouble | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((decision, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await done

    async def accept(self, feedback: Feedback) -> Judged | Trouble:
        """What became of it."""
        return await self._by_ledger(lambda ledger: ledger.accept(feedback, _now_ms()))

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier | Trouble:
        """See ``earlier_answers``. It reads the files of the log beside the ledger, which goes on."""
        self._noticed()
        if self._searches >= _MOST_SEARCHES:
            return Away(f"{_MOST_SEARCHES} searches of the log are under way")
        self._searches += 1
        try:
            search = partial(earlier_answers, self._folder, user, asked, most)
            return await asyncio.get_running_loop().run_in_executor(self._reader, search)
        except (UserError, OSError) as error:
            return Away(one_line(error))
        finally:
            self._searches -= 1

    async def process(self) -> int:
        """Its process id, for those who watch it."""
        return os.getpid()

    async def _write(self) -> None:
        """All that waits, again and again until nothing does."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            decisions = [decision for decision, _ in batch]
            found = await self._by_ledger(partial(Ledger.keep, decisions=decisions))
            each: Sequence[Trouble | None] = found if isinstance(found, list) else [found] * len(batch)
            for (_, done), hindered in zip(batch, each, strict=True):
                if not done.done():  # the asker is gone
                    done.set_result(hindered)
        self._writing = None

    async def _by_ledger(self, ask: Callable[[Ledger], T]) -> T | Trouble:
        self._noticed()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._asked_of_ledger, ask)

    def _noticed(self) -> None:
        """Somebody asks."""
        self._asked = time.monotonic()
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_when_alone())

    def _asked_of_ledger(self, ask: Callable[[Ledger], T]) -> T | Trouble:
        if time.monotonic() < self._until:
            return self._trouble
        try:
            if self._ledger is None:
                self._ledger = Ledger(self._folder, window_ms=self._window_ms, now_ms=_now_ms())
            return ask(self._ledger)
        except (Away, FeedbackError) as error:
            return error
        except (UserError, OSError) as error:
            trouble = Away(one_line(error))
            if self._ledger is None:  # which reads a lot
                self._until, self._trouble = time.monotonic() + _AGAIN_S, trouble
            return trouble

    async def _end_when_alone(self) -> None:
        while time.monotonic() - self._asked < _ALONE_S:
            await asyncio.sleep(_ALONE_S / 10)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


class KeptTraffic:
    """The owner as a replica reaches it."""

    def __init__(self, folder: str, window_s: float) -> None:
        self._folder, self._window_s = folder, window_s
        self._keeper: ActorHandle[Any] | None = None
        self._opened: set[str] = set()

    async def start(self) -> None:
        """Returns when it can be asked. Raises Away."""
        await self._ask("process")

    async def keep(self, book: Book, decision: WrittenDecision) -> None:
        """Returns when it is on disk. Raises Away."""
        for _ in range(2):
            if decision.book not in self._opened:
                await self._ask("open", book)
                self._opened.add(decision.book)
            try:
                await self._ask("keep", decision)
                return
            except UnknownBook:  # its process was started again
                self._opened.discard(decision.book)
        raise Away("the owner of the traffic is started again and again")

    async def accept(self, feedback: Feedback) -> Judged:
        """Raises FeedbackError, Away."""
        judged: Judged = await self._ask("accept", feedback)
        return judged

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        """Raises Away."""
        found: Earlier = await self._ask("earlier", user, asked, most)
        return found

    async def _ask(self, method: str, *asked: Any) -> Any:
        try:
            if self._keeper is None:
                self._keeper = await asyncio.to_thread(traffic_keeper_of, self._folder, self._window_s)
            found = await getattr(self._keeper, method).remote(*asked)
        except ray.exceptions.RayTaskError as error:
            raise Away(f"the owner of the traffic failed: {one_line(error.cause)}") from error
        except (ray.exceptions.RayError, ValueError) as error:  # ValueError: of a name whose actor is just going
            self._keeper = None
            raise Away(f"the owner of the traffic is away: {one_line(error)}") from None
        if isinstance(found, Trouble):
            raise found
        return found


def traffic_keeper_of(folder: str, window_s: float) -> ActorHandle[Any]:
    """The owner of ``folder`` (of the head node), started where there is none. May wait for Ray."""
    return owner_of(TrafficKeeper, folder, window_s)


def end_traffic_keeper(folder: str) -> None:
    """Of a service that ends. Never raises."""
    end_owner(TrafficKeeper, folder)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
