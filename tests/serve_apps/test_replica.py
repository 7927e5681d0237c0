"""What every replica does, on a smallest application; no Ray."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from serve_apps.service.limits import ServiceLimits
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import Problem, RequestError, VersionError
from serve_apps.service.replica import Replica


@dataclass(frozen=True)
class Doubled:
    """A version that doubles numbers, and refuses negative ones."""

    label: str

    def describe(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Limits(ServiceLimits):
    kind: ClassVar[str] = "doubler"
    max_batch: int = 4


class Doubler(Replica[Limits, Doubled, int, int]):
    at_once = 2

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.broken: Exception | None = None
        self.batches: list[tuple[int, bool]] = []  # size, and whether it ran in the loop's own thread
        self.gate = threading.Event()
        self.gate.set()

    def load(self, reference: ModelReference) -> Doubled:
        if self.broken is not None:
            raise self.broken
        return Doubled(reference.model)

    def answer(self, served: Doubled, requests: Sequence[int]) -> list[int | RequestError]:
        self.gate.wait(10)
        self.batches.append((len(requests), threading.current_thread() is threading.main_thread()))
        if 13 in requests:
            raise RuntimeError("thirteen")
        return [2 * n if n >= 0 else RequestError([Problem(("body",), "negative", "value_error")]) for n in requests]

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch


@pytest.mark.parametrize(
    "error",
    [RuntimeError("alloc_cpu\nmore"), MemoryError(), OSError(5, "Input/output error"), PermissionError(13, "denied")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_load_raises_leaves_the_version_in_force_and_is_counted(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Doubler(Limits())
    asyncio.run(replica.reconfigure({"model": "first"}))
    replica.broken = error
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        asyncio.run(replica.reconfigure({"model": "second"}))
    assert replica.current.label == "first"
    (told,) = caplog.messages
    assert type(error).__name__ in told
    assert "first stays in force" in told
    assert "\n" not in told
    assert b"rayrec_model_load_failures_total 1.0" in bytes(replica.metrics.page().body)
    replica.broken = None
    asyncio.run(replica.reconfigure({"model": "third"}))
    assert replica.current.label == "third"


def test_a_user_config_that_is_no_reference_leaves_the_version_in_force() -> None:
    replica = Doubler(Limits())
    asyncio.run(replica.reconfigure({"model": "first"}))
    asyncio.run(replica.reconfigure({"modle": "second"}))
    assert replica.current.label == "first"


def test_a_first_version_that_cannot_be_loaded_fails_the_deployment_in_one_line() -> None:
    replica = Doubler(Limits())
    replica.broken = RuntimeError("alloc_cpu\nmore")
    with pytest.raises(VersionError, match=r"^first: RuntimeError: alloc_cpu$"):
        asyncio.run(replica.reconfigure({"model": "first"}))


def test_what_is_asked_in_one_turn_is_answered_together_and_little_of_it_in_the_loop_itself() -> None:
    replica = Doubler(Limits())

    async def ask() -> None:
        await replica.reconfigure({"model": "first"})
        assert await replica.ask(replica.current, 3) == 6
        assert await asyncio.gather(*(replica.ask(replica.current, n) for n in range(6))) == [0, 2, 4, 6, 8, 10]

    asyncio.run(ask())
    assert replica.batches == [(1, True), (4, False), (2, True)]


def test_a_wrong_request_fails_alone_and_a_failing_batch_does_not_end_the_service() -> None:
    replica = Doubler(Limits())

    async def ask() -> None:
        await replica.reconfigure({"model": "first"})
        asked = [replica.ask(replica.current, n) for n in (1, -1, 2)]
        one, wrong, two = await asyncio.gather(*asked, return_exceptions=True)
        assert (one, two) == (2, 4)
        assert isinstance(wrong, RequestError)
        for numbers in ((13,), (13, 1, 2)):  # in the loop, and in the thread
            failed = await asyncio.gather(*(replica.ask(replica.current, n) for n in numbers), return_exceptions=True)
            assert {str(error) for error in failed} == {"thirteen"}
        assert await replica.ask(replica.current, 5) == 10

    asyncio.run(ask())


def test_a_request_is_answered_by_the_version_that_it_was_checked_for() -> None:
    replica = Doubler(Limits())
    answered: list[str] = []

    def answer(served: Doubled, requests: Sequence[int]) -> list[int | RequestError]:
        answered.extend([served.label] * len(requests))
        return list(requests)

    replica.answer = answer  # type: ignore[method-assign]

    async def ask() -> None:
        await replica.reconfigure({"model": "first"})
        first = replica.current
        await replica.reconfigure({"model": "second"})
        assert await asyncio.gather(
            replica.ask(replica.current, 1), replica.ask(first, 2), replica.ask(replica.current, 3)
        ) == [1, 2, 3]

    asyncio.run(ask())
    assert sorted(answered) == ["first", "second", "second"]


def test_a_client_that_went_away_takes_no_place_in_a_batch() -> None:
    replica = Doubler(Limits())

    async def ask() -> None:
        await replica.reconfigure({"model": "first"})
        replica.gate.clear()
        held = [asyncio.create_task(replica.ask(replica.current, n)) for n in (1, 2, 3)]
        await asyncio.sleep(0.05)  # they are in the thread
        gone = asyncio.create_task(replica.ask(replica.current, 4))
        stays = asyncio.create_task(replica.ask(replica.current, 5))
        await asyncio.sleep(0)
        gone.cancel()
        held[1].cancel()
        replica.gate.set()
        assert await stays == 10
        assert await held[0] == 2

    asyncio.run(ask())
    assert [size for size, _ in replica.batches] == [3, 1]
