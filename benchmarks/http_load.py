"""Clients that ask an HTTP service as fast as it answers, in a light process of their own.

Reads one JSON line (the fields of Demand, bodies as text) from standard input, prints "started" when all clients are connected
and one JSON line (the fields of Load) at the end. Each client is a thread with one open connection.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Demand:
    """What to ask. bodies: of POST requests to ``url``, in turn. ask_twice: after a broken connection or a 5xx, once more."""

    url: str
    bodies: list[str]
    clients: int
    seconds: float
    ask_twice: bool = False


@dataclass(frozen=True)
class Load:
    """Latencies of the requests answered by 200, in ms (asking twice included); failed and repeated requests; who answered.

    statuses: of the failed ones, "0" = the connection broke.
    """

    milliseconds: list[float]
    seconds: float
    failed: int
    repeated: int
    models: list[str]
    statuses: dict[str, int]


def run_load(demand: Demand, change: Callable[[], None] | None = None) -> Load:
    """Let the clients run; ``change`` is called after a third of their time."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.http_load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(demand)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "started\n"
        if change is not None:
            time.sleep(demand.seconds / 3)
            change()
        return Load(**json.loads(process.stdout.readline()))


class Client:
    """One connection, opened again after it broke."""

    def __init__(self, demand: Demand) -> None:
        parts = urlsplit(demand.url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        self._path = parts.path
        self._connection.connect()

    def ask(self, body: bytes) -> tuple[int, str]:
        """Status and model of the reply; status 0 when the connection broke."""
        try:
            self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            reply = self._connection.getresponse()
            reply.read()
            return reply.status, reply.getheader("x-rayrec-model", "")
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0, ""


def main() -> None:
    demand = Demand(**json.loads(sys.stdin.readline()))
    bodies = [body.encode() for body in demand.bodies]
    ready = threading.Barrier(demand.clients, action=lambda: print("started", flush=True))
    results: list[Load] = []  # list.append is atomic

    def client(index: int) -> None:
        milliseconds: list[float] = []
        models: set[str] = set()
        statuses: Counter[str] = Counter()
        repeated = 0
        session = Client(demand)
        ready.wait()
        ends = time.perf_counter() + demand.seconds
        while time.perf_counter() < ends:
            body = bodies[index % len(bodies)]
            index += 1
            started = time.perf_counter()
            status, model = session.ask(body)
            if demand.ask_twice and (status == 0 or status >= 500):
                repeated += 1
                status, model = session.ask(body)
            if status == 200:
                milliseconds.append(1e3 * (time.perf_counter() - started))
                models.add(model)
            else:
                statuses[str(status)] += 1
        results.append(Load(milliseconds, demand.seconds, statuses.total(), repeated, sorted(models), dict(statuses)))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(demand.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == demand.clients
    joint = Load(
        [ms for load in results for ms in load.milliseconds],
        demand.seconds,
        sum(load.failed for load in results),
        sum(load.repeated for load in results),
        sorted({model for load in results for model in load.models}),
        dict(sum((Counter(load.statuses) for load in results), Counter())),
    )
    print(json.dumps(asdict(joint)), flush=True)


if __name__ == "__main__":
    main()
