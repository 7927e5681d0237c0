"""The owner of items' changes as an actor: followers hear of a change before its maker does, nothing is lost with a process."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import ray

from serve_apps.items.journal import AddedItem, Availability, ItemRefused, KeeperAway
from serve_apps.items.keeper import ItemFollower, end_keeper, keeper_of


def test_a_change_has_reached_all_followers_when_its_maker_is_answered_and_survives_the_owner(
    ray_session: None, tmp_path: Path
) -> None:
    folder = str(tmp_path / "items")

    async def main() -> None:
        one, two = ItemFollower(folder), ItemFollower(folder)
        await asyncio.gather(one.start(), two.start())
        for number in range(20):
            assert await one.set_available(Availability(f"item-{number}", False))
            assert f"item-{number}" in one.changes.out
            assert f"item-{number}" in two.changes.out
        assert await two.add(AddedItem("d", "new", "text", (1.0, 2.0)), 1)
        assert [item.item for item in one.changes.added(0)] == ["new"]
        with pytest.raises(ItemRefused, match="1 items were added already"):
            await one.add(AddedItem("d", "other", "text", (1.0, 2.0)), 1)

        keeper = keeper_of(folder)
        os.kill(ray.get(keeper.process.remote()), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while True:  # Ray starts it again; it reads its file, and followers follow again
            try:
                assert await one.set_available(Availability("item-3", True))
                break
            except KeeperAway:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.2)
        for follower in (one, two, ItemFollower(folder)):
            await follower.start()
            while "item-3" in follower.changes.out:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert follower.changes.out == {f"item-{n}" for n in range(20) if n != 3}
            assert follower.changes.count == 1

    asyncio.run(main())
    end_keeper(folder)
