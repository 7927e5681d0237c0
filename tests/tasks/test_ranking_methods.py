"""Methods inside the ranking task: none of them changes plain training, and they train, resume and bundle together."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrec.batch import Batch
from rayrec.data.log import Log
from rayrec.data.log.schema import read_schema, write_schema
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.methods.balancing import Balancing, find_methods
from rayrec.methods.balancing.combining import Combining
from rayrec.methods.balancing.fixed import Fixed
from rayrec.methods.balancing.gradnorm import Gradnorm
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.balancing.pcgrad import Pcgrad
from rayrec.methods.balancing.running_min_norm import RunningMinNorm
from rayrec.methods.balancing.uncertainty import Uncertainty
from rayrec.methods.balancing.uniform import Uniform
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.means import masked_cross_entropy
from rayrec.methods.method import Method, MethodConfig, Rows, Sizes, Tasks, Term
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import CheckpointWriter, FolderReporter
from rayrec.typed_json import ConfigError
from tests.conftest import write_small_log

TOGETHER = RankingConfig(
    architecture=RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,), dropout=0.1),
    balancing=RunningMinNorm(),
    perturbation=PerturbationConfig("lspr", 0.3, feature_dropout=0.05, item_drop=0.05, row_fraction=0.5),
)


@pytest.fixture
def experiment(small_log: Path) -> RankerExperiment:
    return RankerExperiment(
        log=small_log,
        ranking=TOGETHER,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        loop=LoopConfig(epochs=2, checkpoint_every_steps=7, patience=None),
        stream=StreamConfig(batch_size=512, window_rows=2048),
    )


def train(experiment: RankerExperiment, folder: Path) -> Path:
    reporter = FolderReporter(folder)
    train_here(experiment, reporter, say=lambda text: None)
    latest = reporter.latest()
    assert latest is not None
    return latest


def first_batch(folder: Path):
    with LogStream(Log.open(folder), "valid", StreamConfig(batch_size=64), epochs=1) as stream:
        return next(stream.epoch_batches())


class _KilledAfterOneCheckpoint(FolderReporter):
    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        super().report(metrics, write)
        raise KeyboardInterrupt


def test_lspr_and_multibalance_train_together_resume_and_give_a_plain_bundle(
    experiment: RankerExperiment, tmp_path: Path
) -> None:
    undisturbed = train(experiment, tmp_path / "undisturbed")
    progress = read_progress(undisturbed)
    assert progress.evaluations["test"]["click"]["auc"] > 0.65
    logged = {point.metric for point in progress.curve if point.split == "train"}
    assert {"loss/click", "perturbed/click", "balance/click", "balance/buy"} <= logged
    with pytest.raises(KeyboardInterrupt):
        train_here(experiment, _KilledAfterOneCheckpoint(tmp_path / "killed"), say=lambda text: None)
    resumed = train(experiment, tmp_path / "killed")
    for name, tensor in best_weights(undisturbed).items():
        assert torch.equal(tensor, best_weights(resumed)[name]), name
    bundle = load_bundle(experiment.save_bundle(undisturbed, tmp_path / "bundle"))
    assert not [name for name in bundle.model.state_dict() if "balancer" in name or "perturbation" in name]


def test_methods_of_no_strength_train_the_very_weights_of_plain_training(
    experiment: RankerExperiment, tmp_path: Path
) -> None:
    plain = replace(TOGETHER, balancing=None, perturbation=None)
    off = replace(TOGETHER, balancing=None, perturbation=PerturbationConfig("scr", 0.0, category_swap=0.5))
    uniform = replace(plain, balancing=Uniform())
    weights = [
        best_weights(train(replace(experiment, ranking=ranking), tmp_path / str(i)))
        for i, ranking in enumerate((plain, off, uniform))
    ]
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("form", ["balanced", "additive"])
def test_the_loss_of_lspr_is_the_stated_mixture_of_its_parts(small_log: Path, form: str) -> None:
    perturbation = PerturbationConfig("lspr", 0.3, form)  # type: ignore[arg-type]
    task = RankingTask(Log.open(small_log).schema, RankingConfig(perturbation=perturbation))
    loss = task.loss(task.build(), first_batch(small_log))
    clean, perturbed = (loss.parts[f"{part}/click"] + loss.parts[f"{part}/buy"] for part in ("loss", "perturbed"))
    torch.testing.assert_close(loss.total.detach(), (0.7 if form == "balanced" else 1.0) * clean + 0.3 * perturbed)
    assert not torch.equal(clean, perturbed)


def test_vanishing_noise_makes_lspr_plain_and_scr_silent(small_log: Path) -> None:
    tiny = {"dense_noise": 1e-7, "embedding_noise": 1e-7, "row_fraction": 1.0}
    batch = first_batch(small_log)
    for loss_kind in ("lspr", "scr"):
        perturbation = PerturbationConfig(loss_kind, 0.5, **tiny)  # type: ignore[arg-type]
        task = RankingTask(Log.open(small_log).schema, RankingConfig(perturbation=perturbation))
        model = task.build()
        loss = task.loss(model, batch)
        plain = masked_cross_entropy(model(batch), batch.labels)
        torch.testing.assert_close(loss.total.detach(), plain.sum().detach())


def test_scr_takes_unlabeled_rows_along_and_asks_for_them(small_log: Path, tmp_path: Path) -> None:
    perturbation = PerturbationConfig("scr", 2.0, unlabeled=True, dense_noise=0.5, embedding_noise=0.5)
    task = RankingTask(Log.open(small_log).schema, RankingConfig(perturbation=perturbation))
    model, batch = task.build(), first_batch(small_log)
    with pytest.raises(ConfigError, match="unlabeled_ratio"):
        RankerExperiment(log=small_log, ranking=task.config)
    unlabeled = first_batch(write_small_log(tmp_path / "unlabeled", rows=256, seed=5, labeled=False))
    loss = task.loss(model, batch, unlabeled)
    assert loss.outputs.shape == (64, 2)
    labeled_only = RankingTask(task.schema, replace(task.config, perturbation=replace(perturbation, unlabeled=False)))
    alone = labeled_only.loss(model, batch)
    assert loss.parts["loss/click"] == pytest.approx(float(alone.parts["loss/click"]))
    assert loss.parts["perturbed/click"] > 0
    assert loss.parts["perturbed/click"] != alone.parts["perturbed/click"]
    loss.total.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "balancing",
    [
        Uncertainty(),
        *(
            kind(level=level)
            for kind in (Multibalance, RunningMinNorm, Pcgrad, Gradnorm)
            for level in ("representation", "parameters")
        ),
    ],
    ids=str,
)
def test_every_kind_of_balancing_trains_with_sparse_tables(
    experiment: RankerExperiment, tmp_path: Path, balancing: Balancing
) -> None:
    ranking = replace(TOGETHER, balancing=balancing, perturbation=None)
    short = replace(experiment, ranking=ranking, loop=replace(experiment.loop, epochs=1))
    progress = read_progress(train(short, tmp_path / "run"))
    assert progress.evaluations["test"]["click"]["normalized_entropy"] < 1.0


@pytest.mark.parametrize("level", ["representation", "parameters"])
@pytest.mark.parametrize("kind", [kind for kind in find_methods() if issubclass(kind, Combining) and kind is not Fixed])
def test_tasks_get_the_weights_of_float32_in_bfloat16(small_log: Path, kind: Any, level: str) -> None:
    """The same gradients but for rounding, and all that follows from them in float32."""
    config, batch, found = replace(TOGETHER, balancing=kind(level=level), perturbation=None), first_batch(small_log), []
    for bf16 in (False, True):
        torch.manual_seed(0)
        task = RankingTask(Log.open(small_log).schema, config)
        model = task.build().eval()
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = task.loss(model, batch)
            loss.total.backward()
        trunk = [p.grad.flatten() for name, p in model.named_parameters() if name.startswith("trunk")]
        found.append(
            (torch.stack([loss.parts[f"balance/{name}"] for name in task.schema.task_names]), torch.cat(trunk))
        )
    (weights, gradient), (half_weights, half_gradient) = found
    torch.testing.assert_close(half_weights, weights, rtol=0.03, atol=0.005)
    assert (half_gradient - gradient).norm() <= 0.05 * gradient.norm()


def test_the_summed_gradient_statistic_knows_the_representations_width(small_log: Path) -> None:
    for architecture in (RankerArchitecture(), RankerArchitecture(experts=3), RankerArchitecture(structure="parallel")):
        config = RankingConfig(architecture=architecture, balancing=RunningMinNorm(statistic="summed_gradient"))
        task = RankingTask(Log.open(small_log).schema, config)
        task.loss(task.build(), first_batch(small_log)).total.backward()


def test_a_balancing_config_that_does_not_fit_the_tasks_is_refused(small_log: Path) -> None:
    config = RankingConfig(balancing=Fixed(shares=(1.0,)))
    with pytest.raises(ConfigError, match="balancing: shares has 1"):
        RankingTask(Log.open(small_log).schema, config)


def test_a_single_task_of_a_log_trains_as_if_the_log_had_no_other(
    experiment: RankerExperiment, small_log: Path, tmp_path: Path
) -> None:
    one = replace(experiment, tasks=("click",))
    alone = Path(shutil.copytree(small_log, tmp_path / "alone"))
    schema = read_schema(alone / "schema.json")
    write_schema(replace(schema, tasks=schema.tasks[:1]), alone / "schema.json")
    checkpoint = train(one, tmp_path / "one")
    expected = best_weights(train(replace(experiment, log=alone), tmp_path / "expected"))
    weights = best_weights(checkpoint)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert {split: list(tasks) for split, tasks in read_progress(checkpoint).evaluations.items()} == {
        "valid": ["click"], "test": ["click"]
    }  # fmt: skip
    assert load_bundle(one.save_bundle(checkpoint, tmp_path / "bundle")).schema.task_names == ("click",)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("klick",), "names no task: klick; tasks: click, buy"),
        ((), "it is empty"),
        (("buy",), "task buy is observed where click is 1: choose both"),
    ],
)
def test_tasks_that_cannot_be_learned_are_refused(
    experiment: RankerExperiment, tasks: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(experiment, tasks=tasks).check()


@dataclass(frozen=True)
class _ShrunkLogits(MethodConfig):
    """A fifth method, in one file: squared logits of a second look at every row, with a head of its own."""

    strength: float = 0.1

    def method(self, tasks: Tasks) -> Method:
        return _Shrinking(self.strength, tasks)


class _Shrinking(Method):
    def __init__(self, strength: float, tasks: Tasks) -> None:
        super().__init__()
        self.strength = strength
        self.own_heads = {f"{name}_small": name for name in tasks.names}
        self.first = tasks.heads

    def term(self, rows: Rows, batch: Batch, unlabeled: Batch | None, sizes: Sizes) -> Term:
        place = rows.add(rows.embedded(batch))

        def add(losses: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
            squares = outputs[place].square().mean(0)
            return losses + self.strength * squares, {"small": squares}

        return add


@dataclass(frozen=True)
class _FiveMethods(RankingConfig):
    shrunk: _ShrunkLogits | None = None


def test_a_fifth_method_is_one_file_and_the_field_that_switches_it_on(small_log: Path) -> None:
    architecture = RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,))
    plain = {"architecture": architecture, "distillation": DistillationConfig(head="auxiliary")}
    unlabeled = replace(first_batch(small_log), extras={"teacher_click": torch.rand(64), "teacher_buy": torch.rand(64)})
    task = RankingTask(Log.open(small_log).schema, _FiveMethods(**plain, shrunk=_ShrunkLogits(0.5)))  # type: ignore[arg-type]
    assert task.heads == ("click", "buy", "click_teacher", "buy_teacher", "click_small", "buy_small")
    assert "shrunk" in dict(task.methods.named_children())
    model = task.build()
    batch = first_batch(small_log)
    loss = task.loss(model, batch, unlabeled)
    outputs = model.heads(model.represent(batch))
    torch.testing.assert_close(loss.parts["small/buy_small"], outputs[:, 5].square().mean().detach())
    without = [loss.parts[f"{part}/{task}"] for part in ("loss",) for task in ("click", "buy")]
    without += [loss.parts[f"distillation_unlabeled/{head}"] for head in task.heads[2:4]]
    torch.testing.assert_close(loss.total.detach(), sum(without) + 0.5 * outputs.square().mean(0).sum().detach())
