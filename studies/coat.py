"""Coat: what a model of self-chosen ratings is worth on random ones: python -m studies.coat

Training rows are ratings of coats that users chose themselves, test rows ratings of coats shown at random (the truth), unlabeled
rows all pairs of a user and a coat. Supervised, inverse propensity weighting, self-training and UKDSL, whose teacher is a larger
model, trained with propensities or without; in one arm the student of the latter weighs its own labels by them. The task is
liking (a rating of 4 or 5). Every arm ends with its last weights. Each seed is done once and kept in --folder.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from rayrec.data.log.streams import StreamConfig
from rayrec.data.public.logs import import_public
from rayrec.errors import told
from rayrec.families.ranker.experiment import RankerExperiment, TeacherConfig
from rayrec.families.ranker.task import RankingConfig
from rayrec.files import write_text_atomically
from rayrec.kept_options import hold_to_options, options_of
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from studies.seeds_table import show

METRICS = ("log_loss", "normalized_entropy", "auc", "ece", "calibration_ratio")
STUDENT = RankerArchitecture(embedding_dim=4, interaction="none", trunk=(16,), tower=())
TEACHER = RankerArchitecture(embedding_dim=16, cross_layers=2, trunk=(128, 64), tower=(), dropout=0.2)


@dataclass(frozen=True)
class Command:
    """Options of the study."""

    folder: Path
    """Where results are kept; a stopped study goes on."""
    source: Path | None = None
    """The data set's folder; None = below RAYREC_DATA."""
    seeds: int = 10
    """Runs of each arm."""
    ratio: float = 4.0
    """Pairs per rating, each counted like a rating."""
    epochs: int = 6
    """Of every arm."""


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(1)
    with told():
        show([seed_metrics(command, seed) for seed in range(command.seeds)], METRICS)


def seed_metrics(command: Command, seed: int) -> Mapping[str, Mapping[str, float]]:
    """Metrics on the random ratings, by arm; imports the data set when that has not been done.

    Raises ConfigError when the folder holds results of other options.
    """
    options = options_of(command, but=("folder", "seeds"))
    hold_to_options(command.folder / "options.json", options, "seed-*.json", "pairs")
    if not (command.folder / "pairs").is_dir():
        shutil.rmtree(command.folder / "ratings", ignore_errors=True)
        import_public("coat", command.folder / "ratings", command.source, unlabeled=command.folder / "pairs")
    file = command.folder / f"seed-{seed}.json"
    if file.is_file():
        found: Mapping[str, Mapping[str, float]] = json.loads(file.read_text())
        return found
    scratch = command.folder / f"seed-{seed}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    supervised = RankerExperiment(
        command.folder / "ratings",
        ranking=RankingConfig(architecture=STUDENT),
        optimizer=OptimizerConfig(learning_rate=5e-3, embedding_learning_rate=0.02),
        loop=LoopConfig(epochs=command.epochs, seed=seed, schedule="linear", patience=None, keep="last"),
        stream=StreamConfig(batch_size=64, seed=seed),
    )
    weighted = replace(supervised, ranking=replace(supervised.ranking, inverse_propensity=InversePropensity()))
    teacher = replace(supervised, ranking=replace(supervised.ranking, architecture=TEACHER))
    weighted_teacher = replace(weighted, ranking=replace(weighted.ranking, architecture=TEACHER))
    taught = replace(
        supervised,
        unlabeled=command.folder / "pairs",
        unlabeled_ratio=command.ratio,
        ranking=replace(supervised.ranking, distillation=DistillationConfig(unlabeled_weight=command.ratio)),
    )
    unweighted = replace(taught, teacher=TeacherConfig(scratch / "teacher"))
    metrics = {}
    for name, experiment in {
        "supervised": supervised,
        "ipw": weighted,
        "self_training": replace(taught, teacher=TeacherConfig(scratch / "supervised")),
        "teacher": teacher,
        "weighted_teacher": weighted_teacher,
        "ukdsl": replace(taught, teacher=TeacherConfig(scratch / "weighted_teacher")),
        "ukdsl_unweighted": unweighted,
        "ukdsl_unweighted_ipw": replace(
            unweighted, ranking=replace(unweighted.ranking, inverse_propensity=InversePropensity())
        ),
    }.items():
        metrics[name] = _train(experiment, scratch / name)
    shutil.rmtree(scratch)
    write_text_atomically(file, json.dumps(metrics))
    print(
        f"seed {seed}: " + ", ".join(f"{name} {values['log_loss']:.5f}" for name, values in metrics.items()), flush=True
    )
    return metrics


def _train(experiment: RankerExperiment, bundle: Path) -> dict[str, float]:
    reporter = FolderReporter(bundle.with_name(f"{bundle.name}-training"))
    train_here(experiment, reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    experiment.save_bundle(checkpoint, bundle)
    measured = read_progress(checkpoint).evaluations["test"]["liked"]
    return {name: np.nan if (value := measured[name]) is None else value for name in METRICS}


if __name__ == "__main__":
    main()
