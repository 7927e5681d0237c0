"""One question to an OpenAI-compatible endpoint (``POST <url>/chat/completions``), asked until there is an answer or no hope.

Asked again: time-outs, cut connections, 408, 409, 425, 429 and 5xx, and bodies that are no completion, after exponentially
growing waits with full jitter; and nothing before a Retry-After (seconds or a date) has passed.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rayrec.text.answer_store import Answer

_AGAIN = frozenset({408, 409, 425, 429})
_HOPELESS = frozenset({401, 402, 403, 404, 405})
Message = dict[str, str]


class ChatError(ValueError):
    """No answer to one question. ``hopeless``: no other question would get one either (a wrong key, address or model)."""

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


@dataclass(frozen=True)
class EndpointConfig:
    """Which model is asked, and how."""

    url: str
    """Up to and without "/chat/completions", such as http://127.0.0.1:8000/v1."""
    model: str
    """As the endpoint calls it."""
    key_variable: str = "RAYREC_LLM_KEY"
    """Environment variable that holds the key; not set = none is sent. The key itself is never written anywhere."""
    temperature: float = 0.6
    """Of the sampling."""
    top_p: float = 0.9
    """Of the sampling: the likeliest tokens of this mass."""
    max_tokens: int = 512
    """Of an answer."""
    json_mode: bool = False
    """Ask for a JSON object by ``response_format``; not every endpoint knows it."""
    concurrency: int = 8
    """Questions under way at once."""
    timeout: float = 60.0
    """Seconds for one try, from the connection to the last byte."""
    tries: int = 6
    """Of one question that fails on its way."""
    first_wait: float = 1.0
    """Seconds before the second try, doubled each time."""
    longest_wait: float = 120.0
    """Seconds between two tries at most; a longer Retry-After ends the run."""
    largest_answer: int = 1_000_000
    """Bytes of a reply that are read."""
    input_price: float = 0.0
    """Of a million tokens that are asked, for the bill."""
    output_price: float = 0.0
    """Of a million tokens that are answered, for the bill."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must start with http:// or https://, given {self.url!r}")
        for name in ("max_tokens", "concurrency", "tries", "largest_answer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not (self.timeout > 0 and 0 < self.first_wait <= self.longest_wait):
            raise ValueError("timeout and first_wait must be above 0, longest_wait no shorter than first_wait")
        if min(self.temperature, self.top_p, self.input_price, self.output_price) < 0:
            raise ValueError("temperature, top_p and prices must be at least 0")

    def request(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The body that is sent."""
        body: dict[str, Any] = {
            "model": self.model, "messages": list(messages), "temperature": self.temperature, "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }  # fmt: skip
        return {**body, "response_format": {"type": "json_object"}} if self.json_mode else body

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class ChatEndpoint:
    """An open connection pool; use within ``async with``. Waits of one question hold up none but after a Retry-After."""

    def __init__(self, config: EndpointConfig, seed: int | None = None) -> None:
        self.config = config
        self.requests = 0
        self._key = os.environ.get(config.key_variable, "")
        self._random = random.Random(seed)
        self._not_before = 0.0
        self._slots = asyncio.Semaphore(config.concurrency)
        self._over = asyncio.Event()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self._client = httpx.AsyncClient(headers=headers, timeout=config.timeout, limits=limits, follow_redirects=False)

    async def __aenter__(self) -> "ChatEndpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    def stop(self) -> None:
        """Send nothing more; what is under way is still received, as it may be paid for."""
        self._over.set()

    async def ask(self, messages: Sequence[Message]) -> Answer:
        """Raises ChatError that says what the last try met, or that the endpoint was stopped."""
        said = ""
        for number in range(self.config.tries):
            if number:
                await self._wait(self._random.uniform(0, self._ceiling(number)))
            async with self._slots:
                await self._wait(0)
                while (left := self._not_before - time.monotonic()) > 0:
                    await self._wait(left)
                self.requests += 1
                found = await self._try(messages)
            if isinstance(found, Answer):
                return found
            said = found
        raise ChatError(f"{self.config.url}: no answer in {self.config.tries} tries; the last: {said}")

    async def _wait(self, seconds: float) -> None:
        """Raises ChatError when the endpoint was stopped, before or meanwhile."""
        if seconds > 0 and not self._over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._over.wait()
        if self._over.is_set():
            raise ChatError(f"{self.config.url}: nothing more is asked", hopeless=True)

    def _ceiling(self, number: int) -> float:
        return min(self.config.longest_wait, self.config.first_wait * 2.0 ** (number - 1))

    async def _try(self, messages: Sequence[Message]) -> Answer | str:
        """An answer, or why to ask again."""
        url = f"{self.config.url.rstrip('/')}/chat/completions"
        try:
            async with asyncio.timeout(self.config.timeout):
                async with self._client.stream("POST", url, json=self.config.request(messages)) as reply:
                    body = bytearray()
                    async for part in reply.aiter_bytes():
                        body += part
                        if len(body) > self.config.largest_answer:
                            return f"a reply of more than {self.config.largest_answer:,} bytes"
        except TimeoutError:
            return f"nothing whole within {self.config.timeout:g} s"
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {self._safe(str(error))}"
        status, shown = reply.status_code, self._safe(bytes(body[:200]).decode("utf-8", "replace"))
        if status in _AGAIN or status >= 500:
            self._hold_back(reply.headers.get("retry-after"))
            return f"status {status}: {shown}"
        if status != 200:
            raise ChatError(f"{url}: status {status}: {shown}", hopeless=status in _HOPELESS or status < 400)
        answer = _completion(bytes(body), messages)
        return f"no completion: {shown}" if answer is None else answer

    def _hold_back(self, after: str | None) -> None:
        """Nobody asks before a Retry-After is over. Raises ChatError when that is longer than ``longest_wait``."""
        seconds = retry_after(after)
        if seconds is None:
            return
        if seconds > self.config.longest_wait:
            raise ChatError(
                f"{self.config.url}: asks to wait {seconds:,.0f} s, longest_wait is {self.config.longest_wait:,.0f}; "
                "go on later, nothing is lost",
                hopeless=True,
            )
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _safe(self, text: str) -> str:
        text = " ".join(text.split())
        return text.replace(self._key, "(key)") if self._key else text


def retry_after(value: str | None) -> float | None:
    """Seconds to wait of a Retry-After header, at least 0; None when there is none that can be read."""
    if value is None:
        return None
    value = value.strip()
    if value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def estimated_tokens(text: str) -> int:
    """A rule of thumb, four bytes a token: for estimates, and where an endpoint does not count."""
    return -(-len(text.encode()) // 4)


def _completion(body: bytes, messages: Sequence[Message]) -> Answer | None:
    try:
        reply = json.loads(body)
        text = reply["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if not isinstance(text, str):
        return None
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    given, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(given, int) and isinstance(written, int):
        return Answer(text, given, written)
    return Answer(text, sum(estimated_tokens(m["content"]) for m in messages), estimated_tokens(text), counted=False)
