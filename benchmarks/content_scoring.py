"""Content ranking from stored embeddings: python -m benchmarks.content_scoring.

SPAR over MiniLM with the paper's sizes (60 contents, 16 and 4 codes, d 200) and untrained heads: how fast it is does not hang on
weights. "speedup": 100 candidates of one user, by the light score of stored embeddings against reading all texts anew, in one
process. Then the endpoint under load: two replicas, what stands before them and the clients share this machine; each client is a
thread with one open connection that asks again as soon as it has its answer.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
import tyro

from benchmarks.http_load import Demand, Load, run_load
from benchmarks.serving import free_port
from rayrec.bundle import write_bundle
from rayrec.data.content import TextField
from rayrec.data.content.embeddings import EmbeddingsRecord, What, put_in_force, write_shard
from rayrec.families.content.bundle import ContentBundle, SavedContent, content_parts, load_content_ranker
from rayrec.families.content.embedding import ContentEmbedder
from rayrec.families.content.task import ContentConfig, ContentVocabulary, build_model
from rayrec.models.content_encoder import ContentEncoderConfig
from rayrec.models.content_ranker import ContentShape
from rayrec.text.content_tokenizer import load_tokenizer
from serve_apps.content.api import RANK
from serve_apps.content.application import ContentService
from serve_apps.content.request import ContentRequest
from serve_apps.content.served import ServedContent
from serve_apps.deploying import connect_to_serve, serving
from serve_apps.service.model_reference import ModelReference

SHARD = 4096


@dataclass(frozen=True)
class ContentScoring:
    """clients: at a time. seconds: of each measurement. repeats: of each, interleaved; medians are reported.

    items, users: stored. history: contents of a user. tokens: of a content. candidates: of a request.
    encodings: measurements of reading anew.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = 5.0
    repeats: int = 2
    items: int = 20_000
    users: int = 5_000
    history: int = 60
    tokens: int = 48
    candidates: int = 100
    encodings: int = 3


def main(config: ContentScoring) -> None:
    torch.set_num_threads(1)
    runs: dict[int, list[Load]] = {clients: [] for clients in config.clients}
    with tempfile.TemporaryDirectory(prefix="rayrec-content-") as name:
        folder = Path(name)
        bundle, root = random_bundle(folder / "spar", config), folder / "embeddings"
        write_embeddings(root, bundle, config)
        stored, anew = speeds(bundle, root, config)
        connect_to_serve(num_cpus=2)
        with serving(ContentService(embeddings=str(root)), "127.0.0.1", free_port()) as deployed:
            deployed.deploy(ModelReference(str(bundle.path), "spar", "1"))
            bodies = [json.dumps(request(config, seed)) for seed in range(64)]
            run_load(Demand(f"{deployed.url}{RANK}", bodies, 8, 1.0))  # warm
            for _ in range(config.repeats):
                for clients, loads in runs.items():
                    loads.append(run_load(Demand(f"{deployed.url}{RANK}", bodies, clients, config.seconds)))
    report(stored, anew, runs)


def random_bundle(folder: Path, config: ContentScoring) -> ContentBundle:
    torch.manual_seed(0)
    tokenizer, ranker = load_tokenizer("minilm"), ContentConfig("spar", ContentEncoderConfig())
    shape = ContentShape(config.history, config.tokens, 130)
    vocabulary = ContentVocabulary(tokenizer.vocabulary, tokenizer.start, tokenizer.end, shape)
    model = build_model(ranker, vocabulary)
    fields = (TextField("title", "Title", config.tokens),)
    saved = SavedContent(ranker, vocabulary, fields, "none", 128, model.encoder.shape)
    write_bundle(folder, content_parts(model, saved, tokenizer), metrics={}, run_config={})
    return load_content_ranker(folder)


def write_embeddings(root: Path, bundle: ContentBundle, config: ContentScoring) -> None:
    """Of random numbers."""
    random = np.random.default_rng(0)
    sizes: dict[What, tuple[int, int]] = {"items": (config.items, 4), "users": (config.users, 16)}
    for what, (rows, codes) in sizes.items():
        record = EmbeddingsRecord(what, bundle.weights, "random", rows, codes, 200, SHARD)
        for shard in range(record.shards):
            names = [f"{what[0]}{row}" for row in range(shard * SHARD, min(rows, (shard + 1) * SHARD))]
            columns = {"name": names, "interest": [""] * len(names), "summary": [""] * len(names)}
            if what == "items":
                ids = random.integers(1000, 30_000, (len(names), config.tokens)).tolist()
                columns = {"name": names, "tokens": pa.array(ids, pa.list_(pa.int32()))}
            write_shard(record.folder(root), shard, torch.randn(len(names), codes, 200), pa.table(columns))
        put_in_force(root, record)


def speeds(bundle: ContentBundle, root: Path, config: ContentScoring) -> tuple[float, float]:
    """Seconds of a request's scoring from stored embeddings, and of reading the same texts and scoring."""
    served, embedder = ServedContent(bundle, "spar", "1", root), ContentEmbedder(bundle)
    random = np.random.default_rng(0)
    texts = random.integers(1000, 30_000, (config.history + config.candidates, config.tokens)).tolist()
    interest = random.integers(1000, 30_000, 100).tolist()

    def once() -> None:
        with torch.inference_mode():
            users, _ = embedder.users([texts[: config.history]], [interest])
            bundle.model.score(users, embedder.items(texts[config.history :])[None])

    requests = [ContentRequest.model_validate(request(config, seed)) for seed in range(200)]
    served.rank(requests[:5])
    once()
    stored = [_timed(partial(served.rank, [one])) for one in requests]
    return median(stored), median(_timed(once) for _ in range(config.encodings))


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def request(config: ContentScoring, seed: int) -> dict[str, object]:
    random = np.random.default_rng(seed)
    items = random.choice(config.items, config.candidates, replace=False)
    return {"user": f"u{random.integers(config.users)}", "candidates": [f"i{item}" for item in items]}


def report(stored: float, anew: float, runs: dict[int, list[Load]]) -> None:
    """The table, and the JSON line."""
    print(f"100 candidates: {1e3 * stored:.3f} ms from stored embeddings, {1e3 * anew:,.0f} ms from their texts")
    found: dict[str, dict[str, float]] = {}
    print(f"{'clients':>10}{'p50 ms':>10}{'p99 ms':>10}{'rps':>10}{'failed':>10}")
    for clients, loads in runs.items():
        p50, p99 = (float(np.median([np.percentile(load.milliseconds, q) for load in loads])) for q in (50, 99))
        rps = float(np.median([len(load.milliseconds) / load.seconds for load in loads]))
        failed = sum(load.failed for load in loads)
        print(f"{clients:>10}{p50:>10.1f}{p99:>10.1f}{rps:>10.0f}{failed:>10}")
        found[str(clients)] = {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "rps": round(rps, 1), "failed": failed}
    print(json.dumps({"speedup": round(anew / stored, 1), "stored_ms": round(1e3 * stored, 4),
                      "anew_ms": round(1e3 * anew, 1), "clients": found}))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(ContentScoring, description=__doc__))
