"""What the demo gained, in one look: calibration on all candidates against the simulated truth, metrics by arm, answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayrec.data.log import Log
from rayrec.data.simulation import SimulatedLogs
from rayrec.families.ranker.bundle import load_bundle
from rayrec.metrics.paired import MeanEstimate, mean_estimate
from rayrec.registry import ResolvedModel
from rayrec.reporting import Section, Table
from rayrec.reporting.page import blank_figure, number, text_table
from rayrec.runs.run_folder import FinishedRun
from rayrec.runs.run_report import run_sections
from rayrec.runs.sweep_report import sweep_sections
from rayrec.runs.sweeping import FinishedSweep
from studies.funnel_study import ArmResult, judge_student, predict_candidates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Answers = Mapping[str, tuple[dict[str, Any], dict[str, Any]]]


@dataclass(frozen=True)
class Gained:
    """The arms side by side, the first one the baseline. truth: how each does on all candidates; None for a public data set.

    difference: of the last arm to the first in expected log loss under the true probabilities, by request.
    """

    arms: Mapping[str, FinishedRun]
    truth: Mapping[str, ArmResult] | None
    difference: MeanEstimate | None

    @staticmethod
    def of(arms: Mapping[str, FinishedRun], logs: SimulatedLogs | None) -> "Gained":
        if logs is None:
            return Gained(arms, None, None)
        candidates, funnel = Log.open(logs.candidates), logs.summary.config.funnel
        truth = {
            name: judge_student(run.bundle, candidates, funnel, run.progress.seconds) for name, run in arms.items()
        }
        first, *_, last = [_loss_by_request(run.bundle, candidates, funnel.pool) for run in arms.values()]
        return Gained(arms, truth, mean_estimate((last - first).tolist()))

    def text(self) -> str:
        """For the terminal."""
        return text_table(self.table())

    def table(self) -> Table:
        """One row an arm."""
        columns: tuple[str, ...] = ("arm",)
        if self.truth is not None:
            columns += ("predicted/true", "calibration error", "log loss", "value a request")
        tasks = list(next(iter(self.arms.values())).progress.evaluations["test"])
        columns += tuple(f"{task} {metric}" for task in tasks for metric in ("NE", "AUC"))
        rows = []
        for name, run in self.arms.items():
            cells: list[str] = [name]
            if self.truth is not None:
                found = self.truth[name]
                on = found.candidates
                cells += [f"{on.predicted_over_true:.3f}", f"{on.ece:.5f}", f"{on.log_loss:.5f}", f"{found.value:.4f}"]
            judged = run.progress.evaluations["test"]
            cells += [number(judged[task][metric], 4) for task in tasks for metric in ("normalized_entropy", "auc")]
            rows.append(tuple(cells))
        return Table(columns, tuple(rows))


def sections(
    gained: Gained,
    log: Log,
    swept: FinishedSweep,
    ours: FinishedRun,
    retriever: FinishedRun | None,
    registered: Mapping[str, ResolvedModel],
    answers: Answers,
) -> tuple[Section, ...]:
    """The report, what matters first."""
    found = [
        Section(
            "What was gained", _introduction(gained, log, registered), table=gained.table(), figures=_figures(gained)
        )
    ]
    for path, (body, answer) in answers.items():
        shown = f"POST {path}\n{json.dumps(body, indent=1)[:1500]}\n\n{json.dumps(answer, indent=1)[:3000]}"
        found.append(Section(f"A served answer: {path}", "As it came over HTTP from Ray Serve.", code=shown))
    if retriever is not None:
        judged = retriever.progress.evaluations["test"]
        names = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "users")
        rows = tuple((group, *(number(metrics.get(name), 4) for name in names)) for group, metrics in judged.items())
        text = "SASRec on the ads that users clicked: the last click of each user is the target, among all ads."
        found.append(Section("Retriever", text, table=Table(("targets", *names), rows)))
    return (
        *found,
        *sweep_sections(swept.trials, swept.winner_trial, swept.objective_name, swept.mode),
        *run_sections(ours.progress, load_bundle(ours.bundle).metadata.run_config),
    )


def _introduction(gained: Gained, log: Log, registered: Mapping[str, ResolvedModel]) -> str:
    text = f"{', '.join(f'{log.rows(split):,} labeled rows {split}' for split in log.splits)}. "
    if gained.truth is not None and gained.difference is not None:
        first, *_, last = gained.truth.values()
        half = 1.96 * (gained.difference.standard_error or 0.0)  # thousands of requests
        text += (
            "The first four columns are on all candidates of the test period, which an early-stage ranker serves, against the "
            "true click probabilities of the simulation: the ranker that learned from labels alone has a calibration error of "
            f"{first.candidates.ece:.5f} there, the one that also learned from unlabeled candidates {last.candidates.ece:.5f}, "
            f"{first.candidates.ece / max(last.candidates.ece, 1e-12):.1f} times less. Expected log loss changes by "
            f"{gained.difference.mean:+.5f} ± {half:.5f} (95 % interval over requests). "
        )
    text += (
        "NE is normalized entropy on the labeled test rows, which are impressions: below 1 is better than predicting the base "
        "rate. "
    )
    return (
        text + "Registered: " + ", ".join(f"{name} version {found.version}" for name, found in registered.items()) + "."
    )


def _figures(gained: Gained) -> dict[str, "Figure"]:
    if gained.truth is None:
        return {}
    figure = blank_figure(6.4, 4.2)
    panel = figure.add_subplot()
    for (name, found), color in zip(gained.truth.items(), ("#98a2b3", "#1d6fb8", "#d1495b"), strict=False):
        predicted, true = zip(*found.candidates.deciles, strict=True)
        panel.plot(true, predicted, marker="o", color=color, label=name)
    highest = max(max(pair) for found in gained.truth.values() for pair in found.candidates.deciles)
    panel.plot([0, highest], [0, highest], color="black", linewidth=0.8, linestyle=":", label="right")
    panel.set(
        xlabel="true click probability", ylabel="predicted", title="All candidates, by tenth of the early stage's score"
    )
    panel.legend(frameon=False)
    return {"calibration_on_candidates": figure}


def _loss_by_request(bundle: Path, candidates: Log, pool: int) -> NDArray[np.float64]:
    """(requests,) expected log loss of a student's click probabilities under the true ones."""
    predicted, columns = predict_candidates(bundle, candidates)
    p, true = np.clip(predicted, 1e-9, 1 - 1e-9), columns["true_click_probability"]
    losses: NDArray[np.float64] = -(true * np.log(p) + (1 - true) * np.log1p(-p))
    return losses.reshape(-1, pool).mean(1)
