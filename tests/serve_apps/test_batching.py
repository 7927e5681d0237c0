"""How long requests wait for their batch is told, of each that gets one; in this process, with a clock of its own."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_apps.service import batching
from serve_apps.service.batching import Batches


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(batching, "perf_counter", found)
    return found


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def asked_while_one_is_answered(
    thread: ThreadPoolExecutor, clock: Clock, *, goes_away: bool = False
) -> tuple[list[Sequence[str]], list[float]]:
    """The first is answered from second 0 to 5; two come at second 3, one of which may go away. Batches and waits."""
    begun, go_on = threading.Event(), threading.Event()
    batches: list[Sequence[str]] = []
    waits: list[float] = []

    def answer(asked: Sequence[str]) -> Sequence[str]:
        batches.append(asked)
        begun.set()
        assert go_on.wait(30)
        return asked

    queue = Batches[str, str](answer, thread, weight=len, most=10, waited=waits.append)
    first = asyncio.create_task(queue.ask("a"))
    await asyncio.to_thread(begun.wait, 30)
    clock.now = 3.0
    second, third = asyncio.create_task(queue.ask("b")), asyncio.create_task(queue.ask("c"))
    await asyncio.sleep(0)
    if goes_away:
        third.cancel()
    clock.now = 5.0
    go_on.set()
    assert await first == "a"
    assert await second == "b"
    await asyncio.gather(third, return_exceptions=True)
    return batches, waits


def test_a_request_waits_as_long_as_the_batch_before_it_is_answered(thread: ThreadPoolExecutor, clock: Clock) -> None:
    batches, waits = asyncio.run(asked_while_one_is_answered(thread, clock))
    assert batches == [["a"], ["b", "c"]]
    assert waits == [0.0, 2.0, 2.0]


def test_a_request_whose_client_went_has_waited_for_no_batch(thread: ThreadPoolExecutor, clock: Clock) -> None:
    batches, waits = asyncio.run(asked_while_one_is_answered(thread, clock, goes_away=True))
    assert batches == [["a"], ["b"]]
    assert waits == [0.0, 2.0]
