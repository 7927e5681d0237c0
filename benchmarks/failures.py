"""A cascade under steady load while things fail: python -m benchmarks.failures [--minutes 10].

Requests come at a fixed rate, whatever becomes of them, and half of the answers are followed by feedback, which a client sends
again until it is told that it is kept. Meanwhile processes of the stages, of the ingress and of the traffic log are killed, a
version of the late ranker comes into force by its alias, the disk of the traffic log fills up, and MLflow's server goes away.

Every answer is compared with that of plain calls by the versions that it names; at the end the logs on disk are compared with
what clients were told. Exits with 1 for a wrong answer or refusal, lost feedback or a lost decision. The parts are those of
benchmarks.cascade, smaller. Where no small disk can be mounted none fills up, which is told.
"""

import asyncio
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import tyro

from benchmarks.cascade import CascadeBenchmark, PlainStages, request_body, write_parts
from benchmarks.failing_world import Store, World, small_disk
from benchmarks.serving import free_port
from benchmarks.steady_clients import Clients
from jobs.serve_cascade import ServeCascade, run_cascade
from rayrec.traffic.decisions import decision_tables
from rayrec.traffic.feedback import read_feedback
from rayrec.training.tracking import Tracker
from serve_apps.cascade.api import reply
from serve_apps.cascade.application import CascadeService
from serve_apps.cascade.ranker_stage import RankerStageSize
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.traffic import TrafficOptions
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.deploying import connect_to_serve
from serve_apps.items.changes import ItemChanges
from serve_apps.service.model_reference import ModelReference

SMALL = CascadeBenchmark(items=2_000, history=10, retrieve=50, early=20, k=5)
_BODIES = 32


@dataclass(frozen=True)
class FailuresBenchmark:
    """What is asked for how long."""

    minutes: float = 10.0
    """Of load; the failures come at tenths of it."""
    rate: float = 8.0
    """Requests a second."""


@dataclass(frozen=True)
class Failure:
    """tenth: of the time, when it comes."""

    tenth: float
    what: str
    make: Callable[[World], None]


FAILURES = (
    Failure(0, "nothing", lambda world: None),
    Failure(1, "one of two processes of the late ranker is killed", lambda world: world.kill("Late")),
    Failure(2, "one of two processes of the ingress is killed", lambda world: world.kill("Cascade")),
    Failure(3, "late/2 comes into force", lambda world: world.put_in_force("2")),
    Failure(4, "the disk of the traffic log fills up", lambda world: world.fill_disk()),
    Failure(5, "the disk has room again", lambda world: world.free_disk()),
    Failure(6, "MLflow's server is killed", lambda world: world.store.stop()),
    Failure(
        7, "MLflow is back, late/1 in force again", lambda world: (world.store.start(), world.put_in_force("1"))[1]
    ),
    Failure(8, "the owner of the traffic log is killed", lambda world: world.kill("TrafficKeeper")),
    Failure(9, "the only process of the retriever is killed", lambda world: world.kill("Retrieve")),
)


@dataclass(frozen=True)
class Phase:
    """From one failure to the next. trouble_s: from the failure to the last request that got no whole, logged answer."""

    at: float
    what: str
    requests: int
    whole: int
    cut_short: int
    unlogged: int
    refused: int
    broken: int
    feedback: int
    sent_again: int
    p50_ms: float
    p99_ms: float
    trouble_s: float


@dataclass(frozen=True)
class Findings:
    """phases, and what must not be. wrong: answers unlike those of plain calls. lost: what clients were told is kept and is not
    on disk."""

    phases: tuple[Phase, ...]
    requests: int
    compared: int
    wrong: int
    other_statuses: dict[str, int]
    feedback_kept: int
    lost_feedback: int
    feedback_of_nobody: int
    feedback_not_kept: dict[str, int]
    lost_decisions: int

    @property
    def good(self) -> bool:
        lost = self.lost_feedback or self.feedback_of_nobody or self.lost_decisions
        return not (self.wrong or self.other_statuses or lost)


def run(config: FailuresBenchmark) -> Findings:
    """In temporary folders; a Ray of its own is started where there is none."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rayrec-failures-") as name, small_disk(Path(name)) as disk:
        folder, store = Path(name), Store(Path(name))
        failures = FAILURES if disk is not None else [f for f in FAILURES if "disk" not in f.what]
        if disk is None:
            print("no disk of its own can be mounted here: none fills up", flush=True)
        bodies = [request_body(SMALL, seed) for seed in range(_BODIES)]
        references, right = prepare(folder, bodies)
        os.environ["MLFLOW_TRACKING_URI"] = store.uri
        traffic = (disk or folder) / "traffic"
        service = CascadeService(
            replicas=2,
            late=RankerStageSize(2),
            traffic=TrafficOptions(str(traffic)),
            metrics_folder=str(folder / "metrics"),
        )
        store.start()
        try:
            for each in references:
                register(Path(each.late.model))
            world = World(store, disk or folder)
            world.put_in_force("1")
            clients = under_load(world, service, references[0], bodies, failures, config)
        finally:
            store.stop()
        return findings(clients, failures, config, right, traffic)


def prepare(
    folder: Path, bodies: Sequence[str]
) -> tuple[tuple[CascadeReferences, CascadeReferences], dict[str, list[dict[str, Any]]]]:
    """The parts with both late rankers, and the right replies by the late version that answers."""
    first = write_parts(folder / "parts", SMALL)
    second = write_parts(folder / "other", replace(SMALL, seed=1))
    named = [
        replace(first, late=ModelReference(late.model, "late", version))
        for late, version in ((first.late, "1"), (second.late, "2"))
    ]
    right = {}
    for references in named:
        stages = PlainStages(references, folder / f"plain-{references.late.version}", SMALL)
        requests = [RecommendRequest.model_validate_json(body) for body in bodies]

        async def answers(
            stages: PlainStages = stages, requests: list[RecommendRequest] = requests
        ) -> list[dict[str, Any]]:
            found = [await stages.cascade.recommend(r, stages, ItemChanges(), 600_000) for r in requests]
            return [reply(answer, trace=False) for answer in found]

        right[str(references.late.label)] = asyncio.run(answers())
    return (named[0], named[1]), right


def register(bundle: Path) -> None:
    """As the next version of the model "late"."""
    tracker = Tracker()
    run_id = tracker.start(bundle.parent.name, {"bundle": bundle.name})
    tracker.log_folder(run_id, bundle, "bundle")
    tracker.finish(run_id)
    tracker.register(run_id, "late", alias=None)


def under_load(
    world: World,
    service: CascadeService,
    references: CascadeReferences,
    bodies: Sequence[str],
    failures: Sequence[Failure],
    config: FailuresBenchmark,
) -> Clients:
    """Serve as ``jobs.serve cascade`` does, with the load and the failures; returns when all clients have ended."""
    port, stop, trouble = free_port(), threading.Event(), []
    command = ServeCascade(
        **{name: getattr(references, name).model for name in ("retriever", "early", "features")},
        late="models:/late@serving",
        service=service,
        port=port,
        follow_s=1.0,
    )
    connect_to_serve(num_cpus=4)

    def serve() -> None:
        try:
            run_cascade(command, stop)
        except BaseException as error:
            trouble.append(error)
            raise

    server = threading.Thread(target=serve)
    server.start()
    clients = Clients(f"http://127.0.0.1:{port}", bodies, config.rate)
    try:
        wait_for(clients.url, server)
        clients.begun = time.monotonic()
        threads = clients.run()
        for failure in failures:
            time.sleep(max(0.0, 6 * failure.tenth * config.minutes - clients.now))
            print(f"{clients.now:6.0f} s: {failure.what}", flush=True)
            failure.make(world)
        time.sleep(max(0.0, 60 * config.minutes - clients.now))
        clients.stop.set()
        for thread in threads:
            thread.join()
    finally:
        clients.stop.set()
        stop.set()
        server.join()
    if trouble:
        raise trouble[0]
    return clients


def wait_for(url: str, server: threading.Thread) -> None:
    """Until the service answers."""
    while server.is_alive():
        with suppress(httpx.HTTPError):
            httpx.get(f"{url}/healthz", trust_env=False).raise_for_status()
            return
        time.sleep(0.2)
    raise RuntimeError("the service did not come up")


def findings(
    clients: Clients,
    failures: Sequence[Failure],
    config: FailuresBenchmark,
    right: dict[str, list[dict[str, Any]]],
    traffic: Path,
) -> Findings:
    """What clients saw, beside plain calls and the files."""
    whole = [asked for asked in clients.asked if asked.reply is not None and not asked.reply["late"]]
    wrong = 0
    for asked in whole:
        assert asked.reply is not None
        answers = right.get(asked.reply["models"].get("late", ""))  # none: another service's
        wrong += answers is None or not same(asked.reply, answers[asked.body])
    decided = {r for folder in traffic.glob("*/decisions") for t in decision_tables(folder) for r in requests_in(t)}
    kept = {
        (a.feedback.request, a.feedback.item) for folder in traffic.glob("*/feedback") for a in read_feedback(folder)
    }
    told = {(t.request, t.item) for t in clients.told if t.outcome in ("accepted", "duplicate")}
    sent = {(t.request, t.item) for t in clients.told}
    logged = {asked.reply["request"] for asked in clients.asked if asked.reply is not None and asked.reply["logged"]}
    ends = [*(6 * failure.tenth * config.minutes for failure in failures[1:]), float("inf")]
    return Findings(
        tuple(
            phase(clients, failure.what, 6 * failure.tenth * config.minutes, end)
            for failure, end in zip(failures, ends, strict=True)
        ),
        requests=len(clients.asked),
        compared=len(whole),
        wrong=wrong,
        other_statuses=dict(Counter(str(a.status) for a in clients.asked if a.status not in (0, 200, 503))),
        feedback_kept=len(told),
        lost_feedback=len(told - kept),
        feedback_of_nobody=len(kept - sent),
        feedback_not_kept=dict(Counter(t.outcome for t in clients.told if t.outcome not in ("accepted", "duplicate"))),
        lost_decisions=len(logged - decided),
    )


def phase(clients: Clients, what: str, begins: float, ends: float) -> Phase:
    asked = [a for a in clients.asked if begins <= a.at < ends]
    answered = [a.reply for a in asked if a.reply is not None]
    told = [t for t in clients.told if begins <= t.at < ends]
    troubled = [a.at for a in asked if a.reply is None or a.reply["late"] or not a.reply["logged"]]
    p50, p99 = np.percentile([a.ms for a in asked], (50, 99)) if asked else (np.nan, np.nan)
    return Phase(
        begins,
        what,
        requests=len(asked),
        whole=sum(not r["late"] for r in answered),
        cut_short=sum(bool(r["late"]) for r in answered),
        unlogged=sum(not r["logged"] for r in answered),
        refused=sum(a.status == 503 for a in asked),
        broken=sum(a.status == 0 for a in asked),
        feedback=len(told),
        sent_again=sum(t.tries > 1 for t in told),
        p50_ms=float(p50),
        p99_ms=float(p99),
        trouble_s=max(troubled, default=begins) - begins,
    )


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Items in order, and their scores by every stage."""
    pairs = list(zip(ours["items"], theirs["items"], strict=False))
    return len(ours["items"]) == len(theirs["items"]) and all(
        a["item"] == b["item"]
        and a["scores"].keys() == b["scores"].keys()
        and np.allclose(list(a["scores"].values()), [b["scores"][s] for s in a["scores"]], rtol=1e-4)
        for a, b in pairs
    )


def requests_in(table: Any) -> list[str]:
    found: list[str] = table.column("served_request").to_pylist()
    return found


def main(config: FailuresBenchmark) -> None:
    found = run(config)
    print(
        f"{'at':>5} {'requests':>9}{'whole':>7}{'cut':>5}{'unlogged':>9}{'503':>5}{'broken':>7}{'feedback':>9}{'again':>6}"
        f"{'p50 ms':>8}{'p99 ms':>9}{'trouble s':>10}  what"
    )
    for p in found.phases:
        print(
            f"{p.at:>5.0f} {p.requests:>9}{p.whole:>7}{p.cut_short:>5}{p.unlogged:>9}{p.refused:>5}{p.broken:>7}{p.feedback:>9}"
            f"{p.sent_again:>6}{p.p50_ms:>8.0f}{p.p99_ms:>9.0f}{p.trouble_s:>10.1f}  {p.what}"
        )
    told = {name: getattr(found, name) for name in found.__dataclass_fields__ if name != "phases"}
    total = Counter(
        {name: sum(getattr(p, name) for p in found.phases) for name in ("whole", "refused", "broken", "unlogged")}
    )
    print(json.dumps({**told, **total, "minutes": config.minutes, "rate": config.rate}))
    raise SystemExit(0 if found.good else 1)


if __name__ == "__main__":
    main(tyro.cli(FailuresBenchmark, description=__doc__))
