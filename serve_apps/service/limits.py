"""What a service takes on: its limits, and the room for requests that a replica keeps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from fastapi import HTTPException, Request

from serve_apps.service.refusals import Unavailable

_BODIES = 64  # as many bodies of the largest size may be on their way to a replica at a time


@dataclass(frozen=True)
class ServiceLimits:
    """Limits and size of a service; the ``args`` of the application in a config file."""

    kind: ClassVar[str]  # the family's name; the deployment's is the same, capitalized
    path: ClassVar[str | None] = None  # module of an application that serves no family's models
    deployments: ClassVar[tuple[str, ...]] = ()  # of an application of several, all of one user_config
    replicas: int = 2
    """Processes that answer."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Of a request."""
    body_s: float = 10.0
    """In how many seconds the body of a request has to be there, however slowly it comes; then the reply is a 408."""
    max_running: int = 64
    """Requests that a replica takes on, counted from when their body is there."""
    max_waiting: int = 256
    """Further requests that may wait, over all replicas; beyond them the reply is a 503."""
    retry_after_s: int = 1
    """In the Retry-After header of a 503."""
    token_sha256: str | None = None
    """Hex digest of the bearer token; default: of $RAYREC_TOKEN where the application is built."""
    metrics_folder: str | None = None
    """Where replicas of a machine share their metrics; default: a new one among temporary files."""
    request_log: str | None = None
    """Folder in which each replica writes a JSON line a request, of what became of it; default: none is written."""

    def __post_init__(self) -> None:
        for name in ("replicas", "max_body_bytes", "max_running", "max_waiting"):
            self._check_at_least_one(name)
        if not self.body_s > 0:
            raise ValueError(f"body_s must be above 0, not {self.body_s}")

    def _check_at_least_one(self, name: str) -> None:
        if getattr(self, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def deployed(self) -> tuple[str, ...]:
        """Names of its deployments, which all get its ``user_config``."""
        return self.deployments or (self.kind.capitalize(),)

    @property
    def kept_items(self) -> str | None:
        """Folder of what changed about items, see ``items.keeper``; None for a service whose items do not change."""
        return None

    @property
    def traffic_folder(self) -> str | None:
        """Folder of decisions and feedback, see ``cascade.traffic_keeper``; None for a service that keeps none."""
        return None

    def in_folder(self, folder: Path) -> "ServiceLimits":
        """With all that a service keeps on disk in ``folder``, unless it is said otherwise."""
        log = None if self.request_log is None else str(Path(self.request_log).resolve())  # replicas run elsewhere
        return replace(self, metrics_folder=self.metrics_folder or str(folder / "metrics"), request_log=log)


class Room:
    """Of one replica. A request takes its place when its body is there: one that is sent half, or slowly, holds up nobody."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._limits = limits
        self._most = limits.max_running + limits.max_waiting // limits.replicas
        self._taken = self._bytes = 0
        self._full = Unavailable("full", "Full; try again", limits.retry_after_s)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a JSON request, which has a place while the context is open.

        415 for another content type, 413 beyond ``max_body_bytes`` without reading on, 408 for one that does not come, 503 when
        there is no place.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "Content-Type must be application/json")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                await self._read(request, body)
            if self._taken >= self._most:
                raise self._full
            self._taken += 1
            try:
                yield bytes(body)
            finally:
                self._taken -= 1
        except TimeoutError:
            raise HTTPException(408, f"The body did not come within {self._limits.body_s:g} s") from None
        finally:
            self._bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        most = self._limits.max_body_bytes
        too_large = HTTPException(413, f"The body may have at most {most} bytes")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        async for chunk in request.stream():
            body += chunk
            self._bytes += len(chunk)
            if len(body) > most:
                raise too_large
            if self._bytes > _BODIES * most:
                raise self._full
