"""What rayrec is for, on one machine in some minutes: python -m jobs.demo [--dataset census-income].

Simulated logs, of which only impressions are labeled -> a teacher that scores all candidates -> a supervised ranker -> a sweep of
regularization strength and task weights -> a ranker that learns from both streams (UKDSL, LSPR, MultiBalance) -> a retriever on
the same world -> the registry -> Ray Serve, asked over HTTP -> a report of what was gained. A public data set has no unlabeled
candidates: there the teacher and the retriever are left out. A killed demo goes on where it stopped; a finished one is followed
by a new one.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import httpx

from jobs.command_line import read
from jobs.demo_report import Gained, sections
from jobs.presets import experiment_for, student_of_world, teacher_of_world
from jobs.serve import reference_to
from rayrec.data.log import Log
from rayrec.data.public.logs import PublicName, import_public
from rayrec.data.sequences import write_sequences
from rayrec.data.sequences.events import EventFilter
from rayrec.data.sequences.log_events import LogEvents, read_log_events
from rayrec.data.simulation import FunnelConfig, SimulatedLogs, SimulationConfig, WorldConfig, simulate
from rayrec.errors import told
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.log_scoring import ScoringConfig, score_log
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.files import write_text_atomically
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.models.sasrec import SASRecConfig
from rayrec.registry import ResolvedModel, resolve_model, runs_folder, tracking_uri
from rayrec.reporting import write_page
from rayrec.runs.fitting import fit
from rayrec.runs.run_folder import FinishedRun
from rayrec.runs.sweeping import FinishedSweep, SweepConfig, apply_parameters, sweep
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.training.tracking import Tracker
from serve_apps.deploying import connect_to_serve, serving
from serve_apps.example_request import curl_command, example_request
from serve_apps.ranker.application import RankerService
from serve_apps.retriever.application import RetrieverService
from serve_apps.service.access import TOKEN_VARIABLE
from tune_spaces import find_space

RANKER, RETRIEVER = "ranker", "retriever"
SPACE = "regularization"
UNLABELED_RATIO = 4.0
WORLD = SimulationConfig(
    requests=12_500,
    test_share=0.2,
    unlabeled_share=1.0,
    crossed_features=True,
    world=WorldConfig(users=1_500, ads=500, campaigns=100, advertisers=30, base_click_probability=0.03),
    funnel=FunnelConfig(slots=4),
)


@dataclass(frozen=True)
class Demo:
    """Simulate or import a log, train, sweep, register, deploy, query, report."""

    dataset: Literal["simulated"] | PublicName = "simulated"
    """ "simulated", or a public data set found through RAYREC_DATA. """
    trials: int = 8
    """Trials of the sweep."""


@dataclass(frozen=True)
class Inputs:
    """What the runs read. logs: of the simulated world. base: the supervised experiment. log: where it comes from."""

    logs: SimulatedLogs | None
    log: Log
    base: RankerExperiment


def run(command: Demo) -> Path:
    """Run the demo; returns the path of its report."""
    started, name = time.perf_counter(), _unfinished_name(command.dataset)
    folder = runs_folder() / name
    steps = _Steps(9 if command.dataset == "simulated" else 7)
    with steps.next(f"logs: {command.dataset}"):
        inputs = _inputs(command.dataset, folder)
    if inputs.logs is not None:
        with steps.next("teacher: sees all features, learns from impressions, scores every candidate"):
            inputs = replace(inputs, base=_taught(inputs, folder))
    with steps.next("supervised ranker, under Ray Train"):
        supervised = fit(f"{name}-supervised", replace(inputs.base, unlabeled=None, unlabeled_ratio=0.0))
    with steps.next(f"sweep of regularization strength and task weights: {command.trials} trials under Ray Tune"):
        plain = replace(inputs.base, unlabeled=None, unlabeled_ratio=0.0)
        swept = sweep(f"{name}-sweep", SPACE, find_space(SPACE), SweepConfig(plain, trials=command.trials))
    methods = ("UKDSL, " if inputs.logs else "") + "LSPR and MultiBalance"
    with steps.next(f"ranker with {methods}, under Ray Train"):
        ours = fit(f"{name}-ours", _ours(inputs.base, swept))
    retriever: FinishedRun | None = None
    if inputs.logs is not None:
        with steps.next("retriever on the same world: SASRec on what users clicked"):
            retriever = _retriever(inputs.log, name)
    with steps.next("registry"):
        registered = {RANKER: Tracker().register(ours.mlflow_run, RANKER)}
        if retriever is not None:
            registered[RETRIEVER] = Tracker().register(retriever.mlflow_run, RETRIEVER)
        for model, found in registered.items():
            print(f"models:/{model}/{found.version} is now models:/{model}@serving")
    with steps.next("Ray Serve: deploy and ask over HTTP"):
        served = Log(inputs.base.log, load_bundle(ours.bundle).schema)  # the features that the ranker reads
        answers = _answers(served, retriever, registered)
    with steps.next("report"):
        gained = Gained.of({"supervised": supervised, methods: ours}, inputs.logs)
        print(gained.text())
        page = write_page(
            folder / "report",
            f"rayrec demo: {command.dataset}",
            sections(gained, inputs.log, swept, ours, retriever, registered, answers),
        )
    seconds = time.perf_counter() - started
    write_text_atomically(folder / "finished.json", json.dumps({"seconds": seconds, "steps": steps.seconds}))
    print(f"\nDone in {seconds:.0f} s.")
    print(f"report:  {page}")
    print(f"MLflow:  mlflow ui --backend-store-uri {tracking_uri()}   (in .venv/bin)")
    print("service: make serve, then")
    print(f"  {_curl(served)}")
    return page


def _unfinished_name(dataset: str) -> str:
    """demo-<dataset>-<n>: the newest when it was not finished, else the next."""
    number = 1
    while (runs_folder() / f"demo-{dataset}-{number}" / "finished.json").is_file():
        number += 1
    return f"demo-{dataset}-{number}"


def _inputs(dataset: Literal["simulated"] | PublicName, folder: Path) -> Inputs:
    if dataset == "simulated":
        place = folder / "logs"
        logs = SimulatedLogs.open(place) if place.is_dir() else simulate(WORLD, place)
        rows = {name: sum(logs.summary.rows[name].values()) for name in ("labeled", "unlabeled")}
        print(
            f"{rows['labeled']:,} impressions with labels, {rows['unlabeled']:,} candidates without; true click probability "
            f"{logs.summary.true_click_rate:.4f} of candidates, {logs.summary.true_impression_click_rate:.4f} of impressions"
        )
        return Inputs(logs, Log.open(logs.labeled), student_of_world(logs.labeled))
    place = folder / "log"
    log = Log.open(place if place.is_dir() else import_public(dataset, place))
    print(", ".join(f"{log.rows(split):,} rows {split}" for split in log.splits))
    return Inputs(None, log, experiment_for(dataset, log.path))


def _taught(inputs: Inputs, folder: Path) -> RankerExperiment:
    """The student's experiment with both logs, scored by a teacher that is trained here, in this process."""
    logs = inputs.logs
    assert logs is not None
    bundle = folder / "teacher"
    if not bundle.is_dir():
        teacher, reporter = teacher_of_world(logs.labeled), FolderReporter(folder / "teacher-training")
        train_here(teacher, reporter, say=lambda text: None)
        checkpoint = reporter.latest()
        assert checkpoint is not None
        teacher.save_bundle(checkpoint, bundle)
    scored = {}
    for name, source in (("labeled", logs.labeled), ("unlabeled", logs.unlabeled)):
        scored[name] = folder / f"{name}-scored"
        if not scored[name].is_dir():
            log = score_log(ScoringConfig(bundle, source, scored[name]), workers=0)
            print(f"{sum(log.rows(split) for split in log.splits):,} rows scored: {name}")
    return replace(inputs.base, log=scored["labeled"], unlabeled=scored["unlabeled"], unlabeled_ratio=UNLABELED_RATIO)


def _ours(base: RankerExperiment, swept: FinishedSweep) -> RankerExperiment:
    """All methods in one experiment, with the strength and the weights that the sweep found."""
    found = next(trial.parameters for trial in swept.trials if trial.name == swept.winner_trial)
    ranking = replace(base.ranking, perturbation=PerturbationConfig("lspr"), balancing=Multibalance())
    if (
        base.unlabeled is not None
    ):  # its head shall be right on all candidates, which validation on impressions cannot see
        ranking = replace(ranking, distillation=DistillationConfig(unlabeled_weight=UNLABELED_RATIO))
        base = replace(base, loop=replace(base.loop, keep="last", patience=None))
    return apply_parameters(replace(base, ranking=ranking), found)


def _retriever(log: Log, name: str) -> FinishedRun:
    folder = runs_folder() / name / "sequences"
    if not folder.is_dir():
        clicks = LogEvents("user", "ad", "click", ("category", "advertiser"))
        write_sequences(folder, read_log_events(log, clicks, EventFilter(core=3, keep_repeats=True)))
    experiment = RetrieverExperiment(
        folder,
        retrieval=RetrievalConfig(sasrec=SASRecConfig(dim=32, layers=1, dropout=0.3)),
        loop=LoopConfig(epochs=12, patience=4, gradient_clip=1.0),
    )
    return fit(f"{name}-retriever", experiment)


def _answers(
    log: Log, retriever: FinishedRun | None, registered: Mapping[str, ResolvedModel]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Request and answer by path, over HTTP."""
    connect_to_serve()
    found = {}
    with serving(RankerService(), "127.0.0.1", _free_port()) as deployed:
        deployed.deploy(reference_to(resolve_model(f"models:/{RANKER}@serving")))
        found["/v1/rank"] = _ask(f"{deployed.url}/v1/rank", example_request(log))
    if retriever is not None:
        with serving(RetrieverService(), "127.0.0.1", _free_port()) as deployed:
            deployed.deploy(reference_to(resolve_model(f"models:/{RETRIEVER}@serving")))
            names = read_names(registered[RETRIEVER].path)
            found["/v1/retrieve"] = _ask(f"{deployed.url}/v1/retrieve", {"history": names[:3], "k": 5})
    return found


def read_names(bundle: Path) -> list[str]:
    """The items of a retriever's bundle."""
    return list(load_retriever(bundle).names)


def _ask(url: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    token = os.environ.get(TOKEN_VARIABLE)
    reply = httpx.post(url, json=body, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=30)
    reply.raise_for_status()
    answer: dict[str, Any] = reply.json()
    print(f"POST {url.rpartition(':')[2].partition('/')[2]}: {json.dumps(answer)[:100]} ...")
    return body, answer


def _curl(log: Log) -> str:
    body = example_request(log, candidates=2)
    return curl_command("http://127.0.0.1:8000/v1/rank", body, token=os.environ.get(TOKEN_VARIABLE) is not None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Steps:
    """Numbered headings with the time that each step took."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}

    @contextmanager
    def next(self, title: str) -> Iterator[None]:
        mark = f"[{len(self.seconds) + 1}/{self.count}]"
        print(f"\n{mark} {title}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - started
        print(f"{mark} took {self.seconds[title]:.1f} s", flush=True)


def main() -> None:
    with told():
        run(read(Demo, description=__doc__))


if __name__ == "__main__":
    main()
