"""Census-Income under a simulated selection, true labels kept aside: python -m studies.census_selection

A model of the past, trained on a sixth of the training rows, selects 3 of each 20 people by its noisy logit of income; only those
keep their labels, as if the others had never been shown. With --selector never_married it selects by that instead: those who
are not selected then earn *more*, and candidates are wrong as negatives. The students lack much of what selection hangs on
(``HIDDEN``), the teacher has it; neither sees the noise. All end with their last weights, and are judged on the true labels of
all test rows, selected or not, and on selected validation rows. Each seed is done once and kept in --folder.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from rayrec.data.log import Log
from rayrec.data.log.scarce_labels import keep_labels
from rayrec.data.log.streams import StreamConfig
from rayrec.data.public.logs import import_public
from rayrec.errors import told
from rayrec.families.ranker.experiment import RankerExperiment, TeacherConfig
from rayrec.families.ranker.log_scoring import ScoringConfig, score_log
from rayrec.families.ranker.task import RankingConfig
from rayrec.files import write_text_atomically
from rayrec.kept_options import hold_to_options, options_of
from rayrec.methods.distillation import DistillationConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from studies.seeds_table import show
from studies.simulated_selection import SelectionConfig, simulate_selection

METRICS = ("log_loss", "normalized_entropy", "auc", "ece", "calibration_ratio")
SPLITS = {"all test rows": "test", "selected validation rows": "valid"}
HIDDEN = {
    "income": (
        "occupation_code",
        "major_occupation",
        "industry_code",
        "major_industry",
        "education",
        "capital_gains",
        "dividends",
    ),
    "never_married": (
        "age",
        "tax_filer_status",
        "household_and_family_detail",
        "household_summary",
        "parents_present",
        "education",
    ),
}
LINEAR = RankerArchitecture(embedding_dim=1, interaction="none", trunk=(), tower=())
STUDENT = RankerArchitecture(embedding_dim=4, interaction="none", trunk=(16,), tower=())


@dataclass(frozen=True)
class Command:
    """Options of the study."""

    folder: Path
    """Where results are kept; a stopped study goes on."""
    source: Path | None = None
    """The data set's folder; None = below RAYREC_DATA."""
    seeds: int = 5
    """Runs of each arm."""
    ratio: float = 4.0
    """Unlabeled rows per labeled row, each counted like one."""
    epochs: int = 8
    """Of every arm."""
    selector: Literal["income", "never_married"] = "income"
    """Whose noisy logit selects."""


Metrics = dict[str, dict[str, float]]


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(1)
    with told():
        results = run(command)
        for split in SPLITS:
            print(f"\n{split}")
            show([{arm: found[split] for arm, found in result.items()} for result in results], METRICS)


def run(command: Command) -> list[dict[str, Metrics]]:
    """Metrics by arm and split, of each seed. Raises ConfigError when the folder holds results of other options."""
    options = options_of(command, but=("folder", "seeds", "selector"))  # a result's name says its selector
    hold_to_options(command.folder / "options.json", options, "*-*.json", "census")
    if not (command.folder / "census").is_dir():
        import_public("census-income", command.folder / "census", command.source)
    return [_seed(command, seed) for seed in range(command.seeds)]


def _seed(command: Command, seed: int) -> dict[str, Metrics]:
    file = command.folder / f"{command.selector}-{seed}.json"
    if file.is_file():
        found: dict[str, Metrics] = json.loads(file.read_text())
        return found
    scratch = command.folder / f"{command.selector}-{seed}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    census, chosen = Log.open(command.folder / "census"), scratch / "chosen"
    keep_labels(census, 1 / 6, scratch / "past-rows", seed=seed, whole_validation=True)
    past = RankerExperiment(
        scratch / "past-rows" / "labeled",
        tasks=(command.selector,),
        ranking=RankingConfig(architecture=LINEAR, objective="log_loss"),  # defined where no selected row earns much
        optimizer=OptimizerConfig(learning_rate=1e-2, embedding_learning_rate=0.05, embedding_weight_decay=1e-3),
        loop=LoopConfig(epochs=command.epochs, seed=seed, schedule="linear", patience=None, keep="last"),
        stream=StreamConfig(batch_size=128, seed=seed),
    )
    _train(past, scratch / "past")
    scored = score_log(
        ScoringConfig(scratch / "past", census.path, scratch / "scored", {command.selector: "past"}), workers=0
    )
    simulate_selection(scored, SelectionConfig("past", seed=seed), chosen)
    teacher = replace(past, log=chosen / "labeled", tasks=("income",))
    small = replace(teacher.ranking, architecture=STUDENT)
    student = replace(teacher, ignored_features=HIDDEN[command.selector], ranking=small)
    unlabeled = replace(student, unlabeled=chosen / "unlabeled", unlabeled_ratio=command.ratio)
    counted = DistillationConfig(unlabeled_weight=command.ratio)
    taught = replace(unlabeled, ranking=replace(student.ranking, distillation=counted))
    negative = replace(unlabeled, ranking=replace(student.ranking, distillation=replace(counted, target="negative")))
    results = {}
    for name, experiment in {
        "supervised": student,
        "teacher": teacher,
        "self-training": replace(taught, teacher=TeacherConfig(scratch / "supervised")),
        "candidates as negatives": negative,
        "UKDSL": replace(taught, teacher=TeacherConfig(scratch / "teacher")),
    }.items():
        results[name] = _train(experiment, scratch / name)
    shutil.rmtree(scratch)
    write_text_atomically(file, json.dumps(results))
    print(
        f"seed {seed}: " + ", ".join(f"{arm} {m['all test rows']['ece']:.4f}" for arm, m in results.items()), flush=True
    )
    return results


def _train(experiment: RankerExperiment, bundle: Path) -> Metrics:
    reporter = FolderReporter(bundle.with_name(f"{bundle.name}-training"))
    train_here(experiment, reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    experiment.save_bundle(checkpoint, bundle)
    assert experiment.tasks is not None
    (task,), measured = experiment.tasks, read_progress(checkpoint).evaluations
    return {
        name: {metric: np.nan if (value := measured[split][task][metric]) is None else value for metric in METRICS}
        for name, split in SPLITS.items()
    }


if __name__ == "__main__":
    main()
