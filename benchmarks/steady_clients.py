"""Clients of a cascade that ask at a fixed rate, whatever becomes of their requests, and tell what users did with the answers.

Half of the answers are followed by feedback, which is sent again until the client is told that it is kept.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

_CLIENTS = 24
_PATIENCE_S = 60.0  # of a client with its feedback, after the load has ended


@dataclass(frozen=True)
class Asked:
    """One request. status: 0 = the connection broke. at: seconds since the load began. body: which."""

    at: float
    ms: float
    status: int
    body: int
    reply: dict[str, Any] | None


@dataclass(frozen=True)
class Told:
    """Feedback that a client sent. tries: how often. outcome: of the last reply, or its status where there was none."""

    at: float
    request: str
    item: str
    tries: int
    outcome: str


@dataclass
class Clients:
    """Ask at a fixed rate until ``stop``, each request from a thread of its own beside the others."""

    url: str
    bodies: Sequence[str]
    rate: float
    begun: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)

    def run(self) -> list[threading.Thread]:
        """The threads, started: each has every so many-th of the requests."""
        threads = [threading.Thread(target=self._client, args=(i,)) for i in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        return threads

    @property
    def now(self) -> float:
        return time.monotonic() - self.begun

    def _client(self, index: int) -> None:
        number, generator = index, np.random.default_rng(index)
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False) as client:
            while not self.stop.wait(max(0.0, number / self.rate - self.now)):
                asked = self._ask(client, number % len(self.bodies))
                self.asked.append(asked)
                shown = asked.reply["items"] if asked.reply is not None and asked.reply["logged"] else []
                if shown and generator.random() < 0.5:
                    assert asked.reply is not None
                    item = str(shown[int(generator.integers(len(shown)))]["item"])
                    self.told.append(self._tell(client, asked.reply["request"], item))
                number += _CLIENTS

    def _ask(self, client: httpx.Client, body: int) -> Asked:
        at, started = self.now, time.perf_counter()
        try:
            answer = client.post(
                "/v1/recommend", content=self.bodies[body], headers={"Content-Type": "application/json"}
            )
            status, found = answer.status_code, answer.json() if answer.status_code == 200 else None
        except httpx.TransportError:
            status, found = 0, None
        return Asked(at, 1e3 * (time.perf_counter() - started), status, body, found)

    def _tell(self, client: httpx.Client, request: str, item: str) -> Told:
        """Until it is kept or refused for good."""
        event = {"request": request, "item": item, "labels": {"click": 1}, "id": uuid.uuid4().hex}
        at, tries, ends = self.now, 0, None
        while True:
            tries += 1
            try:
                answer = client.post("/v1/feedback", json=event)
                if answer.status_code == 200:
                    return Told(at, request, item, tries, answer.json()["outcome"])
                if answer.status_code != 503:
                    return Told(at, request, item, tries, str(answer.status_code))
            except httpx.TransportError:
                pass
            if self.stop.is_set():
                ends = ends or time.monotonic() + _PATIENCE_S
                if time.monotonic() > ends:
                    return Told(at, request, item, tries, "given up")
            time.sleep(0.5)
