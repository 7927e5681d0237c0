"""Approximate indexes beside the exact one: python -m benchmarks.index.

One million clustered unit vectors of 128 dimensions; recall@10 against exact, queries a second in batches, and bytes a vector.
"""

import json
import statistics
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.nn.functional import normalize

from rayrec.retrieval.index import DenseIndex, IndexConfig


@dataclass(frozen=True)
class Indexes:
    """clusters: of the vectors, which then have ``spread`` times the noise of their distance. queries: a batch.

    approximate: which indexes stand beside the exact one; HNSW takes minutes to build. links, build_effort: of HNSW's graph;
    search_efforts: each is a search of it. reranks: each is a search of IVF-PQ, times k.
    """

    vectors: int = 1_000_000
    dim: int = 128
    clusters: int = 2000
    spread: float = 0.6
    queries: int = 200
    repeats: int = 3
    threads: int = 2
    approximate: tuple[Literal["hnsw", "ivf_pq"], ...] = ("hnsw", "ivf_pq")
    links: int = 32
    build_effort: int = 80
    search_efforts: tuple[int, ...] = (64, 96, 128)
    reranks: tuple[int, ...] = (20, 40)


RECALL = 0.95  # what a search must reach: the fastest one that does is told, else the most careful


def main(command: Indexes) -> None:
    torch.set_num_threads(command.threads)
    generator = torch.Generator().manual_seed(0)
    vectors = clustered(command, command.vectors, generator)
    queries = clustered(command, command.queries, generator)
    hnsw = IndexConfig("hnsw", links=command.links, build_effort=command.build_effort, threads=command.threads)
    ivf_pq = IndexConfig("ivf_pq", lists=2048, probes=8, code_bytes=32, threads=command.threads)
    indexes, built = {}, {}
    for config in (IndexConfig("exact", threads=command.threads), hnsw, ivf_pq):
        name = config.method
        if name not in ("exact", *command.approximate):
            continue
        started = time.perf_counter()
        indexes[name] = DenseIndex.build(vectors, config)
        built[name] = time.perf_counter() - started
        print(f"{name}: built in {built[name]:.1f} s", flush=True)
    searches = {
        "exact": ("exact", indexes["exact"].config),
        **{f"hnsw, effort {n}": ("hnsw", replace(hnsw, search_effort=n)) for n in command.search_efforts},
        **{f"ivf_pq, rerank {n}": ("ivf_pq", replace(ivf_pq, rerank=n)) for n in command.reranks},
    }
    searches = {name: search for name, search in searches.items() if search[0] in indexes}
    wanted = indexes["exact"].search(queries, 10).rows
    times: dict[str, list[float]] = {name: [] for name in searches}
    recall: dict[str, float] = {}
    for _ in range(command.repeats):
        for name, (which, config) in searches.items():
            index = indexes[which].searched_by(config)
            started = time.perf_counter()
            found = index.search(queries, 10).rows
            times[name].append(time.perf_counter() - started)
            recall[name] = (found.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean().item()
    print(f"{command.vectors:,} x {command.dim}, batches of {command.queries}, {command.threads} threads")
    print(f"{'search':<20}{'recall@10':>10}{'queries/s':>12}{'over exact':>12}{'bytes/vector':>14}{'build s':>10}")
    results: dict[str, dict[str, float]] = {}
    for name, (which, _) in searches.items():
        speed = command.queries / statistics.median(times[name])
        ratio = statistics.median(e / t for e, t in zip(times["exact"], times[name], strict=True))
        size = indexes[which].bytes / len(indexes[which])
        print(f"{name:<20}{recall[name]:>10.3f}{speed:>12,.0f}{ratio:>12.1f}{size:>14.1f}{built[which]:>10.1f}")
        if results.get(which, {}).get("recall_at_10", 0.0) < RECALL:
            results[which] = {
                "recall_at_10": round(recall[name], 4), "qps_over_exact": round(ratio, 1), "bytes_per_vector": round(size, 1),
            }  # fmt: skip
    del results["exact"]
    print(json.dumps(results))


def clustered(command: Indexes, count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (count, dim) about common centers, the same for each call."""
    centers = torch.randn(command.clusters, command.dim, generator=torch.Generator().manual_seed(1))
    chosen = torch.randint(0, command.clusters, (count,), generator=generator)
    return normalize(centers[chosen] + command.spread * torch.randn(count, command.dim, generator=generator), dim=1)


if __name__ == "__main__":
    main(tyro.cli(Indexes, description=__doc__))
