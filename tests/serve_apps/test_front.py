"""What stands before the replicas: HAProxy's configuration, the names a service without a token answers to, room for requests."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from serve_apps.ranker.application import RankerService
from serve_apps.service.access import name_check
from serve_apps.service.front import haproxy_binary
from serve_apps.service.haproxy_front import closed
from serve_apps.service.limits import Room
from tests.serve_apps.hostile import Sent

CONFIG = """global
    maxconn 4096
defaults
    mode http
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    acl routes path -i /-/routes
backend default_backend
    http-request return status 404
listen stats
  bind *:8404
  stats enable
"""


@pytest.mark.parametrize(
    ("host", "bind"), [(None, "127.0.0.1:8000"), ("0.0.0.0", "0.0.0.0:8000"), ("2001:db8::1", "[2001:db8::1]:8000")]
)
def test_haproxy_listens_at_one_address_only(host: str | None, bind: str) -> None:
    config = closed(CONFIG, host, "/tmp/x/unavailable.http")
    assert [line.split() for line in config.splitlines() if "bind" in line.split()] == [["bind", bind]]
    assert "stats" not in config
    assert "backend default_backend" in config


def test_haproxy_bounds_requests_and_says_when_to_ask_again() -> None:
    config = closed(CONFIG, None, "/tmp/x/unavailable.http")
    assert "tune.http.maxhdr" in config.partition("defaults")[0]
    front = config.partition("frontend http_frontend")[2].partition("backend")[0]
    assert "option http-buffer-request" in front
    assert "timeout http-request" in front
    assert "/tmp/x/500.http" not in config
    assert config.count("/tmp/x/unavailable.http") == 2


PREPARED = """
import json, os, subprocess, sys
from serve_apps.service.front import haproxy_is_front, prepare_front
inherited = haproxy_is_front()
prepare_front()
names = ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT", "RAYREC_FRONT_FOLDER"]
print(json.dumps([inherited, haproxy_is_front(), *(os.environ[n] for n in names)]), flush=True)
if len(sys.argv) > 1:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
sys.stdin.read()
"""


def test_each_process_that_serves_has_a_front_and_ports_behind_it_of_its_own() -> None:
    """Else one service answers requests of the other: while that has no replica, or by a port that a replica has left."""
    if haproxy_binary() is None:
        pytest.skip("HAProxy does not run here")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYREC_FRONT"))}

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PREPARED, *arguments]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as one, start(PREPARED) as two:
        assert one.stdout is not None
        assert two.stdout is not None
        told = [json.loads(p.stdout.readline()) for p in (one, two, two)]  # type: ignore[union-attr]
        for process in (one, two):
            process.communicate(timeout=60)
    assert [found[:2] for found in told] == [[False, True]] * 3  # the child of the second one inherits its variables
    blocks = [range(int(first), int(end)) for _, _, first, end, _ in told]
    assert all(len(block) >= 400 for block in blocks)
    assert len({port for block in blocks for port in block}) == sum(map(len, blocks))
    assert len({found[-1] for found in told}) == 3


class Broken(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_failure_of_what_is_asked_while_no_replica_is_up_is_a_503_and_a_replicas_own_stays_a_500(
    tmp_path: Path,
) -> None:
    binary = haproxy_binary()
    if binary is None:
        pytest.skip("HAProxy does not run here")
    with HTTPServer(("127.0.0.1", 0), Broken) as broken, socket.socket() as dead, socket.socket() as front:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        for taken in (dead, front):
            taken.bind(("127.0.0.1", 0))  # and never listens
        ports = {"dead": dead.getsockname()[1], "up": broken.server_port}
        front_port = front.getsockname()[1]
        front.close()
        config = f"""global
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend http_frontend
    bind 127.0.0.1:{front_port}
    use_backend with_replica if {{ path /replica }}
    default_backend without_replica
backend with_replica
    server replica-1 127.0.0.1:{ports["up"]}
    server proxy-1 127.0.0.1:{ports["up"]} check backup
backend without_replica
    server replica-1 127.0.0.1:{ports["dead"]} disabled
    server proxy-1 127.0.0.1:{ports["up"]} check backup
"""
        (tmp_path / "haproxy.cfg").write_text(closed(config, None, "unused"))
        with subprocess.Popen([binary, "-db", "-f", str(tmp_path / "haproxy.cfg")]) as haproxy:
            try:
                replica = httpx.Client(transport=httpx.HTTPTransport(retries=5)).get(
                    f"http://127.0.0.1:{front_port}/replica"
                )
                none = httpx.get(f"http://127.0.0.1:{front_port}/v1/model", trust_env=False)
            finally:
                haproxy.terminate()
                broken.shutdown()
    assert replica.status_code == 500
    assert (none.status_code, none.headers["retry-after"]) == (503, "1")
    assert none.json() == {"detail": "No replica can answer; try again"}


def asked(host: str | None, digest: str | None = None) -> int:
    headers = [] if host is None else [(b"host", host.encode())]
    try:
        asyncio.run(name_check(digest)(Request({"type": "http", "headers": headers})))
    except HTTPException as refused:
        return refused.status_code
    return 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.8.9.1"]
)
def test_a_loopback_name_is_answered_without_a_token(host: str) -> None:
    assert asked(host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1:8000", "", None]
)
def test_a_page_whose_name_points_here_is_refused_without_a_token(host: str | None) -> None:
    assert asked(host) == 403
    assert asked(host, "digest") == 200  # the token is looked at elsewhere


def room_app(room: Room, gate: asyncio.Event | None = None) -> FastAPI:
    app = FastAPI()

    @app.post("/")
    async def post(request: Request) -> int:
        async with room.body(request) as body:
            if gate is not None:
                await gate.wait()
            return len(body)

    return app


def test_a_body_too_large_or_of_another_type_is_refused() -> None:
    client = TestClient(room_app(Room(RankerService(max_body_bytes=10))))
    json = {"content-type": "application/json"}
    assert client.post("/", content=b"1234567890", headers=json).json() == 10
    assert client.post("/", content=b"12345678901", headers=json).status_code == 413
    assert client.post("/", content=iter([b"12345", b"678901"]), headers=json).status_code == 413
    assert client.post("/", content=b"1").status_code == 415


def test_half_sent_bodies_take_no_place_and_do_not_stay() -> None:
    async def ask() -> None:
        app = room_app(Room(RankerService(max_running=1, max_waiting=1, body_s=0.2)))
        half = [Sent(app) for _ in range(300)]
        for request in half:
            request.give(b"1", more=True)
        await asyncio.sleep(0.02)
        good = Sent(app)
        good.give(b"12")
        await good.task
        assert good.status == 200
        await asyncio.gather(*(request.task for request in half))
        assert {request.status for request in half} == {408}

    asyncio.run(ask())


def test_beyond_its_room_a_replica_answers_503_and_when_to_ask_again() -> None:
    async def ask() -> None:
        gate = asyncio.Event()
        app = room_app(Room(RankerService(max_running=2, max_waiting=2, replicas=2, retry_after_s=3)), gate)
        requests = [Sent(app) for _ in range(5)]
        for request in requests:
            request.give(b"1")
        await asyncio.sleep(0.02)
        gate.set()
        await asyncio.gather(*(request.task for request in requests))
        assert sorted(request.status for request in requests) == [200, 200, 200, 503, 503]
        assert {r.headers[b"retry-after"] for r in requests if r.status == 503} == {b"3"}
        again = Sent(app)
        again.give(b"1")
        await again.task
        assert again.status == 200

    asyncio.run(ask())


def test_bodies_on_their_way_are_bounded_together() -> None:
    async def ask() -> None:
        app = room_app(Room(RankerService(max_body_bytes=10)))  # 64 such bodies
        held = [Sent(app) for _ in range(80)]
        for request in held:
            request.give(b"123456789", more=True)
        await asyncio.sleep(0.02)
        assert sum(request.status == 503 for request in held) == 80 - 71
        for request in held:
            request.give(b"")
        await asyncio.gather(*(request.task for request in held))
        assert sum(request.status == 200 for request in held) == 71

    asyncio.run(ask())
