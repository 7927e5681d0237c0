"""Census-Income under a simulated selection, true labels kept aside: python -m studies.census_selection

A model of the past, trained on a sixth of the training rows, selects 3 of each 20 people by its noisy logit of income; only those
keep their labels, as if the others had never been shown. The students lack much of what selection hangs on (``HIDDEN``), the
teacher has it; neither sees the noise. All are judged on the true labels of all test rows, selected or not, and on selected
validation rows. Each seed is done once and kept in --folder.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from rayrec.data.log import Log
from rayrec.data.log.scarce_labels import keep_labels
from rayrec.data.log.streams import StreamConfig
from rayrec.data.public.logs import import_public
from rayrec.families.ranker.experiment import RankerExperiment, TeacherConfig
from rayrec.families.ranker.log_scoring import ScoringConfig, score_log
from rayrec.families.ranker.task import RankingConfig
from rayrec.files import write_text_atomically
from rayrec.methods.distillation import DistillationConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from studies.simulated_selection import SelectionConfig, simulate_selection

METRICS = ("log_loss", "normalized_entropy", "auc", "ece", "calibration_ratio")
SPLITS = {"all test rows": "test", "selected validation rows": "valid"}
HIDDEN = (
    "occupation_code",
    "major_occupation",
    "industry_code",
    "major_industry",
    "education",
    "capital_gains",
    "dividends",
)
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


Metrics = dict[str, dict[str, float]]


def main() -> None:
    command = tyro.cli(Command, description=__doc__)
    torch.set_num_threads(1)
    report = run(command)
    for split, arms in report.items():
        print(f"\n{split}\n{'arm':<24}" + "".join(f"{name:>24}" for name in METRICS))
        for arm, values in arms.items():
            print(f"{arm:<24}" + "".join(f"{f'{m:.5f} ± {e:.5f}':>24}" for m, e in values.values()))
    print(json.dumps({"seeds": command.seeds, **report}))


def run(command: Command) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Mean and standard error over seeds by split, arm and metric."""
    if not (command.folder / "census").is_dir():
        import_public("census-income", command.folder / "census", command.source)
    results = [_seed(command, seed) for seed in range(command.seeds)]
    report: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for split in SPLITS:
        report[split] = {}
        for arm in results[0]:
            values = np.array([[result[arm][split][name] for name in METRICS] for result in results])
            errors = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(len(METRICS), np.nan)
            report[split][arm] = {
                n: (round(float(m), 5), round(float(e), 5))
                for n, m, e in zip(METRICS, values.mean(0), errors, strict=True)
            }
    return report


def _seed(command: Command, seed: int) -> dict[str, Metrics]:
    """Metrics by arm and split."""
    file = command.folder / f"seed-{seed}.json"
    if file.is_file():
        found: dict[str, Metrics] = json.loads(file.read_text())
        return found
    scratch = command.folder / f"seed-{seed}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    census, chosen = Log.open(command.folder / "census"), scratch / "chosen"
    keep_labels(census, 1 / 6, scratch / "past-rows", seed=seed, whole_validation=True)
    past = RankerExperiment(
        scratch / "past-rows" / "labeled",
        tasks=("income",),
        ranking=RankingConfig(architecture=LINEAR),
        optimizer=OptimizerConfig(learning_rate=1e-2, embedding_learning_rate=0.05, embedding_weight_decay=1e-3),
        loop=LoopConfig(epochs=command.epochs, seed=seed, schedule="linear", patience=None),
        stream=StreamConfig(batch_size=128, seed=seed),
    )
    _train(past, scratch / "past")
    scored = score_log(ScoringConfig(scratch / "past", census.path, scratch / "scored", {"income": "past"}), workers=0)
    simulate_selection(scored, SelectionConfig("past", seed=seed), chosen)
    teacher = replace(past, log=chosen / "labeled")
    student = replace(teacher, ignored_features=HIDDEN, ranking=RankingConfig(architecture=STUDENT))
    unlabeled = replace(
        student, unlabeled=chosen / "unlabeled", unlabeled_ratio=command.ratio, loop=replace(past.loop, keep="last")
    )
    counted = DistillationConfig(unlabeled_weight=command.ratio)
    taught = replace(unlabeled, ranking=replace(student.ranking, distillation=counted))
    negative = replace(unlabeled, ranking=replace(student.ranking, distillation=replace(counted, target="negative")))
    results = {}
    for name, experiment in {
        "teacher": teacher,
        "supervised": student,
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
    measured = read_progress(checkpoint).evaluations
    return {
        name: {metric: np.nan if (value := measured[split]["income"][metric]) is None else value for metric in METRICS}
        for name, split in SPLITS.items()
    }


if __name__ == "__main__":
    main()
