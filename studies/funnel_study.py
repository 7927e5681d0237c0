"""Simulation B: what the early stage of a simulated funnel serves, and how far its probabilities are from the true ones there.

For each seed: a world is simulated, a teacher with the late signals is fitted to impressions and scores everything, then each arm
trains an early-stage ranker (the student, without the late signals) and is judged against the *true* click probabilities, on
all candidates (what it serves) and on impressions (what it was trained on), and by the value of the ads that the funnel shows
when it selects by this student. All of it is kept in a folder, so that a stopped study goes on with what is missing.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rayrec.data.log import Log, LogWriter
from rayrec.data.log.schema import LogSchema, TaskLabel
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.data.simulation import (
    STAGES,
    FunnelConfig,
    SimulatedLogs,
    SimulationConfig,
    WorldConfig,
    run_funnel,
    simulate,
    student_schema,
    teacher_only_features,
)
from rayrec.data.simulation.funnel import IMPRESSION
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.log_scoring import ScoringConfig, score_log
from rayrec.families.ranker.scoring import features_of
from rayrec.families.ranker.task import RankingConfig
from rayrec.files import write_text_atomically
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import RunOptions, Worker
from rayrec.typed_json import from_json, to_json

Say = Callable[[str], None]
Floats = NDArray[np.float64]
_BINS = 20
_TEACHER, _PROPENSITY, _SHOWN = "teacher", "propensity", "shown"


@dataclass(frozen=True)
class FunnelStudyConfig:
    """Size and training of a study."""

    candidates: int = 1_000_000
    """Simulated ones of each seed; a tenth of the requests is for validation, a fifth for the test."""
    ratios: tuple[float, ...] = (4.0, 1.0, 16.0)
    """Unlabeled rows per labeled row of the main arm; the first is that of all other arms."""
    epochs: int = 4
    """Passes over the impressions, the same for all arms. teacher_...: the same of the teacher. It must be right far
    from what it was shown: linear in features that hold what drove the selection, and trained to the end, since
    slopes that stopped short of it are too flat and probabilities of what is never shown too high."""
    batch_size: int = 256
    """Labeled rows a step."""
    learning_rate: float = 1e-2
    """Of the students."""
    embedding_learning_rate: float = 0.01
    """Of the students' tables."""
    teacher_epochs: int = 6
    """Passes of the teacher, trained to the end."""
    teacher_learning_rate: float = 2e-2
    """Of the teacher."""
    teacher_embedding_learning_rate: float = 0.05
    """Of the teacher's tables."""
    teacher_architecture: RankerArchitecture = field(
        default_factory=lambda: RankerArchitecture(embedding_dim=1, interaction="none", trunk=(), tower=())
    )
    """It must be right far from what it was shown."""
    ignored_features: tuple[str, ...] = ("user",)
    """No model sees them. Users: a dozen impressions each, which fit noise; selection is within requests."""
    world: WorldConfig = field(
        default_factory=lambda: WorldConfig(
            users=5_000, ads=500, campaigns=100, advertisers=30, base_click_probability=0.03
        )
    )
    """What is simulated; denser than the default of ``jobs.simulate``, so that a million candidates teach something."""
    funnel: FunnelConfig = field(default_factory=lambda: FunnelConfig(slots=4))
    """Stages and auction, alike."""
    architecture: RankerArchitecture = field(
        default_factory=lambda: RankerArchitecture(embedding_dim=4, interaction="none", trunk=(16,), tower=())
    )
    """Of the students."""

    def student(self, log: Path, seed: int) -> RankerExperiment:
        """An early stage that learns from the clicks of ``log`` alone; arms and teachers change it."""
        return RankerExperiment(
            log,
            ignored_features=self.ignored_features,
            tasks=("click",),
            ranking=RankingConfig(architecture=self.architecture),
            optimizer=OptimizerConfig(
                learning_rate=self.learning_rate, embedding_learning_rate=self.embedding_learning_rate
            ),
            loop=LoopConfig(epochs=self.epochs, seed=seed, schedule="linear", patience=None),
            stream=StreamConfig(batch_size=self.batch_size, seed=seed),
        )


@dataclass(frozen=True)
class Judgement:
    """How a student's probabilities compare with the true ones on some rows.

    predicted_over_true: ratio of the means. ece: mean over equal-mass bins of |mean predicted - mean true|. log_loss: expected,
    under the true probabilities; normalized_entropy: over the entropy of the mean true probability.
    deciles: (mean predicted, mean true) by decile of the early stage's own score.
    """

    rows: int
    predicted_over_true: float
    ece: float
    log_loss: float
    normalized_entropy: float
    deciles: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ArmResult:
    """One arm of one seed. value: true value (bid * true click probability) shown per request when the funnel selects by it."""

    candidates: Judgement
    impressions: Judgement
    value: float
    seconds: float


@dataclass(frozen=True)
class Arm:
    """One way to train a student. own_scores: unlabeled rows bear the scores of the supervised student, not the teacher's.

    serves_candidates: it is meant to be right on all candidates, so that the validation impressions cannot choose its weights.
    """

    name: str
    ratio: float = 0.0
    distillation: DistillationConfig | None = None
    inverse_propensity: InversePropensity | None = None
    own_scores: bool = False
    serves_candidates: bool = False

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())


SUPERVISED = Arm("supervised only")


def arms(config: FunnelStudyConfig) -> tuple[Arm, ...]:
    """The five baselines, UKDSL at each ratio (0 is supervised only), and UKDSL with an auxiliary head.

    Where both kinds of rows train the same head, an unlabeled row counts as much as a labeled one.
    """
    main = config.ratios[0]
    counted = DistillationConfig(unlabeled_weight=main)
    auxiliary = DistillationConfig(labeled_weight=1.0, unlabeled_weight=1.0, head="auxiliary")
    negative = replace(counted, target="negative")
    return (
        SUPERVISED,
        Arm(
            "distillation on labeled rows only",
            distillation=DistillationConfig(labeled_weight=1.0, unlabeled_weight=0.0),
        ),
        Arm(f"self-training, ratio {main:g}", main, counted, own_scores=True, serves_candidates=True),
        Arm("inverse propensity weighting", inverse_propensity=InversePropensity(_PROPENSITY), serves_candidates=True),
        Arm(f"candidates as negatives, ratio {main:g}", main, negative, serves_candidates=True),
        *(
            Arm(f"UKDSL, ratio {r:g}", r, replace(counted, unlabeled_weight=r), serves_candidates=True)
            for r in sorted(config.ratios)
        ),
        Arm(f"UKDSL with auxiliary head, ratio {main:g}", main, auxiliary),
    )


def run_study(
    config: FunnelStudyConfig,
    folder: Path,
    seeds: Sequence[int],
    *,
    only: Collection[str] | None = None,
    stop_after: float | None = None,
    say: Say = lambda text: None,
) -> bool:
    """Do what is missing of some seeds; True when nothing is left.

    only: names of the arms to do; None = all. stop_after: seconds after which no new part begins.
    """
    chosen = [arm for arm in arms(config) if only is None or arm.name in only]
    began = time.monotonic()
    for seed in seeds:
        for what, do in _Seed(config, folder / f"seed-{seed}", seed).parts(chosen):
            if stop_after is not None and time.monotonic() - began > stop_after:
                say(f"stopped before seed {seed}: {what}; run again to go on")
                return False
            started = time.monotonic()
            do()
            say(f"seed {seed}: {what} ({time.monotonic() - started:.0f} s)")
    return True


def read_results(config: FunnelStudyConfig, folder: Path) -> dict[str, dict[int, ArmResult]]:
    """What is there so far: a result by arm and seed."""
    results: dict[str, dict[int, ArmResult]] = {arm.name: {} for arm in arms(config)}
    for arm in arms(config):
        for file in sorted(folder.glob(f"seed-*/{arm.file_name}.json")):
            seed = int(file.parent.name.removeprefix("seed-"))
            results[arm.name][seed] = from_json(ArmResult, file.read_bytes(), str(file))
    return results


def judge(predicted: Floats, true: Floats, early_score: Floats) -> Judgement:
    """All (n,): a student's probabilities, the true ones, and the score by which the simulated early stage selected."""
    p = np.clip(predicted, 1e-9, 1 - 1e-9)
    log_loss = float(-(true * np.log(p) + (1 - true) * np.log1p(-p)).mean())
    rate = float(true.mean())
    entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
    bins = np.array_split(np.argsort(predicted, kind="stable"), _BINS)
    ece = sum(len(rows) * abs(predicted[rows].mean() - true[rows].mean()) for rows in bins) / len(true)
    deciles = np.array_split(np.argsort(early_score, kind="stable"), 10)
    return Judgement(
        rows=len(true),
        predicted_over_true=float(predicted.mean()) / rate,
        ece=float(ece),
        log_loss=log_loss,
        normalized_entropy=log_loss / float(entropy),
        deciles=tuple((float(predicted[rows].mean()), float(true[rows].mean())) for rows in deciles),
    )


def judge_student(bundle: Path, candidates: Log, funnel: FunnelConfig, seconds: float) -> ArmResult:
    """A student on the log of all candidates of the test period, and the funnel run again with its scores."""
    predicted, columns = predict_candidates(bundle, candidates)
    true, early, bid = columns["true_click_probability"], columns["early_stage_score"], columns["bid"]
    shown = columns["stage"] == IMPRESSION
    requests = (-1, funnel.pool)
    student, late, bids = (
        v.astype(np.float32).reshape(requests) for v in (predicted, columns["late_stage_score"], bid)
    )
    stage = run_funnel(student, late, bids, funnel)
    value = (bid * true).reshape(requests)
    return ArmResult(
        candidates=judge(predicted, true, early),
        impressions=judge(predicted[shown], true[shown], early[shown]),
        value=float((value * (stage == IMPRESSION)).sum(1).mean()),
        seconds=seconds,
    )


class _Seed:
    """One seed's folder: world, teacher, scored logs, students, results."""

    def __init__(self, config: FunnelStudyConfig, folder: Path, seed: int) -> None:
        self.config, self.folder, self.seed = config, folder, seed
        self.simulation = SimulationConfig(
            seed=seed,
            requests=config.candidates // config.funnel.pool,
            valid_share=0.1,
            test_share=0.2,
            unlabeled_share=1.0,
            crossed_features=True,
            world=config.world,
            funnel=config.funnel,
        )

    def parts(self, wanted: Sequence[Arm]) -> Iterator[tuple[str, Callable[[], object]]]:
        """What is not done yet of some arms, in order: its name, and a function that does it."""
        missing = [arm for arm in wanted if not self._result(arm).is_file()]
        if not missing:
            return
        world = self.folder / "world"
        if not world.is_dir():
            yield "world simulated", partial(simulate, self.simulation, world)
        for name in (_TEACHER, _PROPENSITY):
            if not (self.folder / name).is_dir():
                yield f"model {name} trained", partial(self._train_helper, name)
        for arm in missing:
            for what, done, do in self._needed(arm):
                if not done.is_dir():
                    yield what, do
            yield arm.name, partial(self._run, arm)
        shutil.rmtree(world, ignore_errors=True)
        for log in ("labeled_by_teacher", "labeled", "unlabeled", "unlabeled_self"):
            shutil.rmtree(self.folder / log, ignore_errors=True)

    def _needed(self, arm: Arm) -> Iterator[tuple[str, Path, Callable[[], object]]]:
        """Scored logs of an arm: what, the folder that shows that it is done, and how."""
        world = SimulatedLogs.open(self.folder / "world")
        scorings = [
            (world.labeled, _TEACHER, "labeled_by_teacher"),
            (self.folder / "labeled_by_teacher", _PROPENSITY, "labeled"),
        ]
        if arm.ratio > 0:
            model, out = (SUPERVISED.file_name, "unlabeled_self") if arm.own_scores else (_TEACHER, "unlabeled")
            scorings.append((world.unlabeled, model, out))
        for source, model, out in scorings:
            columns = {_SHOWN: _PROPENSITY} if model == _PROPENSITY else {}
            scoring = ScoringConfig(self.folder / model, source, self.folder / out, columns)
            yield f"{out} scored by {model}", self.folder / out, partial(score_log, scoring, workers=0)

    def _run(self, arm: Arm) -> None:
        started = time.monotonic()
        logs = SimulatedLogs.open(self.folder / "world")
        experiment = self.config.student(self.folder / "labeled", self.seed)
        hidden = teacher_only_features(Log.open(self.folder / "labeled").schema)
        ranking = replace(experiment.ranking, distillation=arm.distillation, inverse_propensity=arm.inverse_propensity)
        student = replace(
            experiment,
            unlabeled=self.folder / ("unlabeled_self" if arm.own_scores else "unlabeled") if arm.ratio else None,
            unlabeled_ratio=arm.ratio,
            ignored_features=(*experiment.ignored_features, *hidden),
            ranking=ranking,
            loop=replace(experiment.loop, keep="last" if arm.serves_candidates else "best"),
        )
        bundle = self._train(student, self.folder / arm.file_name)
        result = judge_student(bundle, Log.open(logs.candidates), self.simulation.funnel, time.monotonic() - started)
        write_text_atomically(self._result(arm), to_json(result))

    def _train_helper(self, name: str) -> None:
        """The teacher, which sees all features of impressions; or the model of the chance to be shown, from the student's."""
        if name == _TEACHER:
            config, student = (
                self.config,
                self.config.student(SimulatedLogs.open(self.folder / "world").labeled, self.seed),
            )
            teacher = replace(
                student,
                ranking=RankingConfig(architecture=config.teacher_architecture),
                optimizer=OptimizerConfig(
                    learning_rate=config.teacher_learning_rate,
                    embedding_learning_rate=config.teacher_embedding_learning_rate,
                ),
                loop=replace(student.loop, epochs=config.teacher_epochs, keep="last"),
            )
            self._train(teacher, self.folder / name)
            return
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            log = write_shown_log(SimulatedLogs.open(self.folder / "world"), Path(scratch) / "shown")
            experiment = replace(self.config.student(log.path, self.seed), tasks=(_SHOWN,))
            shown = replace(
                experiment,
                stream=replace(experiment.stream, batch_size=8 * self.config.batch_size),
                loop=replace(experiment.loop, epochs=1),
            )
            self._train(shown, self.folder / name)

    def _train(self, experiment: RankerExperiment, bundle: Path) -> Path:
        training = bundle.with_name(f".{bundle.name}.training")
        reporter = FolderReporter(training)
        worker = Worker(options=RunOptions(threads=1, reader="in_process"))  # arms are timed
        train_here(experiment, reporter, worker=worker, say=lambda text: None)
        checkpoint = reporter.latest()
        assert checkpoint is not None
        experiment.save_bundle(checkpoint, bundle)
        shutil.rmtree(training)
        return bundle

    def _result(self, arm: Arm) -> Path:
        return self.folder / f"{arm.file_name}.json"


def write_shown_log(logs: SimulatedLogs, folder: Path) -> Log:
    """Impressions and candidates not shown in one log without labels of their own: its one task is having been shown."""
    labeled, unlabeled = Log.open(logs.labeled), Log.open(logs.unlabeled)
    schema = LogSchema("shown", student_schema(labeled.schema).features, (TaskLabel(_SHOWN),))
    names = [feature.name for feature in schema.features]
    with LogWriter(folder, schema) as writer:
        for split in ("train", "valid"):
            tables = [pq.read_table(list(log.files(split)), columns=names) for log in (labeled, unlabeled)]
            shown = np.repeat(np.array([1, 0], np.float32), [len(table) for table in tables])
            table = pa.concat_tables(tables).append_column(_SHOWN, pa.array(shown))
            writer.write(split, table.take(np.random.default_rng(0).permutation(len(table))))
        writer.finish({"importer": "funnel_study"})
    return Log.open(folder)


def predict_candidates(bundle: Path, candidates: Log) -> tuple[Floats, dict[str, NDArray]]:
    """A student's click probabilities (n,) of a log in file order, and columns of the log that judging needs."""
    model = load_bundle(bundle)
    view = Log(candidates.path, features_of(model.schema, candidates.schema, candidates.path))
    config = StreamConfig(16_384, shuffle=False, drop_last=False)
    place = model.schema.task_names.index("click")
    with closing(LogStream(view, "test", config)) as stream, torch.no_grad():
        predicted = torch.cat([model.model(batch)[:, place].double().sigmoid() for batch in stream.epoch_batches()])
    names = ("true_click_probability", "early_stage_score", "late_stage_score", "bid", "stage")
    table = pq.read_table(list(candidates.files("test")), columns=list(names))
    columns = {name: table.column(name).to_numpy() for name in names[:-1]}
    columns = {name: values.astype(np.float64) for name, values in columns.items()}
    stage = np.asarray(table.column("stage").to_pylist())
    return predicted.numpy(), columns | {"stage": np.where(stage == STAGES[IMPRESSION], IMPRESSION, -1)}
