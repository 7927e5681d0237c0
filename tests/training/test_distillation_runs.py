"""UKDSL from config to bundle: teachers by column and in the loop, ratio 0, resuming, and all methods in one run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rayrec.data.log import Log
from rayrec.data.log.collate import collate
from rayrec.data.log.streams import StreamConfig
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment, TeacherConfig
from rayrec.families.ranker.log_scoring import ScoringConfig, score_log
from rayrec.families.ranker.scoring import CalibrationConfig
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import CheckpointWriter, FolderReporter
from rayrec.typed_json import ConfigError
from tests.conftest import write_small_log

ARCHITECTURE = RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,), dropout=0.1)
PLAIN = RankingConfig(architecture=ARCHITECTURE)


def train(experiment: RankerExperiment, folder: Path) -> Path:
    reporter = FolderReporter(folder)
    train_here(experiment, reporter, say=lambda text: None)
    latest = reporter.latest()
    assert latest is not None
    return latest


def same_weights(left: Path, right: Path) -> bool:
    weights, others = best_weights(left), best_weights(right)
    return weights.keys() == others.keys() and all(torch.equal(t, others[name]) for name, t in weights.items())


@pytest.fixture(scope="module")
def logs(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labeled and unlabeled, scored by a teacher of one epoch (bundle) that sees every feature."""
    folder = tmp_path_factory.mktemp("ukdsl")
    unlabeled = write_small_log(folder / "raw_unlabeled", rows=8_000, seed=5, labeled=False)
    teacher = RankerExperiment(
        small_log,
        ranking=PLAIN,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        loop=LoopConfig(epochs=1),
        stream=StreamConfig(batch_size=256),
    )
    bundle = teacher.save_bundle(train(teacher, folder / "teacher"), folder / "bundle")
    score_log(ScoringConfig(bundle, small_log, folder / "labeled"), workers=0)
    score_log(ScoringConfig(bundle, unlabeled, folder / "unlabeled"), workers=0)
    return folder


@pytest.fixture
def student(logs: Path) -> RankerExperiment:
    """Sees neither age, the strongest feature, nor price."""
    return RankerExperiment(
        logs / "labeled",
        unlabeled=logs / "unlabeled",
        unlabeled_ratio=1.5,
        ignored_features=("age", "price"),
        ranking=replace(PLAIN, distillation=DistillationConfig(labeled_weight=0.5)),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        loop=LoopConfig(epochs=1, checkpoint_every_steps=9, patience=None),
        stream=StreamConfig(batch_size=512, window_rows=2048),
    )


class _KilledAfterOneCheckpoint(FolderReporter):
    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        super().report(metrics, write)
        raise KeyboardInterrupt


@pytest.mark.parametrize("head", ["shared", "auxiliary"])
def test_an_unlabeled_ratio_of_0_is_plain_supervised_training_bit_for_bit(student, tmp_path, head) -> None:
    distillation = DistillationConfig(unlabeled_weight=3.0, head=head)
    ratio_0 = replace(student, unlabeled_ratio=0.0, ranking=replace(PLAIN, distillation=distillation))
    plain = replace(student, unlabeled=None, unlabeled_ratio=0.0, ranking=PLAIN)
    assert same_weights(train(ratio_0, tmp_path / "ratio_0"), train(plain, tmp_path / "plain"))


def test_ukdsl_lspr_multibalance_and_rowwise_adagrad_train_together_resume_and_give_a_bundle(student, tmp_path) -> None:
    ranking = RankingConfig(
        architecture=ARCHITECTURE,
        distillation=DistillationConfig(labeled_weight=0.5, head="auxiliary"),
        perturbation=PerturbationConfig("lspr", 0.3, row_fraction=0.5),
        balancing=Multibalance(),
    )
    together = replace(student, ranking=ranking, loop=replace(student.loop, epochs=2))
    assert together.optimizer.embeddings == "rowwise_adagrad"
    undisturbed = train(together, tmp_path / "undisturbed")
    progress = read_progress(undisturbed)
    assert progress.evaluations["test"]["click"]["auc"] > 0.6
    logged = {point.metric for point in progress.curve if point.split == "train"}
    assert {"distillation_unlabeled/click_teacher", "perturbed/click", "balance/click_teacher"} <= logged
    with pytest.raises(KeyboardInterrupt):
        train_here(together, _KilledAfterOneCheckpoint(tmp_path / "killed"), say=lambda text: None)
    assert same_weights(undisturbed, train(together, tmp_path / "killed"))
    bundle = load_bundle(together.save_bundle(undisturbed, tmp_path / "bundle"))
    assert [feature.name for feature in bundle.schema.features] == ["user", "item", "history"]


def test_a_teacher_in_the_loop_trains_what_its_precomputed_scores_train(student, logs, tmp_path) -> None:
    by_column = best_weights(train(student, tmp_path / "column"))
    in_loop = best_weights(train(replace(student, teacher=TeacherConfig(logs / "bundle")), tmp_path / "loop"))
    for name, tensor in by_column.items():  # scores of other batch sizes differ in the last bits
        torch.testing.assert_close(in_loop[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_teachers_calibration_is_fitted_on_labeled_rows_before_it_teaches(student, logs, tmp_path) -> None:
    calibrated = TeacherConfig(logs / "bundle", CalibrationConfig(logs / "labeled", "isotonic"))
    progress = read_progress(train(replace(student, teacher=calibrated), tmp_path / "run"))
    plain = read_progress(train(student, tmp_path / "plain"))
    assert progress.evaluations["test"]["click"]["auc"] > 0.6
    assert progress.evaluations != plain.evaluations


def test_the_teachers_scores_of_unlabeled_rows_teach_the_student(student, tmp_path) -> None:
    """Only unlabeled rows reach it (their weight is 1000 times that of labels): its predictions follow the teacher's."""
    distillation = DistillationConfig(unlabeled_weight=1000.0)
    taught = replace(student, ranking=replace(PLAIN, distillation=distillation), loop=replace(student.loop, epochs=3))
    bundle = load_bundle(taught.save_bundle(train(taught, tmp_path / "run"), tmp_path / "bundle"))
    table = pq.read_table(list(Log.open(taught.log).files("test")))
    with torch.no_grad():
        predicted = bundle.model(collate(table, bundle.schema)).sigmoid()[:, 0]
    teacher = torch.tensor(table.column("teacher_click").to_numpy())
    assert torch.corrcoef(torch.stack([predicted, teacher]))[0, 1] > 0.4
    assert float(predicted.mean()) == pytest.approx(float(teacher.mean()), abs=0.03)


def test_what_cannot_be_taught_is_refused_by_name(student, logs, small_log, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no column teacher_click.*score_log"):
        replace(student, log=small_log).check()
    with pytest.raises(ConfigError, match="ignored_features names no feature: height"):
        replace(student, ignored_features=("height",)).check()
    with pytest.raises(ConfigError, match="does not ask"):
        replace(student, teacher=TeacherConfig(logs / "bundle"), ranking=PLAIN)
