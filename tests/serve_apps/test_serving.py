"""The service on a real Ray Serve: answers in batches, a new version under load, a full queue, shared metrics."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import httpx
import psutil
import pytest
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

from jobs.serve import FollowedModel
from rayrec.data.log import Log
from rayrec.families.ranker.task import RankingConfig
from rayrec.registry import Registry, resolve_model
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError
from serve_apps.deploying import DeployedService, DeploymentError, serving
from serve_apps.example_request import example_request
from serve_apps.ranker.application import RankerService
from serve_apps.ranker.served import load_ranker
from serve_apps.service.front import haproxy_is_front
from serve_apps.service.model_reference import ModelReference

REPLICA = ("ray::ServeReplica", "ray::SERVE_REPLICA")  # titles of a replica's process: idle, and answering

ASK = """
import socket, sys
for port in sys.argv[1:]:
    try:
        with socket.create_connection(("10.231.77.1", int(port)), timeout=5) as s:
            s.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
            if s.recv(5) == b"HTTP/":
                print(port)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def deployed(ray_session: None, bundles: tuple[Path, Path]) -> Iterator[DeployedService]:
    """Two replicas; small queues, so that a burst fills them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with serving(RankerService(max_running=4, max_waiting=8, max_candidates=200), "127.0.0.1", port) as service:
        service.deploy(ModelReference(str(bundles[0]), "small", "1"))
        yield service


@pytest.fixture(scope="module")
def body(small_log: Path) -> dict[str, Any]:
    return example_request(Log.open(small_log), candidates=5)


def test_answers_are_those_of_the_bundle(
    deployed: DeployedService, bundles: tuple[Path, Path], body: dict[str, Any]
) -> None:
    reply = httpx.post(f"{deployed.url}/v1/rank", json=body)
    assert reply.status_code == 200, reply.text
    ranker = load_ranker(ModelReference(str(bundles[0])), 200)
    (expected,) = ranker.rank([ranker.requests.parse(json.dumps(body).encode())])
    assert reply.json()["probabilities"]["click"] == pytest.approx(expected.probabilities[:, 0].tolist(), rel=1e-5)
    assert httpx.post(f"{deployed.url}/v1/rank", json={"candidates": [{"age": "old"}]}).status_code == 422


def test_a_port_that_another_service_has_is_refused_not_shared(
    deployed: DeployedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(deployed.url.rpartition(":")[2])
    monkeypatch.setattr("serve_apps.deploying._SHUTDOWN_S", 1)
    with (
        pytest.raises(ConfigError, match=rf"^127.0.0.1:{port} is in use"),
        serving(RankerService(), "127.0.0.1", port),
    ):
        pass


def test_a_request_keeps_its_id_all_the_way(deployed: DeployedService, body: dict[str, Any]) -> None:
    reply = httpx.post(f"{deployed.url}/v1/rank", json=body, headers={"x-request-id": "order-17"})
    assert reply.headers["x-rayrec-request"] == "order-17"
    other = httpx.post(f"{deployed.url}/v1/rank", json=body)
    assert other.headers["x-rayrec-request"] == other.headers["x-request-id"]  # Ray's own


def test_a_burst_is_answered_or_refused_with_retry_after(deployed: DeployedService, body: dict[str, Any]) -> None:
    large = {**body, "candidates": body["candidates"] * 40}
    with httpx.Client(limits=httpx.Limits(max_connections=64), timeout=30) as client, ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(lambda _: client.post(f"{deployed.url}/v1/rank", json=large), range(128)))
    counts = Counter(reply.status_code for reply in replies)
    assert set(counts) == {200, 503}, counts
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 503)


def test_a_new_version_comes_without_a_failed_request_and_a_broken_one_changes_nothing(
    deployed: DeployedService, bundles: tuple[Path, Path], body: dict[str, Any], tmp_path: Path
) -> None:
    stop = threading.Event()
    seen: list[tuple[int, str]] = []

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                reply = client.post(f"{deployed.url}/v1/rank", json=body)
                seen.append((reply.status_code, reply.json()["model"] if reply.status_code == 200 else reply.text))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        deployed.deploy(ModelReference(str(bundles[1]), "small", "2"))
        after = len(seen)
        time.sleep(0.5)
        with pytest.raises(DeploymentError, match=r"refused small/3 and go on with small/2"):
            deployed.deploy(ModelReference(str(tmp_path / "nothing here"), "small", "3"))
        time.sleep(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}
    assert {model for _, model in seen} == {"small/1", "small/2"}
    assert {model for _, model in seen[after + len(threads) :]} == {
        "small/2"
    }  # those in flight may still name the old one
    metrics = httpx.get(f"{deployed.url}/metrics").text
    values = {
        name: float(value) for name, value in (line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    }
    assert values['rayrec_model_replicas{model="small/2"}'] == 2  # of both replicas, whichever answers
    assert values["rayrec_model_load_failures_total"] == 2
    deployed.count_refused_version()
    assert "rayrec_model_load_failures_total 3.0" in httpx.get(f"{deployed.url}/metrics").text
    assert values['rayrec_requests_total{path="/v1/rank",status="200"}'] >= len(seen)
    assert values["rayrec_batch_requests_count"] < values["rayrec_batch_requests_sum"]  # some batches held several
    assert values["rayrec_queue_seconds_count"] == values["rayrec_batch_requests_sum"]  # each waited for one
    assert values["rayrec_queue_seconds_sum"] > 0


def test_half_sent_bodies_and_huge_headers_hold_up_nobody(deployed: DeployedService, body: dict[str, Any]) -> None:
    if not haproxy_is_front():
        pytest.skip("no HAProxy here: Serve's own proxy bounds no headers")
    host, port = "127.0.0.1", int(deployed.url.rpartition(":")[2])
    with ExitStack() as held:
        for _ in range(300):
            half = held.enter_context(closing(socket.create_connection((host, port))))
            half.sendall(
                b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
            )
        huge = held.enter_context(closing(socket.create_connection((host, port))))
        huge.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        with suppress(OSError):  # it is closed long before
            for _ in range(64):
                huge.sendall(b"a" * 2**20)
        assert httpx.post(f"{deployed.url}/v1/rank", json=body, timeout=30).status_code == 200
    many = httpx.get(f"{deployed.url}/healthz", headers={f"x-{i}": "1" for i in range(200)})
    assert many.status_code == 400
    assert httpx.get(f"{deployed.url}/-/routes").status_code == 404
    assert httpx.get(f"{deployed.url}/v1/model", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="makes a network namespace")
def test_nothing_of_a_service_is_reached_from_another_network_namespace(deployed: DeployedService) -> None:
    if not haproxy_is_front():
        pytest.skip("no HAProxy here")
    served = ("haproxy", *REPLICA, "ray::HAProxyManager", "ray::ProxyActor", "ray::ServeController")
    mine = [
        p
        for p in psutil.Process().children(recursive=True)
        if " ".join(p.cmdline()[:1]).split("/")[-1].startswith(served)
    ]
    listening = {c.laddr.port: c.laddr.ip for p in mine for c in p.net_connections("tcp") if c.status == "LISTEN"}
    assert any(p.name() == "haproxy" for p in mine)
    assert int(deployed.url.rpartition(":")[2]) in listening
    name, run = f"rr{os.getpid()}", partial(subprocess.run, check=True, capture_output=True, text=True)
    run(["ip", "netns", "add", name])
    try:
        run(["ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", "inside", "netns", name])
        run(["ip", "addr", "add", "10.231.77.1/30", "dev", f"{name}a"])
        run(["ip", "link", "set", f"{name}a", "up"])
        run(["ip", "-n", name, "addr", "add", "10.231.77.2/30", "dev", "inside"])
        run(["ip", "-n", name, "link", "set", "inside", "up"])
        control = ThreadingHTTPServer(("0.0.0.0", 0), SimpleHTTPRequestHandler)  # what is open is reached
        Thread(target=control.serve_forever, daemon=True).start()
        ports = [control.server_port, *listening]
        answers = run(["ip", "netns", "exec", name, sys.executable, "-c", ASK, *map(str, ports)]).stdout.split()
        control.shutdown()
        # Ray's own processes talk gRPC on all interfaces, behind Ray's token; HTTP is what a service serves.
        assert answers == [str(control.server_port)], listening
    finally:
        run(["ip", "netns", "del", name])


class Marks:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_what_replicas_tell_each_other_is_not_unpickled_from_one_without_rays_token(
    deployed: DeployedService, tmp_path: Path, token: str | None
) -> None:
    replicas = [p for p in psutil.Process().children(recursive=True) if " ".join(p.cmdline()).startswith(REPLICA)]
    ports = {c.laddr.port for p in replicas for c in p.net_connections("tcp") if c.status == "LISTEN"}
    evil = pickle.dumps(Marks(tmp_path / "unpickled"))
    request = ASGIRequest(pickled_request_metadata=evil, request_args=evil)
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    answers = Counter()
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            ASGIServiceStub(channel).HandleRequest(request, timeout=10, metadata=metadata)
        answers[refused.value.code()] += 1
    assert answers[grpc.StatusCode.UNAUTHENTICATED] >= len(replicas) > 0, answers
    assert not (tmp_path / "unpickled").exists()


def test_an_alias_that_moves_brings_its_version_into_force(
    deployed: DeployedService,
    bundles: tuple[Path, Path],
    body: dict[str, Any],
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = Tracker()
    for folder in bundles:
        run = tracker.start("a-run", RankingConfig())
        tracker.log_folder(run, folder, "bundle")
        tracker.register(run, "moving")
    reference = "models:/moving@serving"
    followed = FollowedModel(reference, resolve_model("models:/moving/1"))
    assert followed.look(deployed) == ""
    assert httpx.post(f"{deployed.url}/v1/rank", json=body).json()["model"] == "moving/2"
    tracker.point_alias("moving", "serving", "1")
    assert followed.look(deployed) == ""
    assert followed.served.version == "1"
    with monkeypatch.context() as patched:  # the same version again: nothing is downloaded
        patched.setattr(Registry, "_download", None)
        assert followed.look(deployed) == ""
    assert followed.served.version == "1"
    assert {httpx.get(f"{deployed.url}/healthz").json()["model"] for _ in range(8)} == {"moving/1"}


def test_an_open_host_needs_a_token(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYREC_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="RAYREC_TOKEN"), serving(RankerService(), "0.0.0.0", 0):
        pass
