"""SPAR, EmbSum and their baselines side by side: python -m studies.content_rankers --content C --tokens T --out FILE.

One JSON line a run, appended as it ends: metrics on the test impressions, by history length too; runs that are there are not
repeated. Nothing is chosen on the test part. The encoder is frozen and read once for all runs, in sessions of one content, so
that a run takes minutes on a CPU.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from rayrec.data.content.streams import ContentStreamConfig
from rayrec.errors import told
from rayrec.families.content.experiment import ContentExperiment
from rayrec.families.content.task import ContentConfig, ContentTask
from rayrec.families.content.untrained import bm25, judge_scores, popularity
from rayrec.models.content_encoder import ContentEncoderConfig
from rayrec.models.content_ranker import ContentRanker
from rayrec.models.embsum import EmbsumConfig
from rayrec.models.spar import SparConfig
from rayrec.optim import OptimizerConfig
from rayrec.training.judging import judge_stream
from rayrec.training.loop import LoopConfig, Worker, run_training
from rayrec.training.reporters import CheckpointWriter


@dataclass(frozen=True)
class ContentStudy:
    """content, tokens: see ContentExperiment. text: version of user texts that SPAR reads and EmbSum learns to write.

    arms: of ARMS; none named = all. lengths: histories at which a trained model is judged again. dim: of all embeddings.
    """

    content: Path
    tokens: Path
    out: Path
    text: str | None = None
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    lengths: tuple[int, ...] = (5, 10, 20, 40, 60)
    dim: int = 64
    epochs: int = 4
    learning_rate: float = 1e-3
    valid_histories: int | None = 200
    stream: ContentStreamConfig = field(default_factory=lambda: ContentStreamConfig(positives=40))


_SPAR, _EMBSUM = (
    SparConfig(code_dim=32, window=256),
    EmbsumConfig(code_dim=32, decoder_feed_forward=128, max_summary=64),
)
ARMS: Mapping[str, Mapping[str, Any]] = {
    "two_tower": {"model": "two_tower"},
    "nrms": {"model": "nrms"},
    "miner": {"model": "miner"},
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


class _Nowhere:
    """Keeps no checkpoint: a run of minutes is repeated, not resumed."""

    def latest(self) -> Path | None:
        return None

    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        pass


class _SharedStates(ContentTask):
    """The task, with the frozen encoder's states shared by all runs of a study; ``model``: what was built last."""

    kept: dict[int, Tensor] = {}  # noqa: RUF012

    def build(self) -> ContentRanker:
        self.model = super().build()
        self.model.encoder.keep_states_in(self.kept)
        return self.model


def run(study: ContentStudy) -> None:
    """Every arm and seed that the file has not; the untrained ones first."""
    there = set()
    if study.out.is_file():
        there = {(line["arm"], line["seed"]) for line in map(json.loads, study.out.read_text().splitlines())}
    log = experiment_of(study, "two_tower", 0).inputs().log
    texts = study.text
    untrained = {"popularity": lambda: popularity(log), "bm25": lambda: bm25(log, 60)}
    if texts is not None:
        untrained["bm25 with the LLM's text"] = lambda: bm25(log, 60, texts)
    for arm, scores in untrained.items():
        if (arm, 0) not in there and not study.arms:
            _append(study.out, {"arm": arm, "seed": 0, "test": judge_scores(log, scores(), "test")})
    for seed in study.seeds:
        for arm in study.arms or tuple(ARMS):
            if (arm, seed) not in there:
                _append(study.out, run_arm(study, arm, seed))


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
        loop=LoopConfig(epochs=study.epochs, seed=seed, patience=None, schedule="linear", threads=1, gradient_clip=1.0),
        stream=replace(study.stream, seed=seed, valid_histories=study.valid_histories),
    )  # fmt: skip


def run_arm(study: ContentStudy, arm: str, seed: int) -> dict[str, Any]:
    """Train one model and judge it: what a line of the file holds."""
    experiment, started = experiment_of(study, arm, seed), time.perf_counter()
    plain = experiment.task()
    task = _SharedStates(plain.config, plain.vocabulary)
    progress = run_training(task, experiment.data(Worker()), experiment.loop, experiment.optimizer, _Nowhere())
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    curve = {}
    for length in study.lengths:
        shorter = replace(experiment, ranker=replace(experiment.ranker, max_history=length))
        batches = shorter.data(Worker()).open_evaluation("valid", 1).epoch_batches()
        curve[length] = judge_stream(task, task.model, batches)["impressions"]["auc"]
    return {
        "arm": arm, "seed": seed, "test": progress.evaluations["test"]["impressions"],
        "valid": progress.evaluations["valid"]["impressions"], "valid_auc_by_history": curve,
        "parameters": trained, "seconds": progress.seconds, "wall": time.perf_counter() - started,
    }  # fmt: skip


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
