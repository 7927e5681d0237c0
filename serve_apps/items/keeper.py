"""The one owner of what changed about items, a named Ray actor, and the replicas that follow it, on whatever node they are.

The actor runs on the cluster's head node, where its file lies; when its process dies Ray starts it again and it reads that file.
A replica holds one call open that is answered when there is something new, so that a change arrives after one message, not at the
next poll. Who makes a change waits until every replica that follows has said that it has it. Nobody to follow for a minute: the
actor ends, and is there again when somebody asks.
"""

import asyncio
import logging
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from rayrec.errors import DiskError
from serve_apps.items.changes import ItemChanges
from serve_apps.items.journal import AddedItem, Availability, ItemJournal, ItemRefused, KeeperAway, Update
from serve_apps.service.owner_actor import end_owner, owner_of
from serve_apps.service.refusals import one_line

logger = logging.getLogger("ray.serve")
_OPEN_S = 5.0  # how long a call stays open without news
_GONE_S = 3 * _OPEN_S  # a follower that did not ask for so long is gone
_ALL_S = 2.0  # how long a change waits for all followers
_ALONE_S = 60.0
_AGAIN_S = 0.2


class ItemKeeper:
    """The actor. Its methods run in one event loop, so that the journal has one thread."""

    def __init__(self, folder: str) -> None:
        """Raises DiskError."""
        self._journal = ItemJournal(Path(folder))
        self._news = asyncio.Condition()
        self._followers: dict[str, tuple[int, float]] = {}  # version that it has, and when it said so
        self._asked = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    async def add(self, item: AddedItem, most: int) -> int:
        """The version that has it. Raises ItemRefused, DiskError."""
        return await self._changed(self._journal.add(item, most))

    async def set_available(self, change: Availability) -> int:
        """The version that has it. Raises ItemRefused, DiskError."""
        return await self._changed(self._journal.set_available(change))

    async def follow(self, follower: str, epoch: str, version: int) -> Update:
        """What is new for a follower that stands at ``version``; answered when there is something, or after some seconds."""
        self._asked = time.monotonic()
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_when_alone())
        async with self._news:
            if epoch == self._journal.epoch:
                self._followers[follower] = version, time.monotonic()
                self._news.notify_all()  # who waits for all followers
                with suppress(TimeoutError):
                    async with asyncio.timeout(_OPEN_S):
                        await self._news.wait_for(lambda: self._journal.version > version)
            self._asked = time.monotonic()
            return self._journal.since(epoch, version)

    async def leave(self, follower: str) -> None:
        """A replica that ends."""
        async with self._news:
            self._followers.pop(follower, None)
            self._news.notify_all()

    async def reached_all(self, version: int) -> bool:
        """Waits until all followers have ``version``; False when one did not within some seconds."""

        def reached() -> bool:
            oldest = time.monotonic() - _GONE_S
            self._followers = {name: (v, at) for name, (v, at) in self._followers.items() if at >= oldest}
            return all(v >= version for v, _ in self._followers.values())

        async with self._news:
            try:
                async with asyncio.timeout(_ALL_S):
                    await self._news.wait_for(reached)
            except TimeoutError:
                return reached()
        return True

    async def process(self) -> int:
        """Its process id, for those who watch it."""
        return os.getpid()

    async def _changed(self, version: int) -> int:
        async with self._news:
            self._news.notify_all()
        return version

    async def _end_when_alone(self) -> None:
        while time.monotonic() - self._asked < _ALONE_S:
            await asyncio.sleep(_ALONE_S / 10)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def end_keeper(folder: str) -> None:
    """Of a service that ends. Never raises."""
    end_owner(ItemKeeper, folder)


def keeper_of(folder: str) -> ActorHandle[Any]:
    """The owner of the file in ``folder`` (of the head node), started where there is none. May wait for Ray."""
    return owner_of(ItemKeeper, folder)


class ItemFollower:
    """Of one replica. changes: its view, behind the owner's by one message; while the owner is away it stays as it was."""

    def __init__(self, folder: str) -> None:
        self._folder, self._name = folder, uuid.uuid4().hex
        self.changes = ItemChanges()
        self._keeper: ActorHandle[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._taken = asyncio.Event()

    async def start(self, timeout_s: float = 60) -> None:
        """Returns when the view is up to date for the first time. Raises KeeperAway. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        try:
            async with asyncio.timeout(timeout_s):
                await self._taken.wait()
        except TimeoutError:
            raise KeeperAway(
                f"the owner of the items in {self._folder} does not answer within {timeout_s:g} s"
            ) from None

    async def add(self, item: AddedItem, most: int) -> bool:
        """Returns when this replica has it; whether all have. Raises ItemRefused, KeeperAway."""
        return await self._settled(await self._ask("add", item, most))

    async def set_available(self, change: Availability) -> bool:
        """Returns when this replica has it; whether all have. Raises ItemRefused, KeeperAway."""
        return await self._settled(await self._ask("set_available", change))

    async def _settled(self, version: int) -> bool:
        reached = bool(await self._ask("reached_all", version))
        if self.changes.version < version:
            raise KeeperAway("the change is kept, but this replica does not have it yet")
        return reached

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            if self._keeper is None:
                self._keeper = await asyncio.to_thread(keeper_of, self._folder)
            return await getattr(self._keeper, method).remote(*arguments)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ItemRefused):
                raise ItemRefused(str(error.cause)) from None
            if isinstance(error.cause, DiskError):
                raise KeeperAway(str(error.cause)) from None
            raise
        except ray.exceptions.RayError as error:
            self._keeper = None
            raise KeeperAway(f"the owner of the items is away: {one_line(error)}") from None

    async def _follow(self) -> None:
        while True:
            try:
                update = await self._ask("follow", self._name, self.changes.epoch, self.changes.version)
                if update.whole or update.changes:
                    self.changes.take(update)
                self._taken.set()
            except Exception as error:  # whatever Ray says of an actor that is away: it is asked again
                logger.warning(f"the items of {self._folder} are followed again: {one_line(error)}")
                await asyncio.sleep(_AGAIN_S)
