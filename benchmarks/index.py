"""Approximate indexes beside the exact one: python -m benchmarks.index.

One million clustered unit vectors of 128 dimensions; recall@10 against exact, queries a second in batches, and bytes a vector.
"""

import json
import statistics
import time
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor
from torch.nn.functional import normalize

from rayrec.retrieval.index import DenseIndex, IndexConfig


@dataclass(frozen=True)
class Indexes:
    """clusters: of the vectors, which then have ``spread`` times the noise of their distance. queries: a batch."""

    vectors: int = 1_000_000
    dim: int = 128
    clusters: int = 2000
    spread: float = 0.6
    queries: int = 200
    repeats: int = 3
    threads: int = 2


def main(command: Indexes) -> None:
    torch.set_num_threads(command.threads)
    generator = torch.Generator().manual_seed(0)
    vectors = clustered(command, command.vectors, generator)
    queries = clustered(command, command.queries, generator)
    configs = {
        "exact": IndexConfig("exact", threads=command.threads),
        "hnsw": IndexConfig("hnsw", links=16, build_effort=40, search_effort=64, threads=command.threads),
        "ivf_pq": IndexConfig("ivf_pq", lists=1024, probes=16, code_bytes=32, threads=command.threads),
    }
    indexes, built = {}, {}
    for name, config in configs.items():
        started = time.perf_counter()
        indexes[name] = DenseIndex.build(vectors, config)
        built[name] = time.perf_counter() - started
        print(f"{name}: built in {built[name]:.1f} s", flush=True)
    wanted = indexes["exact"].search(queries, 10).rows
    times: dict[str, list[float]] = {name: [] for name in indexes}
    for _ in range(command.repeats):
        for name, index in indexes.items():
            started = time.perf_counter()
            index.search(queries, 10)
            times[name].append(time.perf_counter() - started)
    print(f"{command.vectors:,} x {command.dim}, batches of {command.queries}, {command.threads} threads")
    print(f"{'index':<10}{'recall@10':>10}{'queries/s':>12}{'over exact':>12}{'bytes/vector':>14}{'build s':>10}")
    results = {}
    for name, index in indexes.items():
        recall = (index.search(queries, 10).rows.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean().item()
        speed = command.queries / statistics.median(times[name])
        ratio = statistics.median(e / t for e, t in zip(times["exact"], times[name], strict=True))
        size = index.bytes / len(index)
        print(f"{name:<10}{recall:>10.3f}{speed:>12,.0f}{ratio:>12.1f}{size:>14.1f}{built[name]:>10.1f}")
        if name != "exact":
            results[name] = {
                "recall_at_10": round(recall, 4), "qps_over_exact": round(ratio, 1), "bytes_per_vector": round(size, 1),
            }  # fmt: skip
    print(json.dumps(results))


def clustered(command: Indexes, count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (count, dim) about common centers, the same for each call."""
    centers = torch.randn(command.clusters, command.dim, generator=torch.Generator().manual_seed(1))
    chosen = torch.randint(0, command.clusters, (count,), generator=generator)
    return normalize(centers[chosen] + command.spread * torch.randn(count, command.dim, generator=generator), dim=1)


if __name__ == "__main__":
    main(tyro.cli(Indexes, description=__doc__))
