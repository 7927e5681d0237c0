"""The whole path on one machine: logs, a baseline, a sweep, a registered model, a service that answers, a report.

python -m jobs.demo [--dataset census-income]. A demo that was killed goes on where it stopped; a finished one is followed by a
new one.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import tyro

from jobs.example_request import curl_command, example_request
from jobs.presets import experiment_for
from jobs.serve import reference_to
from rayrec.data.log import Log
from rayrec.data.public.logs import PublicName, import_public
from rayrec.data.simulation import SimulatedLogs, SimulationConfig, simulate
from rayrec.errors import told
from rayrec.families.ranker.bundle import load_bundle
from rayrec.files import write_text_atomically
from rayrec.registry import ResolvedModel, resolve_model, runs_folder, tracking_uri
from rayrec.reporting import Section, Table, write_page
from rayrec.reporting.page import number
from rayrec.runs.cluster import connect
from rayrec.runs.ray_train import FinishedRun, fit
from rayrec.runs.run_report import run_sections
from rayrec.runs.sweep_report import sweep_sections
from rayrec.runs.sweeping import FinishedSweep, SweepConfig, sweep
from rayrec.training.tracking import Tracker
from serve_apps.access import TOKEN_VARIABLE
from serve_apps.deploying import serving
from serve_apps.ranker import RankerService
from tune_spaces import find_space

STEPS = 6
MODEL = "ranker"


@dataclass(frozen=True)
class Demo:
    """Simulate or import a log, train, sweep, register, deploy, query, report.

    dataset: "simulated", or a public data set found through RAYREC_DATA. trials: of the sweep.
    """

    dataset: Literal["simulated"] | PublicName = "simulated"
    trials: int = 12


def run(command: Demo) -> Path:
    """Run the demo; returns the path of its report."""
    started = time.perf_counter()
    name = _unfinished_name(command.dataset)
    folder = runs_folder() / name
    with _step(1, f"logs: {command.dataset}"):
        log = Log.open(_log(command.dataset, folder))
        print(", ".join(f"{log.rows(split):,} rows {split}" for split in log.splits), f"in {log.path}")
    experiment = experiment_for(command.dataset, log.path)
    with _step(2, "baseline: a run under Ray Train"):
        baseline = fit(f"{name}/baseline", experiment)
    with _step(3, f"sweep: {command.trials} trials with ASHA and Optuna"):
        swept = sweep(f"{name}/sweep", "ranker", find_space("ranker"), SweepConfig(experiment, trials=command.trials))
    with _step(4, "registry"):
        best = _better(baseline, swept)
        registered = Tracker().register(best.mlflow_run, MODEL)
        print(f"models:/{MODEL}/{registered.version} is now models:/{MODEL}@serving, from {best.folder.name}")
    with _step(5, "service: deploy and query"):
        answer, curl = _serve_and_query(log)
    with _step(6, "report"):
        page = write_page(
            folder / "report",
            f"rayrec demo: {command.dataset}",
            _sections(log, baseline, swept, registered, best, answer),
        )
    write_text_atomically(folder / "finished.json", json.dumps({"seconds": time.perf_counter() - started}))
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    print(f"report:  {page}")
    print(f"MLflow:  mlflow ui --backend-store-uri {tracking_uri()}   (in .venv/bin)")
    print("service: make serve, then")
    print(f"  {curl}")
    return page


def _unfinished_name(dataset: str) -> str:
    """demo-<dataset>-<n>: the newest when it was not finished, else the next."""
    number_ = 1
    while (runs_folder() / f"demo-{dataset}-{number_}" / "finished.json").is_file():
        number_ += 1
    return f"demo-{dataset}-{number_}"


def _log(dataset: Literal["simulated"] | PublicName, folder: Path) -> Path:
    if dataset == "simulated":
        place = folder / "logs"
        return (SimulatedLogs.open(place) if place.is_dir() else simulate(SimulationConfig(), place)).labeled
    place = folder / "log"
    return place if place.is_dir() else import_public(dataset, place)


def _serve_and_query(log: Log) -> tuple[dict[str, object], str]:
    """The service's answer to rows of the log, over HTTP, and a curl line that asks the same of ``make serve``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    token = os.environ.get(TOKEN_VARIABLE)
    body = example_request(log)
    connect()
    with serving(RankerService(), "127.0.0.1", port) as deployed:
        deployed.deploy(reference_to(resolve_model(f"models:/{MODEL}@serving")))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        reply = httpx.post(f"{deployed.url}/v1/rank", json=body, headers=headers, timeout=30)
        reply.raise_for_status()
    answer: dict[str, object] = reply.json()
    print(f"{answer['model']} ordered {len(body['candidates'])} candidates: {answer['order']}")
    short = example_request(log, candidates=2)
    return answer, curl_command("http://127.0.0.1:8000/v1/rank", short, token=token is not None)


def _better(baseline: FinishedRun, swept: FinishedSweep) -> FinishedRun:
    """The run with the better objective on the validation split."""
    sign = 1.0 if swept.mode == "min" else -1.0

    def loss(run: FinishedRun) -> float:
        objective = run.progress.best_objective
        return float("inf") if objective is None else sign * objective

    return min(baseline, swept.winner, key=loss)


@contextmanager
def _step(index: int, title: str) -> Iterator[None]:
    print(f"\n[{index}/{STEPS}] {title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"[{index}/{STEPS}] took {time.perf_counter() - started:.1f} s", flush=True)


def _sections(
    log: Log,
    baseline: FinishedRun,
    swept: FinishedSweep,
    registered: ResolvedModel,
    best: FinishedRun,
    answer: dict[str, object],
) -> tuple[Section, ...]:
    columns = ("run", "split", *(f"{task} {metric}" for task in log.schema.task_names for metric in ("NE", "AUC")))
    rows = []
    for label, finished in (("baseline", baseline), ("sweep winner", swept.winner)):
        for split, tasks in sorted(finished.progress.evaluations.items()):
            cells = [tasks[t][m] for t in log.schema.task_names for m in ("normalized_entropy", "auc")]
            rows.append((label, split, *(number(cell, 4) for cell in cells)))
    return (
        Section(
            "Baseline and sweep",
            f"{', '.join(f'{log.rows(split):,} rows {split}' for split in log.splits)}. NE: normalized entropy, below 1 is "
            f"better than predicting the base rate. Registered as version {registered.version} of {MODEL!r}: "
            f"{best.folder.name}, the better on the validation split.",
            table=Table(columns, tuple(rows)),
        ),
        Section("A served answer", "POST /v1/rank, first rows of the test split.", code=json.dumps(answer, indent=2)),
        *sweep_sections(swept.trials, swept.winner_trial, swept.objective_name, swept.mode),
        *run_sections(best.progress, load_bundle(best.bundle).metadata.run_config),
    )


def main() -> None:
    with told():
        run(tyro.cli(Demo, description=__doc__))


if __name__ == "__main__":
    main()
