"""A served retriever under load: python -m benchmarks.retrieval_serving.

An untrained LIGER of the paper's layers over 12,000 items with 384-dimensional text, the newest of them cold; histories of 20
items, 10 are wanted; by the dense, the generative and the hybrid method. Two replicas, the proxy and the clients share this
machine. Each client is a thread with one open connection that asks again as soon as it has its answer. Requests of one method
that wait together are searched together. The second table tells, for one request and for eight together in this process alone,
how long a search takes and which share of it are the encoder's and the decoder's forward passes.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.http_load import Demand, Load, run_load
from benchmarks.serving import free_port
from rayrec.bundle import write_bundle
from rayrec.families.retriever.bundle import RetrieverModules, SavedIds, SavedRetriever, load_retriever, retriever_parts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import ItemFeatures
from rayrec.models.liger import Liger, LigerConfig
from rayrec.models.t5 import T5Config
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.searching import Method, Searcher
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from serve_apps.deploying import connect_to_serve, serving
from serve_apps.retriever.application import RetrieverService
from serve_apps.service.front import haproxy_is_front
from serve_apps.service.model_reference import ModelReference

METHODS: tuple[Method, ...] = ("dense", "generative", "hybrid")


@dataclass(frozen=True)
class RetrievalServing:
    """clients: at a time. seconds: of each measurement. repeats: of each, interleaved; medians are reported.

    layers: of encoder and of decoder. cold: items that training never saw. beams: of the search.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = 5.0
    repeats: int = 2
    items: int = 12_000
    cold: int = 100
    history: int = 20
    k: int = 10
    beams: int = 20
    layers: int = 6


def main(config: RetrievalServing) -> None:
    torch.set_num_threads(1)
    runs: dict[tuple[Method, int], list[Load]] = {(m, c): [] for m in METHODS for c in config.clients}
    with tempfile.TemporaryDirectory(prefix="rayrec-retrieval-") as folder:
        bundle = random_bundle(Path(folder) / "liger", config)
        connect_to_serve(num_cpus=2)
        with serving(RetrieverService(beams=config.beams), "127.0.0.1", free_port()) as deployed:
            deployed.deploy(ModelReference(str(bundle), "liger", "1"))
            bodies = {method: [request_body(config, method, seed) for seed in range(64)] for method in METHODS}

            def load(method: Method, clients: int, seconds: float) -> Load:
                return run_load(Demand(f"{deployed.url}/v1/retrieve", bodies[method], clients, seconds))

            for method in METHODS:
                load(method, 8, 1.0)  # warm
            for _ in range(config.repeats):
                for (method, clients), loads in runs.items():
                    loads.append(load(method, clients, config.seconds))
        bundle_searcher = Searcher(load_retriever(bundle).model, beams=config.beams)
        bundle_searcher.prepare()
    report(runs, shares(bundle_searcher, config))


def shares(searcher: Searcher[Any], config: RetrievalServing) -> dict[str, dict[str, dict[str, float]]]:
    """By method and number of requests searched together: median ms of a search, shares of encoder and decoder."""
    model, spent = searcher.model, {"encoder": 0.0, "decoder": 0.0}
    began: list[float] = []
    for name in spent:
        part = model.get_submodule(name)
        part.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
        part.register_forward_hook(
            lambda *_, name=name: spent.update({name: spent[name] + time.perf_counter() - began.pop()})
        )
    told: dict[str, dict[str, dict[str, float]]] = {method: {} for method in METHODS}
    generator = torch.Generator().manual_seed(0)
    for method in METHODS:
        for together in (1, 8):
            histories = torch.randint(1, config.items + 1, (12, together, config.history), generator=generator)
            seconds, parts = [], []
            for history in histories:
                spent |= dict.fromkeys(spent, 0.0)
                started = time.perf_counter()
                searcher.search(history, config.k, method)
                seconds.append(time.perf_counter() - started)
                parts.append([spent[name] / seconds[-1] for name in spent])
            encoder, decoder = np.median(parts[2:], axis=0)
            told[method][str(together)] = {
                "ms": round(1e3 * float(np.median(seconds[2:])), 2),
                "encoder": round(float(encoder), 3),
                "decoder": round(float(decoder), 3),
            }
    return told


def random_bundle(folder: Path, config: RetrievalServing) -> Path:
    """A LIGER with random weights over random texts."""
    torch.manual_seed(0)
    items = fit_tokenizer(torch.randn(config.items, 384), TokenizerConfig(kmeans=ResidualKMeansConfig(iterations=5)))
    seen = torch.ones(config.items + 1, dtype=torch.bool)
    seen[0] = False
    seen[len(seen) - config.cold :] = False
    liger = LigerConfig(T5Config(encoder_layers=config.layers, decoder_layers=config.layers), max_length=config.history)
    text = torch.nn.functional.pad(items.embeddings, (0, 0, 1, 0))
    model = Liger(ItemFeatures(items.ids.item_tokens(), items.ids.num_tokens, text, seen), liger)
    ids = SavedIds(items.ids.level_sizes, text.shape[1], "minilm", items.tokenizer.config)
    return write_bundle(
        folder,
        retriever_parts(
            RetrieverModules(model, items.tokenizer),
            SavedRetriever(RetrievalConfig(model="liger", liger=liger), config.items, ids),
            tuple(f"item-{number}" for number in range(1, config.items + 1)),
        ),
        metrics={},
        run_config={},
    )


def request_body(config: RetrievalServing, method: Method, seed: int) -> str:
    items = np.random.default_rng(seed).integers(1, config.items + 1, config.history)
    return json.dumps({"history": [f"item-{item}" for item in items], "k": config.k, "method": method})


def report(runs: dict[tuple[Method, int], list[Load]], told: dict[str, dict[str, dict[str, float]]]) -> None:
    """The tables, and the JSON line."""
    result: dict[str, Any] = {method: {} for method in METHODS}
    print(f"{'method':<12}{'clients':>10}{'p50 ms':>10}{'p99 ms':>10}{'rps':>10}{'failed':>10}")
    for (method, clients), loads in runs.items():
        p50, p99 = (float(np.median([np.percentile(load.milliseconds, q) for load in loads])) for q in (50, 99))
        rps = float(np.median([len(load.milliseconds) / load.seconds for load in loads]))
        failed = sum(load.failed for load in loads)
        print(f"{method:<12}{clients:>10}{p50:>10.1f}{p99:>10.1f}{rps:>10.0f}{failed:>10}")
        result[method][str(clients)] = {
            "p50_ms": round(p50, 2),
            "p99_ms": round(p99, 2),
            "rps": round(rps, 1),
            "failed": failed,
        }
    print(f"{'method':<12}{'together':>10}{'ms':>10}{'encoder':>10}{'decoder':>10}{'rest':>10}")
    for method, by_number in told.items():
        for number, found in by_number.items():
            encoder, decoder = found["encoder"], found["decoder"]
            print(
                f"{method:<12}{number:>10}{found['ms']:>10.1f}{encoder:>10.0%}{decoder:>10.0%}{1 - encoder - decoder:>10.0%}"
            )
    result |= {"front": "haproxy" if haproxy_is_front() else "serve's own proxy", "shares": told}
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(RetrievalServing, description=__doc__))
