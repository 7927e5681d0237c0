"""What comes from outside and means no good: clients that send as slowly as they can, bundles with a byte changed."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from serve_apps.service.refusals import VersionError, refusing_version


class Sent:
    """A request whose body comes when the test says so."""

    def __init__(self, app: FastAPI, path: str = "/", method: str = "POST") -> None:
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self.parts.get, self.send))

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])

    def give(self, body: bytes, *, more: bool = False) -> None:
        self.parts.put_nowait({"type": "http.request", "body": body, "more_body": more})


def assert_slow_bodies_are_cut(app: FastAPI, body_s: float, routes: int) -> None:
    """On each of the app's ``routes`` with a body: one that sends a byte now and then gets a 408 when its time is over, and a
    healthy client is answered meanwhile."""
    found = sorted(
        (method, route.path.replace("{item:path}", "item-3"))
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods & {"POST", "PUT"}
    )
    assert len(found) == routes, found

    async def send() -> None:
        requests = [Sent(app, path, method) for method, path in found]
        started = time.perf_counter()
        health = Sent(app, "/healthz", "GET")
        health.give(b"")
        while not all(request.task.done() for request in requests):
            assert time.perf_counter() - started < 50 * body_s, "a slow body is not cut"
            for request in requests:
                request.give(b" ", more=True)
            await asyncio.sleep(body_s / 10)
        assert time.perf_counter() - started >= body_s
        assert [request.status for request in requests] == [408] * routes
        await health.task
        assert health.status == 200

    asyncio.run(send())


def assert_a_changed_byte_is_refused(bundle: Path, folder: Path, load: Callable[[Path], Any]) -> None:
    """In any file of a bundle but the one with the sums: loading a copy in ``folder`` is refused in one line that names the file.
    ``load`` takes the bundle as it is."""
    load(bundle)
    signed = json.loads((bundle / "config.json").read_text())["sha256"]
    names = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file()}
    assert names == signed.keys() | {"config.json"}
    for name in signed:
        copy = folder / "changed" / name.replace("/", "-") / bundle.name
        shutil.copytree(bundle, copy)
        text = bytearray((copy / name).read_bytes())
        text[len(text) // 2] ^= 1
        (copy / name).write_bytes(text)
        try:
            with refusing_version("the version"):
                load(copy)
        except VersionError as error:
            told = str(error)
        else:
            raise AssertionError(f"{name} was changed and is served")
        assert told == f"the version: {copy / name}: does not match the sha256 in config.json; it was changed or cut"
