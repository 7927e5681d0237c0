"""A served ranker under load: latency and requests per second, a new version and a killed replica in between.

Two replicas, the proxy and the clients share this machine. Each client is a thread with one open connection that asks again as
soon as it has its answer: 20 candidates of raw values, 26 categorical and 13 dense features. A request fails when its reply is
not 200; what it was instead is told of the changes, 0 = the connection broke. Only in the kill, and only without HAProxy, which
does so itself, a client asks once more when a connection breaks or a reply is a 5xx: ranking changes nothing, so asking twice
is safe. By Serve's own proxy: RAY_SERVE_ENABLE_HA_PROXY=0.
"""

import json
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from ray import serve

from benchmarks.bare_application import Bare
from benchmarks.http_load import Demand, Load, run_load
from rayrec.bundle import write_bundle
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, DenseStatistics, LogSchema, TaskLabel
from rayrec.families.ranker.bundle import ranker_parts
from rayrec.families.ranker.task import RankingConfig, RankingTask
from serve_apps.deploying import connect_to_serve, serving
from serve_apps.ranker.application import RankerService
from serve_apps.service.front import haproxy_is_front
from serve_apps.service.model_reference import ModelReference

DENSE = [f"i{j}" for j in range(1, 14)]
CATEGORICAL = [f"c{j}" for j in range(1, 27)]


@dataclass(frozen=True)
class ServingBenchmark:
    """clients: at a time. seconds: of each measurement. repeats: of each, interleaved; medians are reported.

    all_killed_seconds: under load, in which both replicas are killed after a third, and two seconds later Serve's controller.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = 8.0
    repeats: int = 3
    candidates: int = 20
    change_clients: int = 8
    all_killed_seconds: float = 45.0


def main(config: ServingBenchmark) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rayrec-serving-") as folder:
        first, second = write_bundles(Path(folder))
        connect_to_serve(num_cpus=2)
        with serving(RankerService(), "127.0.0.1", free_port()) as deployed:
            deployed.deploy(ModelReference(str(first), "ranker", "1"))
            serve.run(Bare.bind(), name="bare", route_prefix="/bare")  # type: ignore[attr-defined]
            bodies = [request_body(config.candidates, seed) for seed in range(64)]

            def demand(clients: int, seconds: float, *, path: str = "", ask_twice: bool = False) -> Demand:
                return Demand(f"{deployed.url}{path}/v1/rank", bodies, clients, seconds, ask_twice)

            runs: dict[int, list[Load]] = {clients: [] for clients in config.clients}
            bare: dict[int, list[Load]] = {clients: [] for clients in config.clients}
            measured = (("", runs), ("/bare", bare))
            for path, _ in measured:
                run_load(demand(max(config.clients), 2.0, path=path))  # warm
            for _ in range(config.repeats):
                for clients in config.clients:
                    for path, loads in measured:
                        loads[clients].append(run_load(demand(clients, config.seconds, path=path)))
            redeploy = run_load(
                demand(config.change_clients, config.seconds),
                lambda: deployed.deploy(ModelReference(str(second), "ranker", "2")),
            )
            kill = run_load(
                demand(config.change_clients, 2 * config.seconds, ask_twice=not haproxy_is_front()), kill_one_replica
            )
            all_killed = run_load(
                demand(config.change_clients, config.all_killed_seconds), kill_replicas_and_controller
            )
    report(runs, bare, {"redeploy": redeploy, "kill": kill, "all_killed": all_killed})


def write_bundles(folder: Path) -> tuple[Path, Path]:
    """Two untrained rankers of the default architecture, 26 hashed fields of 100,000 buckets and 13 numbers."""
    schema = LogSchema(
        name="serving",
        features=(
            *(DenseFeature(name, transform="log1p", statistics=DenseStatistics(1.0, 1.0, 0.1)) for name in DENSE),
            *(CategoricalFeature(name, encoding="hash", buckets=100_000) for name in CATEGORICAL),
        ),
        tasks=(TaskLabel("click"), TaskLabel("buy", observed_when="click")),
    )
    task = RankingTask(schema, RankingConfig())
    return tuple(  # type: ignore[return-value]
        write_bundle(folder / name, ranker_parts(task.build(), task.model_config, schema), metrics={}, run_config={})
        for name in ("first", "second")
    )


def request_body(candidates: int, seed: int) -> str:
    """The user's half of the features in the context, the item's half in the candidates."""
    generator = np.random.default_rng(seed)

    def values(names: list[str]) -> dict[str, Any]:
        return {
            name: round(float(generator.exponential(5)), 3) if name in DENSE else f"{generator.integers(1 << 40):x}"
            for name in names
        }

    body = {
        "context": values(DENSE[:6] + CATEGORICAL[:13]),
        "candidates": [values(DENSE[6:] + CATEGORICAL[13:]) for _ in range(candidates)],
    }
    return json.dumps(body)


def kill_one_replica() -> None:
    """SIGKILL to the process of one replica."""
    replicas = own_processes("ray::ServeReplica:ranker:Ranker")
    assert len(replicas) == RankerService().replicas, replicas
    replicas[0].kill()


def kill_replicas_and_controller() -> None:
    """SIGKILL to all replicas, and two seconds later, when new ones are being started, to what starts them."""
    for replica in own_processes("ray::ServeReplica:ranker:Ranker"):
        replica.kill()
    time.sleep(2)
    (controller,) = own_processes("ray::ServeController")
    controller.kill()


def own_processes(name: str) -> list[psutil.Process]:
    """They descend from the Ray that this process started."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "".join(process.cmdline()[:1]).startswith(name)]


def report(runs: dict[int, list[Load]], bare: dict[int, list[Load]], changes: dict[str, Load]) -> None:
    """The table, and the JSON line. over_bare: our p50 over that of the bare application, by clients."""
    front = "haproxy" if haproxy_is_front() else "serve's own proxy"
    result: dict[str, Any] = {"front": front, "clients": {}, "bare": {}, "over_bare": {}}
    print(f"{front:<20}{'clients':>10}{'p50 ms':>10}{'p99 ms':>10}{'rps':>10}{'failed':>10}")
    for name, key, measured in (("bare application", "bare", bare), ("ranker", "clients", runs)):
        for clients, loads in measured.items():
            p50, p99 = (float(np.median([np.percentile(load.milliseconds, q) for load in loads])) for q in (50, 99))
            rps = float(np.median([len(load.milliseconds) / load.seconds for load in loads]))
            failed = sum(load.failed for load in loads)
            print(f"{name:<20}{clients:>10}{p50:>10.1f}{p99:>10.1f}{rps:>10.0f}{failed:>10}")
            result[key][str(clients)] = {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "rps": round(rps, 1)}
    for clients in result["clients"]:
        over = result["clients"][clients]["p50_ms"] / result["bare"][clients]["p50_ms"]
        result["over_bare"][clients] = round(over, 2)
    for name, load in changes.items():
        answered, statuses = len(load.milliseconds), ", ".join(f"{n} x {status}" for status, n in load.statuses.items())
        print(
            f"{name}: {answered} answered, {load.failed} failed ({statuses}), {load.repeated} asked twice, slowest "
            f"{max(load.milliseconds):.0f} ms, answered by {', '.join(load.models)}"
        )
        result[f"{name}_failed"] = load.failed
        result[f"{name}_statuses"] = load.statuses
    print(json.dumps(result))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(tyro.cli(ServingBenchmark, description=__doc__))
