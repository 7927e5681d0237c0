"""A served Mender under load, and how fast its two variants train: python -m benchmarks.preference_serving.

MenderEmb of the paper's decoder with random weights over 12,000 items with MiniLM's 384-dimensional texts; histories of 20 items,
10 are wanted: without a preference, with one that was never asked before (the text encoder reads it), and with one that was. The
service and its clients share this machine. Training: rows a second of both variants on random histories and titles, MenderTok
with MiniLM, frozen, frozen and remembered (all epochs but the first), and with LoRA, prompts of at most 256 tokens. The last line
is JSON.
"""

import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from benchmarks.http_load import Demand, Load, run_load
from benchmarks.serving import free_port
from rayrec.bundle import write_bundle
from rayrec.families.retriever.bundle import RetrieverModules, SavedIds, SavedRetriever, retriever_parts
from rayrec.families.retriever.preferences import PreferenceReader, SavedPreferences, prompts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.models.mender import MenderEmbConfig, MenderTokConfig, Tune
from rayrec.models.t5 import T5Config
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.retriever import Steered
from rayrec.retrieval.semantic_tokenizer import TokenizedItems, TokenizerConfig, fit_tokenizer
from rayrec.runs.cluster import connect
from rayrec.text.prompt_tokens import read_encoder_texts
from serve_apps.deploying import serving
from serve_apps.retriever.application import RetrieverService
from serve_apps.service.model_reference import ModelReference

Kind = Literal["none", "fresh", "cached"]
KINDS: tuple[Kind, ...] = ("none", "fresh", "cached")
WORDS = (
    "steel", "wooden", "soft", "quiet", "bright", "heavy", "light", "cordless", "digital", "precise", "small", "large", "red",
    "gloves", "screws", "tape", "brush", "filament", "lamp", "pump", "valve", "scale", "drill", "hose", "clamp", "funnel",
)  # fmt: skip


@dataclass(frozen=True)
class PreferenceServing:
    """clients: at a time. seconds: of each measurement. repeats: of each, interleaved; medians are reported.

    layers: of the decoder. batch, steps: of the training measurement; after one step that is not counted.
    """

    clients: tuple[int, ...] = (1, 8)
    seconds: float = 5.0
    repeats: int = 2
    items: int = 12_000
    history: int = 20
    k: int = 10
    beams: int = 20
    layers: int = 6
    batch: int = 64
    steps: int = 5


def main(config: PreferenceServing) -> None:
    torch.set_num_threads(1)
    items = quantized(config)
    result = {"serving": served(config, items), "training_rows_per_second": trained(config, items)}
    print(json.dumps(result))


def quantized(config: PreferenceServing) -> TokenizedItems:
    torch.manual_seed(0)
    return fit_tokenizer(torch.randn(config.items, 384), TokenizerConfig(kmeans=ResidualKMeansConfig(iterations=5)))


def wish(number: int) -> str:
    """A sentence of its own for each number."""
    words = np.random.default_rng((1, number)).choice(WORDS, 8)
    return f"Find {' '.join(words)} number {number}"


def catalogue(config: PreferenceServing, items: TokenizedItems) -> Catalogue:
    seen = torch.ones(config.items + 1, dtype=torch.bool)
    seen[0] = False
    text = torch.nn.functional.pad(items.embeddings, (0, 0, 1, 0))
    features = ItemFeatures(items.ids.item_tokens(), items.ids.num_tokens, text, seen)
    return Catalogue(config.items, seen, seen.long(), features, 384)


def transformer(config: PreferenceServing) -> T5Config:
    return T5Config(encoder_layers=1, decoder_layers=config.layers, dropout=0.2)


def served(config: PreferenceServing, items: TokenizedItems) -> dict[str, dict[str, dict[str, float]]]:
    """Latencies by kind of preference and clients."""
    retrieval = RetrievalConfig(
        model="mender_emb", mender_emb=MenderEmbConfig(transformer(config), max_length=config.history)
    )
    runs: dict[tuple[Kind, int], list[Load]] = {(kind, c): [] for kind in KINDS for c in config.clients}
    fresh = itertools.count(1_000)
    with tempfile.TemporaryDirectory(prefix="rayrec-preferences-") as folder:
        model = retrieval.architecture.build(catalogue(config, items))
        bundle = write_bundle(
            Path(folder) / "mender",
            retriever_parts(
                RetrieverModules(model, items.tokenizer),
                SavedRetriever(
                    retrieval,
                    config.items,
                    SavedIds(items.ids.level_sizes, 384, "minilm", items.tokenizer.config),
                    None,
                    SavedPreferences("minilm", 384),
                ),
                tuple(f"item-{number}" for number in range(1, config.items + 1)),
            ),
            metrics={},
            run_config={},
        )
        connect(num_cpus=2)
        with serving(RetrieverService(beams=config.beams), "127.0.0.1", free_port()) as deployed:
            deployed.deploy(ModelReference(str(bundle), "mender", "1"))

            def load(kind: Kind, clients: int, seconds: float) -> Load:
                many = 4_000 if kind == "fresh" else 64  # more than are asked in the time, so that none comes twice
                bodies = [body(config, i, kind, next(fresh) if kind == "fresh" else i) for i in range(many)]
                return run_load(Demand(f"{deployed.url}/v1/retrieve", bodies, clients, seconds))

            for kind in KINDS:
                load(kind, 8, 2.0)  # warm: both replicas have read the cached ones
            for _ in range(config.repeats):
                for (kind, clients), loads in runs.items():
                    loads.append(load(kind, clients, config.seconds))
    result: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in KINDS}
    print(f"{'preference':<12}{'clients':>10}{'p50 ms':>10}{'p99 ms':>10}{'rps':>10}{'failed':>10}")
    for (kind, clients), loads in runs.items():
        p50, p99 = (float(np.median([np.percentile(one.milliseconds, q) for one in loads])) for q in (50, 99))
        rps, failed = (
            float(np.median([len(one.milliseconds) / one.seconds for one in loads])),
            sum(one.failed for one in loads),
        )
        print(f"{kind:<12}{clients:>10}{p50:>10.1f}{p99:>10.1f}{rps:>10.0f}{failed:>10}")
        result[kind][str(clients)] = {
            "p50_ms": round(p50, 2),
            "p99_ms": round(p99, 2),
            "rps": round(rps, 1),
            "failed": failed,
        }
    return result


def body(config: PreferenceServing, seed: int, kind: Kind, number: int) -> str:
    items = np.random.default_rng(seed).integers(1, config.items + 1, config.history)
    asked = {"history": [f"item-{item}" for item in items], "k": config.k}
    return json.dumps(asked if kind == "none" else asked | {"preference": wish(number)})


def trained(config: PreferenceServing, items: TokenizedItems) -> dict[str, float]:
    """Rows a second of forward, backward and AdamW, one thread."""
    titles = [" ".join(np.random.default_rng((2, i)).choice(WORDS, 6)) for i in range(config.items)]
    found = {}
    variants: tuple[tuple[str, Tune | None, int], ...] = (
        ("mender_emb", None, 0),
        ("mender_tok frozen", "frozen", 0),
        ("mender_tok frozen, remembered", "frozen", config.batch),
        ("mender_tok lora", "lora", 0),
    )
    for name, tune, remembered in variants:
        dropped = 0.0 if remembered else 0.1  # without its preference a row is another prompt
        shared = {"transformer": transformer(config), "max_length": config.history}
        retrieval = RetrievalConfig(
            model="mender_emb" if tune is None else "mender_tok",
            mender_emb=MenderEmbConfig(**shared),  # type: ignore[arg-type]
            mender_tok=MenderTokConfig(
                **shared,  # type: ignore[arg-type]
                preference_dropout=dropped,
                tune=tune or "lora",
                remembered=remembered,
            ),
        )
        texts = None if tune is None else read_encoder_texts("minilm")
        known = catalogue(config, items)
        read = None if texts is None else prompts(texts, titles, retrieval)
        torch.manual_seed(0)
        model = retrieval.architecture.build(
            Catalogue(known.num_items, known.seen, known.counts, known.features, 384, read)
        ).train()
        reader = PreferenceReader(SavedPreferences("minilm", 384, texts), retrieval)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
        wishes = reader.read([wish(i) for i in range(config.batch)])
        history = torch.randint(1, config.items + 1, (config.batch, config.history))
        target = torch.randint(1, config.items + 1, (config.batch,))
        seconds = []
        for _ in range(config.steps + 1):
            started = time.perf_counter()
            loss = model.loss(Steered(history, wishes), target)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seconds.append(time.perf_counter() - started)
        found[name] = round(config.batch / float(np.median(seconds[1:])), 1)
        print(f"training {name:<31}{found[name]:>10.1f} rows/s")
    return found


if __name__ == "__main__":
    main(tyro.cli(PreferenceServing, description=__doc__))
