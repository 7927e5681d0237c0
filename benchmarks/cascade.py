"""A cascade under load beside its three stages as plain calls in one process: python -m benchmarks.cascade.

100,000 items: a SASRec over them finds 200 for a history of 20, an early ranker (16 hidden units) cuts them to 50, a late one
(cross layers, 128 and 64 hidden units) orders these, 10 are the reply. Both rankers read ids of user and item, seven numbers and
seven codes of the item from the feature table, five features of the request. Nothing is trained: the weights are drawn at random,
for this measures speed, and an untrained model computes as long as a trained one. One replica a stage, the ingress, the front and
the clients share this machine; each client is a thread with one open connection that asks again as soon as it has its answer.

Plain calls: the same bundles, loaded in this process, one request after the other: history to candidates, rows of the table,
early ranker, late ranker, JSON in and out, without HTTP, handles or batches. overhead = p50 of one client - p50 of these.
"""

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import tyro
from pydantic_core import to_json

from benchmarks.http_load import Demand, Load, run_load
from benchmarks.serving import free_port
from rayrec.bundle import write_bundle
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    SequenceFeature,
    TaskLabel,
)
from rayrec.families.ranker.bundle import ranker_parts
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.families.retriever.bundle import RetrieverModules, SavedRetriever, retriever_parts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.item_features import load_item_features, write_item_features
from rayrec.models.catalogue import Catalogue
from rayrec.models.ranker import RankerArchitecture
from rayrec.models.sasrec import SASRecConfig
from rayrec.retrieval.index import IndexConfig
from serve_apps.cascade.api import reply
from serve_apps.cascade.application import CascadeService
from serve_apps.cascade.ranker_stage import RankerStageSize, scored, staged_ranker
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.retriever_stage import RetrieverStageSize, StagedRetriever
from serve_apps.cascade.served import ServedCascade
from serve_apps.cascade.stages import Candidates, NeedsColumns, RankAsk, RankingStage, Refused, RetrieveAsk, Scored
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.deploying import connect_to_serve, serving
from serve_apps.items.changes import ItemChanges
from serve_apps.ranker.served import load_ranker
from serve_apps.retriever.served import load_served_retriever
from serve_apps.service.front import haproxy_is_front
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError

NUMBERS = tuple(f"item_number_{i}" for i in range(7))
CODES = tuple(f"item_code_{i}" for i in range(7))
CONTEXT = ("segment", "device", "hour", "weekday")


@dataclass(frozen=True)
class CascadeBenchmark:
    """clients: at a time. seconds: of each measurement. repeats: of each, interleaved; medians are reported.

    retrieve, early, k: the cut-offs. index: of the retriever. plain: requests of the plain calls, a repeat. seed: of the weights.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = 8.0
    repeats: int = 3
    items: int = 100_000
    history: int = 20
    retrieve: int = 200
    early: int = 50
    k: int = 10
    replicas: int = 1
    plain: int = 150
    index: IndexConfig = field(default_factory=IndexConfig)
    seed: int = 0


def main(config: CascadeBenchmark) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rayrec-cascade-") as folder:
        references = write_parts(Path(folder), config)
        bodies = [request_body(config, seed) for seed in range(64)]
        connect_to_serve(num_cpus=4)
        service = CascadeService(
            replicas=config.replicas,
            retriever=RetrieverStageSize(config.replicas, index=config.index),
            early=RankerStageSize(config.replicas),
            late=RankerStageSize(config.replicas),
        )
        runs: dict[int, list[Load]] = {clients: [] for clients in config.clients}
        plain: list[float] = []
        with serving(service, "127.0.0.1", free_port()) as deployed:
            deployed.deploy(references, timeout_s=600)
            url = f"{deployed.url}/v1/recommend"
            stages = PlainStages(references, Path(folder), config)
            run_load(Demand(url, bodies, max(config.clients), 2.0))  # warm
            plain_calls(stages, bodies[:8])
            for _ in range(config.repeats):
                plain += plain_calls(stages, [bodies[i % len(bodies)] for i in range(config.plain)])
                for clients, loads in runs.items():
                    loads.append(run_load(Demand(url, bodies, clients, config.seconds)))
            timings = stage_timings(url, bodies)
    report(runs, plain, timings, stages.milliseconds, config)


class PlainStages:
    """The three stages as calls in this process. milliseconds: by stage, of each request."""

    def __init__(self, references: CascadeReferences, folder: Path, config: CascadeBenchmark) -> None:
        mapped = folder / "mapped"
        self.features = load_item_features(references.features.model, mapped)
        loaded = load_served_retriever(references.retriever, ItemChanges(), config.index)
        self.retriever = StagedRetriever(references.retriever, loaded, self.features)
        self.rankers: dict[RankingStage, Any] = {
            "early": staged_ranker(references.early, load_ranker(references.early, 1), self.features, "early", mapped),
            "late": staged_ranker(references.late, load_ranker(references.late, 1), self.features, "late", mapped),
        }
        schemas = {stage: staged.ranker.bundle.schema for stage, staged in self.rankers.items()}
        self.cascade = ServedCascade(str(references.label), str(references.features.label), self.features, schemas)
        self.milliseconds: dict[str, list[float]] = {"retrieve": [], "features": [], "early": [], "late": []}

    async def retrieve(self, ask: RetrieveAsk) -> Candidates | Refused:
        (found,) = self.retriever.retrieve([ask])
        assert not isinstance(found, RequestError)
        return Candidates(self.retriever.label, found)

    async def rank(self, stage: RankingStage, ask: RankAsk) -> Scored | Refused | NeedsColumns:
        staged = self.rankers[stage]
        request = staged.request(ask)
        assert not isinstance(request, NeedsColumns)
        (ranked,) = staged.ranker.rank([request])
        return scored(staged.ranker, ranked)


def plain_calls(stages: PlainStages, bodies: list[str]) -> list[float]:
    """Milliseconds of each."""

    async def ask() -> list[float]:
        taken = []
        for body in bodies:
            started = time.perf_counter()
            request = RecommendRequest.model_validate_json(body)
            found = await stages.cascade.recommend(request, stages, ItemChanges(), 30_000)
            to_json(reply(found, trace=False))
            taken.append(1e3 * (time.perf_counter() - started))
            for stage, values in stages.milliseconds.items():
                values.append(found.milliseconds[stage])
        return taken

    return asyncio.run(ask())


def stage_timings(url: str, bodies: list[str]) -> dict[str, float]:
    """Median ms by stage as the served replies tell them, of one client."""
    import httpx

    found: dict[str, list[float]] = {}
    with httpx.Client(timeout=30) as client:
        for body in bodies:
            told = (
                client.post(url, content=body, headers={"Content-Type": "application/json"}).raise_for_status().json()
            )
            for stage, milliseconds in told["timings_ms"].items():
                found.setdefault(stage, []).append(milliseconds)
    return {stage: float(np.median(values)) for stage, values in found.items()}


def write_parts(folder: Path, config: CascadeBenchmark) -> CascadeReferences:
    generator = np.random.default_rng(0)
    names = tuple(f"item-{i}" for i in range(config.items))
    numbers = {name: generator.exponential(2, config.items) for name in NUMBERS}
    codes = {
        name: pa.array([f"{name}-{value}" for value in generator.integers(0, 10 ** (1 + i % 4), config.items)])
        for i, name in enumerate(CODES)
    }
    table = pa.table({"item": pa.array(names), **numbers, **codes})
    write_item_features(folder / "features", table, "item", run_config={})
    schema = LogSchema(
        name="cascade",
        features=(
            CategoricalFeature("user", encoding="hash", buckets=100_000),
            CategoricalFeature("item", encoding="hash", buckets=config.items),
            *(CategoricalFeature(name, encoding="hash", buckets=20_000) for name in (*CONTEXT, *CODES)),
            SequenceFeature("history", max_length=config.history, shares="item"),
            *(DenseFeature(name, "dense", "log1p", statistics=DenseStatistics(1.0, 1.0, 0.0)) for name in NUMBERS),
        ),
        tasks=(TaskLabel("click"), TaskLabel("buy", observed_when="click")),
    )
    early = RankerArchitecture(embedding_dim=8, interaction="none", trunk=(16,), tower=())
    late = RankerArchitecture(embedding_dim=16, cross_layers=2, trunk=(128, 64), tower=(32,))
    for name, architecture in (("early", early), ("late", late)):
        torch.manual_seed(config.seed)
        task = RankingTask(schema, RankingConfig(architecture))
        parts = ranker_parts(task.build(), task.model_config, schema)
        write_bundle(folder / name, parts, metrics={}, run_config={})
    sasrec = SASRecConfig(dim=64, layers=2, max_length=config.history)
    seen = torch.ones(config.items + 1, dtype=torch.bool)
    seen[0] = False
    model = sasrec.build(Catalogue(config.items, seen, seen.long(), None))
    retrieval = RetrievalConfig(model="sasrec", sasrec=sasrec)
    write_bundle(
        folder / "retriever",
        retriever_parts(RetrieverModules(model, None), SavedRetriever(retrieval, config.items, None), names),
        metrics={},
        run_config={},
    )
    return CascadeReferences(
        **{name: ModelReference(str(folder / name), name, "1") for name in ("retriever", "early", "late", "features")}
    )


def request_body(config: CascadeBenchmark, seed: int) -> str:
    generator = np.random.default_rng(seed)
    history = [f"item-{i}" for i in generator.integers(0, config.items, config.history)]
    context = {name: f"{name}-{generator.integers(20)}" for name in CONTEXT}
    context |= {"user": f"user-{generator.integers(100_000)}", "history": history}
    cuts = {"retrieve": config.retrieve, "early": config.early, "k": config.k}
    return json.dumps({"history": history, "context": context, **cuts})


def report(
    runs: dict[int, list[Load]],
    plain: list[float],
    timings: dict[str, float],
    calls: dict[str, list[float]],
    config: CascadeBenchmark,
) -> None:
    """The tables, and the JSON line."""
    p50, p99 = (float(np.percentile(plain, q)) for q in (50, 99))
    print(f"{'':<22}{'p50 ms':>10}{'p99 ms':>10}{'requests/s':>12}{'failed':>8}")
    print(f"{'plain calls':<22}{p50:>10.1f}{p99:>10.1f}{1e3 / np.mean(plain):>12.1f}")
    result: dict[str, Any] = {
        "plain": {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "rps": round(1e3 / float(np.mean(plain)), 1)}
    }
    for clients, loads in runs.items():
        q50, q99 = (float(np.median([np.percentile(load.milliseconds, q) for load in loads])) for q in (50, 99))
        rps = float(np.median([len(load.milliseconds) / load.seconds for load in loads]))
        failed = sum(load.failed for load in loads)
        label = f"served, {clients} client{'s' if clients > 1 else ''}"
        print(f"{label:<22}{q50:>10.1f}{q99:>10.1f}{rps:>12.1f}{failed:>8}")
        result[str(clients)] = {
            "p50_ms": round(q50, 2),
            "p99_ms": round(q99, 2),
            "rps": round(rps, 1),
            "failed": failed,
        }
    if "1" in result:
        result["overhead_ms"] = round(result["1"]["p50_ms"] - result["plain"]["p50_ms"], 2)
        print(f"overhead of the service, one client: {result['overhead_ms']:.1f} ms")
    print(f"{'median ms by stage':<22}" + "".join(f"{stage:>10}" for stage in calls))
    own = {stage: float(np.median(values)) for stage, values in calls.items()}
    for label, by_stage in (("plain calls", own), ("served, one client", timings)):
        print(f"{label:<22}" + "".join(f"{by_stage[stage]:>10.2f}" for stage in calls))
    result |= {
        "stages_ms": {
            "plain": {s: round(v, 2) for s, v in own.items()},
            "served": {s: round(v, 2) for s, v in timings.items()},
        },
        "items": config.items,
        "index": config.index.method,
        "replicas": config.replicas,
        "front": "haproxy" if haproxy_is_front() else "serve's own proxy",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(CascadeBenchmark, description=__doc__))
