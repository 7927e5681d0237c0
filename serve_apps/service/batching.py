"""Requests that come at one time are answered together, by one forward pass."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Generic, TypeVar

from serve_apps.service.refusals import RequestError

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batches(Generic[Asked, Answer]):
    """A batch is what was asked in one turn of the event loop, or while the batch before it was answered.

    answer: an answer or what is wrong, for each request. weight: of a request. most: of a batch of more than one request.
    at_once: up to this weight a batch is answered in the event loop itself: handing work of a few milliseconds to a thread and
    back takes as long as the work, and under load the two fight for the interpreter. Heavier ones run in ``thread``, and the
    loop goes on parsing and telling of its health. waited: is told how many seconds each request waited for its batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Sequence[Answer | RequestError]],
        thread: ThreadPoolExecutor,
        *,
        weight: Callable[[Asked], int],
        most: int,
        at_once: int = 0,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._answer, self._thread, self._weight, self._most, self._at_once = answer, thread, weight, most, at_once
        self._waited = waited
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer], float]] = deque()
        self._busy = False

    async def ask(self, asked: Asked) -> Answer:
        """Raises RequestError, or what the answering raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, future, perf_counter()))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next)  # behind all that is ready to be asked now
        return await future

    def _next(self) -> None:
        batch, weight = self._take()
        self._busy = bool(batch)
        if not batch:
            return
        loop = asyncio.get_running_loop()
        if weight <= self._at_once:
            try:
                self._tell(batch, self._answer([asked for asked, _ in batch]))
            except Exception as error:
                self._fail(batch, error)
            loop.call_soon(self._next)
        else:
            done = loop.run_in_executor(self._thread, self._answer, [asked for asked, _ in batch])
            done.add_done_callback(lambda future: self._finish(batch, future))

    def _take(self) -> tuple[list[tuple[Asked, asyncio.Future[Answer]]], int]:
        """The next batch, without those whose client is gone; and its weight."""
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        total, now = 0, perf_counter()
        while self._waiting:
            weight = self._weight(self._waiting[0][0])
            if batch and total + weight > self._most:
                break
            asked, future, began = self._waiting.popleft()
            if not future.done():
                batch.append((asked, future))
                total += weight
                self._waited(now - began)
        return batch, total

    def _finish(
        self,
        batch: list[tuple[Asked, asyncio.Future[Answer]]],
        done: "asyncio.Future[Sequence[Answer | RequestError]]",
    ) -> None:
        error = done.exception()
        if error is None:
            self._tell(batch, done.result())
        else:
            self._fail(batch, error)
        self._next()

    @staticmethod
    def _tell(batch: list[tuple[Asked, asyncio.Future[Answer]]], answers: Sequence[Answer | RequestError]) -> None:
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its client went while it was answered
                continue
            if isinstance(answer, RequestError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    @staticmethod
    def _fail(batch: list[tuple[Asked, asyncio.Future[Answer]]], error: BaseException) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
