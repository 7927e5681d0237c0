"""SPAR, EmbSum and their baselines side by side: python -m studies.content_rankers --content C --tokens T --out FILE.

One JSON line a run, appended as it ends: metrics on the test impressions, of each of 20 groups of users left out in turn, and by
history length; runs that are there are not repeated. Nothing is chosen on the test part. The encoder is frozen, reads contents
one at a time, and its token states, cut to their first principal components, are kept on disk for all runs, so that a run takes a
minute or two on a CPU.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from rayrec.data.content import ContentLog
from rayrec.data.content.streams import ContentStreamConfig, JudgedContents
from rayrec.data.content.tokens import ContentTokens
from rayrec.errors import told
from rayrec.families.content.experiment import ContentExperiment
from rayrec.families.content.task import ContentConfig
from rayrec.families.content.untrained import Scores, bm25, popularity
from rayrec.kept_options import hold_to_options, options_of
from rayrec.metrics.impressions import impression_metrics
from rayrec.models.content_baselines import MinerConfig, NrmsConfig
from rayrec.models.content_encoder import ContentEncoderConfig
from rayrec.models.embsum import EmbsumConfig
from rayrec.models.spar import SparConfig
from rayrec.optim import OptimizerConfig
from rayrec.training.loop import LoopConfig, run_training
from rayrec.training.reporters import CheckpointWriter
from rayrec.training.worker import Worker
from studies.content_states import KeptTask, kept_states

METRICS = ("auc", "mrr", "ndcg@5", "ndcg@10")
GROUPS = 20  # of users, by number


@dataclass(frozen=True)
class ContentStudy:
    """What is trained on what, and how long."""

    content: Path
    """Folder of a content log."""
    tokens: Path
    """Folder of its tokens."""
    out: Path
    """File of JSON lines, one a run."""
    text: str | None = None
    """Version of user texts that SPAR reads and EmbSum learns to write."""
    arms: tuple[str, ...] = ()
    """Of ARMS; none named = all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs."""
    lengths: tuple[int, ...] = (5, 15, 30)
    """Newest contents that a trained model is judged with once more."""
    trained_lengths: tuple[int, ...] = ()
    """Train arms once more for histories of these lengths."""
    dim: int = 64
    """Of all embeddings."""
    components: int = 96
    """Of a token's state."""
    epochs: int = 4
    """Of every arm."""
    learning_rate: float = 1e-3
    """Of every arm."""
    valid_histories: int | None = 300
    """Histories that validation judges; None = all."""
    stream: ContentStreamConfig = field(default_factory=lambda: ContentStreamConfig(token_budget=32_768, positives=40))
    """How impressions become batches."""


_SPAR, _EMBSUM = (
    SparConfig(code_dim=32, window=256),
    EmbsumConfig(code_dim=32, decoder_layers=1, decoder_heads=2, decoder_feed_forward=128, max_summary=128),
)
ARMS: Mapping[str, Mapping[str, Any]] = {
    "two_tower": {"model": "two_tower"},
    "nrms": {"model": "nrms", "nrms": NrmsConfig(code_dim=32)},
    "miner": {"model": "miner", "miner": MinerConfig(code_dim=32)},
    "spar": {"model": "spar", "spar": _SPAR},
    "spar without the LLM's text": {"model": "spar", "spar": _SPAR},
    "spar, the LLM's text only": {"model": "spar", "spar": replace(_SPAR, history=False)},
    "spar without UHS": {"model": "spar", "spar": replace(_SPAR, summarize=False)},
    "spar without sparsity": {"model": "spar", "spar": replace(_SPAR, sparse=False)},
    "spar, one user code": {"model": "spar", "spar": replace(_SPAR, user_codes=1)},
    "spar without CCS": {"model": "spar", "spar": replace(_SPAR, item_summary=False)},
    "embsum": {"model": "embsum", "embsum": _EMBSUM},
    "embsum without L_sum": {"model": "embsum", "embsum": replace(_EMBSUM, summary_weight=0.0)},
    "embsum without CPE": {"model": "embsum", "embsum": replace(_EMBSUM, poly_item=False)},
    "embsum without UPE": {"model": "embsum", "embsum": replace(_EMBSUM, poly_user=False)},
}


class Nowhere:
    """Keeps no checkpoint: a run of minutes is repeated, not resumed."""

    def latest(self) -> Path | None:
        return None

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        pass


def run(study: ContentStudy) -> None:
    """Every arm and seed that the file has not; the untrained ones first.

    Raises ConfigError when it holds those of other options.
    """
    options = options_of(study, but=("out", "arms", "seeds", "trained_lengths"))
    hold_to_options(study.out.with_suffix(".options.json"), options, study.out.name)
    there = set()
    if study.out.is_file():
        lines = map(json.loads, study.out.read_text().splitlines())
        there = {(line["arm"], line["seed"], line.get("trained_length")) for line in lines}
    inputs = experiment_of(study, "two_tower", 0).inputs()
    log, texts = inputs.log, study.text
    untrained = {"popularity": lambda: popularity(log), "bm25": lambda: bm25(log, 60)}
    if texts is not None:
        log.refuse_texts_that_know("test", texts)
        untrained["bm25 with the LLM's text"] = lambda: bm25(log, 60, texts)
    for arm, scores in untrained.items():
        if (arm, 0, None) not in there and not study.arms:
            _append(study.out, {"arm": arm, "seed": 0, **judge_untrained(log, scores())})
    states_file = study.out.parent / states_name(inputs.tokens, texts, study.components)
    user_texts = None if texts is None else inputs.tokens.user_texts[texts]
    task = experiment_of(study, "two_tower", 0).task()
    states = kept_states(states_file, task, inputs.tokens.items, user_texts, study.components)
    for seed in study.seeds:
        for arm in study.arms or tuple(ARMS):
            for length in study.trained_lengths or (None,):
                if (arm, seed, length) not in there:
                    _append(study.out, run_arm(study, arm, seed, states, length))


def states_name(tokens: ContentTokens, text: str | None, components: int) -> str:
    """File of the states of these items and texts."""
    digest = hashlib.sha256(tokens.record.items.encode())
    for lists in (tokens.items, *([] if text is None else [tokens.user_texts[text]])):
        digest.update(lists.offsets.tobytes() + lists.values.tobytes())
    return f"states-{digest.hexdigest()[:16]}-{components}.safetensors"


def experiment_of(study: ContentStudy, arm: str, seed: int) -> ContentExperiment:
    """The experiment of an arm and a seed."""
    settings = ARMS[arm]
    encoder = ContentEncoderConfig(train="none", session=1, dim=study.dim)
    reads = settings["model"] == "spar" and arm != "spar without the LLM's text"
    rate = study.learning_rate
    return ContentExperiment(
        study.content, study.tokens,
        interest=study.text if reads else None,
        summary=study.text if settings["model"] == "embsum" else None,
        ranker=ContentConfig(encoder=encoder, **settings),
        optimizer=OptimizerConfig(learning_rate=rate, weight_decay=0.0, embeddings="adamw", embedding_learning_rate=rate),
        loop=LoopConfig(epochs=study.epochs, seed=seed, patience=None, schedule="linear", gradient_clip=1.0),
        stream=replace(study.stream, seed=seed, valid_histories=study.valid_histories),
    )  # fmt: skip


def run_arm(study: ContentStudy, arm: str, seed: int, states: dict[int, Tensor], length: int | None) -> dict[str, Any]:
    """Train one model and judge it: what a line of the file holds."""
    experiment, started = experiment_of(study, arm, seed), time.perf_counter()
    experiment.check()
    if length is not None:
        experiment = replace(experiment, ranker=replace(experiment.ranker, max_history=length))
    task = KeptTask(experiment.task(), states, written_ids(experiment))
    progress = run_training(task, experiment.data(Worker()), experiment.loop, experiment.optimizer, Nowhere())
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    curve = {}
    for shorter in study.lengths:
        if length is None:
            cut = replace(experiment, ranker=replace(experiment.ranker, max_history=shorter))
            curve[shorter] = judge(cut, task)["test"]
    return {
        "arm": arm, "seed": seed, "trained_length": length, **judge(experiment, task), "by_history": curve,
        "valid": progress.evaluations["valid"]["impressions"],
        "parameters": trained, "seconds": progress.seconds, "wall": time.perf_counter() - started,
    }  # fmt: skip


def written_ids(experiment: ContentExperiment) -> Tensor:
    """(V,) sorted ids of the summaries of users, and those that start and end texts."""
    tokens = experiment.inputs().tokens
    ids = [np.asarray([tokens.record.start, tokens.record.end])]
    ids += [] if experiment.summary is None else [tokens.user_texts[experiment.summary].values]
    return torch.from_numpy(np.unique(np.concatenate(ids)).astype(np.int64))


@torch.no_grad()
def judge(experiment: ContentExperiment, task: KeptTask) -> dict[str, Any]:
    """Metrics of the test impressions: "test", their means; "left_out", by name the means without each group of users."""
    log = experiment.inputs().log
    stream = JudgedContents(experiment.inputs(), "test", experiment.stream)
    task.model.eval()
    rows, found = [], []
    for numbers, batch in stream.numbered_batches():
        rows.append(numbers)
        found.append(impression_metrics(task.predict(task.model, batch), batch.labels))
    return by_group(log, np.concatenate(rows), torch.cat(found).numpy())


def judge_untrained(log: ContentLog, scores: Scores) -> dict[str, Any]:
    """As ``judge``."""
    shown, rows = log.impressions, log.impressions.rows("test")
    rows = rows[np.argsort(shown.history[rows], kind="stable")]
    found = [
        impression_metrics(
            torch.from_numpy(scores(int(shown.history[row]), shown.candidates[row].astype(np.int64)))[None],
            torch.from_numpy(shown.labels[row].astype(np.int64))[None],
        )
        for row in rows
    ]
    return by_group(log, rows, torch.cat(found).numpy())


def by_group(log: ContentLog, rows: NDArray[np.int64], found: NDArray[np.float64]) -> dict[str, Any]:
    """Of impressions ``rows`` (R,) and their metrics (R, 4): means, and means without the users of each group."""
    there = ~np.isnan(found).any(1)
    groups = log.owners[log.impressions.history[rows]] % GROUPS
    kept = [found[there & (groups != group)].mean(0) for group in range(GROUPS)]
    return {
        "test": dict(zip(METRICS, found[there].mean(0).tolist(), strict=True)),
        "left_out": dict(zip(METRICS, np.stack(kept).T.tolist(), strict=True)),
    }


def _append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    test = line["test"]
    print(f"{line['arm']} {line['seed']}: " + ", ".join(f"{k} {v:.4f}" for k, v in test.items()), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    with told():
        run(tyro.cli(ContentStudy, description=__doc__))


if __name__ == "__main__":
    main()
