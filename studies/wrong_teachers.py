"""UKDSL on fresh worlds, against how wrong its teacher is: python -m studies.wrong_teachers --out FOLDER.

Worlds of seeds that nothing was chosen on, with two generators of the truth: signals that add up, and signals through a random
network, which no linear teacher can be right about. Several teachers are fitted to each world's impressions; which one is used
is chosen by their normalized entropy on validation impressions alone. From each of them a student learns, beside supervised
training and candidates as negatives. Every model is judged twice, with the weights that were best on validation impressions and
with its last ones, against the true probabilities (see studies.funnel_study). What is done is kept in the folder.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from rayrec.data.log import Log
from rayrec.data.simulation import SimulatedLogs, SimulationConfig, simulate, teacher_only_features
from rayrec.errors import told
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.log_scoring import ScoringConfig, score_log
from rayrec.files import write_text_atomically
from rayrec.kept_options import hold_to_options, options_of
from rayrec.methods.distillation import DistillationConfig
from rayrec.metrics.paired import mean_estimate, paired_difference
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.reporting import Table
from rayrec.reporting.page import text_table
from rayrec.training.checkpoint import read_progress
from rayrec.training.experiment import train_here
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import RunOptions, Worker
from rayrec.typed_json import from_json, to_json, to_plain
from studies.funnel_study import ArmResult, FunnelStudyConfig, judge_student

Form = Literal["linear", "network"]
Weights = Literal["best", "last"]
WEIGHTS: tuple[Weights, ...] = ("best", "last")
SUPERVISED, NEGATIVES, CHOSEN = "supervised", "candidates as negatives", "UKDSL, chosen teacher"


@dataclass(frozen=True)
class TeacherPlan:
    """One way to make a teacher; it ends with its last weights."""

    name: str
    architecture: RankerArchitecture
    epochs: int = 4
    learning_rate: float = 0.01
    embedding_learning_rate: float = 0.01
    ignored_features: tuple[str, ...] = ()


_LINEAR = RankerArchitecture(embedding_dim=1, interaction="none", trunk=(), tower=())
TEACHERS = (
    TeacherPlan("linear, crosses", _LINEAR, 6, 0.02, 0.05),
    TeacherPlan("linear, no crosses", _LINEAR, 6, 0.02, 0.05, ("segment_category", "signal_product")),
    TeacherPlan("linear, one epoch", _LINEAR, 1),
    TeacherPlan("dot products", RankerArchitecture(embedding_dim=8, interaction="dot", trunk=(), tower=())),
    TeacherPlan("network", RankerArchitecture(embedding_dim=4, interaction="none", trunk=(32, 16), tower=())),
)


@dataclass(frozen=True)
class WrongTeachers:
    """Do what is missing, and print the tables."""

    out: Path
    """Folder of results; a stopped study goes on."""
    forms: tuple[Form, ...] = ("linear", "network")
    """Generators of the truth."""
    seeds: tuple[int, ...] = (200, 201, 202, 203, 204)
    """Of the worlds."""
    ratio: float = 4.0
    """Unlabeled rows per labeled row."""
    study: FunnelStudyConfig = field(default_factory=lambda: FunnelStudyConfig(candidates=400_000))
    """Size, funnel, and how students train."""
    stop_after: float | None = None
    """Seconds after which no further model is trained."""


@dataclass(frozen=True)
class Found:
    """A model of one world. validation: its normalized entropy on validation impressions, of these weights."""

    name: str
    weights: Weights
    validation: float
    result: ArmResult


def run(command: WrongTeachers, teachers: Sequence[TeacherPlan] = TEACHERS) -> dict[Form, list[list[Found]]]:
    """By form the models of each world that is whole. Raises ConfigError when the folder holds results of other options."""
    options = options_of(command, but=("out", "forms", "seeds", "stop_after"))
    plans = {plan.name: to_plain(plan) for plan in teachers}
    hold_to_options(command.out / "options.json", {**options, "teachers": plans}, "*-*/*")
    began = time.monotonic()
    whole: dict[Form, list[list[Found]]] = {form: [] for form in command.forms}
    for seed in command.seeds:
        for form in command.forms:
            world = _World(command, form, seed)
            for name, do in world.missing(teachers):
                if command.stop_after is not None and time.monotonic() - began > command.stop_after:
                    print(f"{form} {seed}: stopped before {name}; run again to go on", flush=True)
                    break
                started = time.monotonic()
                do()
                print(f"{form} {seed}: {name} ({time.monotonic() - started:.0f} s)", flush=True)
            else:
                whole[form].append(world.found(teachers))
    for form, worlds in whole.items():
        if worlds:
            print(f"\n{form} truth, {len(worlds)} worlds, mean ± standard error over worlds")
            print(text_table(arms_table(worlds, teachers)))
            print("by teacher, last weights")
            print(text_table(teachers_table(worlds, teachers)))
    return whole


def chosen_teacher(found: Sequence[Found], teachers: Sequence[TeacherPlan]) -> str:
    """The teacher of the lowest normalized entropy on validation impressions: all that one knows of it without the truth."""
    names = {f"teacher: {teacher.name}": teacher.name for teacher in teachers}
    last = [one for one in found if one.name in names and one.weights == "last"]
    return names[min(last, key=lambda one: one.validation).name]


def arms_table(worlds: Sequence[Sequence[Found]], teachers: Sequence[TeacherPlan]) -> Table:
    """Supervised, candidates as negatives, and the student of the chosen teacher; differences world by world."""
    rows = []
    for weights in WEIGHTS:
        arms = {name: [_of(w, name, weights) for w in worlds] for name in (SUPERVISED, NEGATIVES)}
        arms[CHOSEN] = [_of(w, f"UKDSL: {chosen_teacher(w, teachers)}", weights) for w in worlds]
        for name, of in arms.items():
            base = arms[SUPERVISED]
            eces = [one.candidates.ece for one in of]
            lower = [b.candidates.ece / ece for b, ece in zip(base, eces, strict=True)]
            losses, base_losses = ([one.candidates.log_loss for one in arm] for arm in (of, base))
            values, base_values = ([one.value for one in arm] for arm in (of, base))
            gain = paired_difference(np.log(values).tolist(), np.log(base_values).tolist())
            loss = paired_difference(losses, base_losses)
            nes, base_nes = ([one.impressions.normalized_entropy for one in arm] for arm in (of, base))
            ne = paired_difference(np.log(nes).tolist(), np.log(base_nes).tolist())
            rows.append(
                (weights, name, _mean([o.candidates.predicted_over_true for o in of], 2), _mean(eces, 4), _mean(lower, 2),
                 _interval(loss.mean, loss.low, loss.high, 4), _interval(100 * ne.mean, 100 * ne.low, 100 * ne.high, 2),
                 _interval(100 * gain.mean, 100 * gain.low, 100 * gain.high, 2))
            )  # fmt: skip
    return Table(
        ("weights", "arm", "all: predicted / true", "all: ECE", "supervised ECE / ECE", "all: log loss, less supervised",
         "impressions: NE, change %", "value, change %"),
        tuple(rows),
    )  # fmt: skip


def teachers_table(worlds: Sequence[Sequence[Found]], teachers: Sequence[TeacherPlan]) -> Table:
    """How wrong each teacher is on all candidates, and what its student gains."""
    rows = []
    picked = [chosen_teacher(world, teachers) for world in worlds]
    base = [_of(world, SUPERVISED, "last") for world in worlds]
    for teacher in teachers:
        seen = [_one(world, f"teacher: {teacher.name}", "last") for world in worlds]
        taught = [_of(world, f"UKDSL: {teacher.name}", "last") for world in worlds]
        rows.append(
            (teacher.name, f"{picked.count(teacher.name)}", _mean([one.validation for one in seen], 4),
             _mean([one.result.candidates.predicted_over_true for one in seen], 2),
             _mean([one.result.candidates.ece for one in seen], 4), _mean([one.candidates.ece for one in taught], 4),
             _mean([b.candidates.ece / one.candidates.ece for b, one in zip(base, taught, strict=True)], 2))
        )  # fmt: skip
    return Table(
        ("teacher", "worlds that chose it", "NE, validation impressions", "all: predicted / true", "all: ECE",
         "its student's ECE", "supervised ECE / student's"),
        tuple(rows),
    )  # fmt: skip


class _World:
    """One world's folder: logs while they are needed, bundles, and a JSON file for each model and its weights."""

    def __init__(self, command: WrongTeachers, form: Form, seed: int) -> None:
        self.command, self.seed = command, seed
        self.folder = command.out / f"{form}-{seed}"
        study = command.study
        self.simulation = SimulationConfig(
            seed=seed,
            requests=study.candidates // study.funnel.pool,
            valid_share=0.1,
            test_share=0.2,
            unlabeled_share=1.0,
            crossed_features=True,
            world=replace(study.world, signal_form=form),
            funnel=study.funnel,
        )

    def missing(self, teachers: Sequence[TeacherPlan]) -> list[tuple[str, Callable[[], None]]]:
        parts: list[tuple[str, Callable[[], None]]] = []
        for teacher in teachers:
            parts.append((f"teacher: {teacher.name}", lambda t=teacher: self._teach(t)))  # type: ignore[misc]
        parts.append((SUPERVISED, lambda: self._learn(SUPERVISED, None, None)))
        counted = DistillationConfig(unlabeled_weight=self.command.ratio)
        parts.append((NEGATIVES, lambda: self._learn(NEGATIVES, replace(counted, target="negative"), None)))
        for teacher in teachers:
            name = f"UKDSL: {teacher.name}"
            parts.append((name, lambda n=name, t=teacher: self._learn(n, counted, t)))  # type: ignore[misc]
        return [(name, do) for name, do in parts if not self._file(name, "last").is_file()]

    def found(self, teachers: Sequence[TeacherPlan]) -> list[Found]:
        """Of a world of which nothing is missing; its logs are no longer needed."""
        shutil.rmtree(self.folder / "world", ignore_errors=True)
        names = [f"{kind}: {t.name}" for kind in ("teacher", "UKDSL") for t in teachers]
        files = [self._file(name, weights) for name in (SUPERVISED, NEGATIVES, *names) for weights in WEIGHTS]
        return [from_json(Found, file.read_bytes(), str(file)) for file in files]

    def _file(self, name: str, weights: Weights) -> Path:
        return self.folder / f"{name.replace(': ', '-').replace(', ', '-').replace(' ', '-')}.{weights}.json"

    def _logs(self) -> SimulatedLogs:
        world = self.folder / "world"
        return SimulatedLogs.open(world) if world.is_dir() else simulate(self.simulation, world)

    def _teach(self, plan: TeacherPlan) -> None:
        plain = self.command.study.student(self._logs().labeled, self.seed)
        teacher = replace(
            plain,
            ignored_features=(*plain.ignored_features, *plan.ignored_features),
            ranking=replace(plain.ranking, architecture=plan.architecture),
            optimizer=OptimizerConfig(
                learning_rate=plan.learning_rate, embedding_learning_rate=plan.embedding_learning_rate
            ),
            loop=replace(plain.loop, epochs=plan.epochs),
        )
        self._train(f"teacher: {plan.name}", teacher)

    def _learn(self, name: str, distillation: DistillationConfig | None, plan: TeacherPlan | None) -> None:
        logs = self._logs()
        unlabeled = None if distillation is None else logs.unlabeled
        scored = self.folder / "scored"
        if plan is not None:
            shutil.rmtree(scored, ignore_errors=True)
            teacher = self._file(f"teacher: {plan.name}", "last").with_suffix(".bundle")
            score_log(ScoringConfig(teacher, logs.unlabeled, scored), workers=0)
            unlabeled = scored
        plain = self.command.study.student(logs.labeled, self.seed)
        hidden = teacher_only_features(Log.open(logs.labeled).schema)
        student = replace(
            plain,
            unlabeled=unlabeled,
            unlabeled_ratio=0.0 if distillation is None else self.command.ratio,
            ignored_features=(*plain.ignored_features, *hidden),
            ranking=replace(plain.ranking, distillation=distillation),
        )
        self._train(name, student)
        shutil.rmtree(scored, ignore_errors=True)

    def _train(self, name: str, experiment: RankerExperiment) -> None:
        """Train once, and judge both the best weights and those of the last step, which the checkpoint before the end holds."""
        started, training = time.monotonic(), self.folder / ".training"
        shutil.rmtree(training, ignore_errors=True)
        reporter = FolderReporter(training)
        worker = Worker(options=RunOptions(threads=1, reader="in_process"))
        train_here(experiment, reporter, worker=worker, say=lambda text: None)
        last, best = sorted(training.glob("checkpoint-*"))[-2:]
        (last / "best.safetensors").unlink(missing_ok=True)
        curve = [p.value for p in read_progress(best).curve if (p.split, p.task, p.metric) == _WATCHED]
        candidates, seconds = Log.open(self._logs().candidates), time.monotonic() - started
        for weights, checkpoint in zip(WEIGHTS, (best, last), strict=True):
            file = self._file(name, weights)
            bundle = experiment.save_bundle(checkpoint, file.with_suffix(".bundle"))
            values = [value for value in curve if value is not None]
            found = Found(
                name,
                weights,
                min(values) if weights == "best" else values[-1],
                judge_student(bundle, candidates, self.simulation.funnel, seconds),
            )
            write_text_atomically(file, to_json(found))
        shutil.rmtree(training)


_WATCHED = ("valid", "click", "normalized_entropy")


def _one(world: Sequence[Found], name: str, weights: Weights) -> Found:
    return next(one for one in world if (one.name, one.weights) == (name, weights))


def _of(world: Sequence[Found], name: str, weights: Weights) -> ArmResult:
    return _one(world, name, weights).result


def _mean(values: Sequence[float], digits: int) -> str:
    estimate = mean_estimate(values)
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}"


def _interval(mean: float, low: float, high: float, digits: int) -> str:
    return f"{mean:+.{digits}f} ({low:+.{digits}f}, {high:+.{digits}f})"


def main() -> None:
    with told():
        run(tyro.cli(WrongTeachers, description=__doc__))


if __name__ == "__main__":
    main()
