"""Generative and dense retrieval compared: python -m jobs.compare_retrieval --sequences S --semantic-ids I --name NAME.

SASRec, the dense text retriever, TIGER and LIGER on one split, with equal widths, equal epochs and several seeds: metrics in-set
and cold by each method and beam width, parameters, bytes of the index, time a user, training time; tables, intervals, and
quality against cost. A comparison as jobs.compare makes them (see docs/compare.md), in this process: running the same command
again goes on where a killed one stopped, and --status reports what is there so far.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from jobs.command_line import read
from rayrec.errors import told
from rayrec.families.retriever.evaluation import EachMethod
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.task import HistoryItems, ModelName
from rayrec.reporting import Section
from rayrec.reporting.page import blank_figure
from rayrec.runs.comparing import Judging, run_comparison
from rayrec.runs.comparison import Comparison, ComparisonState, TrialOptions

COLUMNS = ("in_set recall@5", "in_set ndcg@5", "in_set recall@10", "in_set ndcg@10", "cold recall@10", "cold ndcg@10")


@dataclass(frozen=True)
class CompareRetrieval:
    """Compare retrievers."""

    name: str
    """The comparison's folder."""
    experiment: Annotated[RetrieverExperiment, tyro.conf.arg(name="")]
    """What all have in common; its model and seeds are replaced."""
    models: tuple[ModelName, ...] = ("sasrec", "dense", "tiger", "liger")
    """The first is the baseline."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs; each seeds weights, order of rows and draws."""
    beams: tuple[int, ...] = (20, 40, 100)
    """Widths at which the generative and hybrid methods are judged."""
    history: tuple[HistoryItems, ...] = ("ranked", "excluded")
    """Items of the history are candidates like all others, or none."""
    status: bool = False
    """Train nothing, report what is there."""
    trials: Annotated[TrialOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: TrialOptions(in_process=True)
    )
    """How the trials run."""


@dataclass(frozen=True)
class Row:
    """A model by a method and width: means over seeds in the order of COLUMNS (None where undefined)."""

    name: str
    means: tuple[float | None, ...]
    milliseconds: float


def run(command: CompareRetrieval) -> list[Row]:
    """Train and judge what is left, print and write the report, and the means as one line of JSON."""
    base = command.experiment.absolute()
    arms = {str(model): replace(base, retrieval=replace(base.retrieval, model=model)) for model in command.models}
    comparison = Comparison(arms, command.models[0], command.seeds)
    judging = Judging(
        wanted=EachMethod(command.beams, command.history),
        sections=lambda state: (quality_against_cost(rows_of(state)),),
    )
    state = run_comparison(command.name, comparison, command.trials, judging, status=command.status)
    rows = rows_of(state)
    print(json.dumps({row.name: dict(zip(COLUMNS, row.means, strict=True)) for row in rows}))
    return rows


def rows_of(state: ComparisonState) -> list[Row]:
    """One for each model, method and width, over the seeds that are done."""
    rows = []
    for arm in state.record.comparison.arms:
        trials = [ways for key, ways in state.further.items() if key.arm == arm]
        for way in trials[0] if trials else ():
            judged = [ways[way] for ways in trials]
            means = []
            for group, metric in map(str.split, COLUMNS):
                values = [value for one in judged if (value := one.metrics[group][metric]) is not None]
                means.append(statistics.mean(values) if values else None)
            milliseconds = statistics.median(one.costs["ms a user"] for one in judged)
            rows.append(Row(f"{arm} {way}".rstrip(), tuple(means), milliseconds))
    return rows


def quality_against_cost(rows: Sequence[Row]) -> Section:
    """The widths of one method are points of one line."""
    figure = blank_figure(9, 3.8)
    for place, column in enumerate(("in_set ndcg@10", "cold ndcg@10"), 1):
        panel = figure.add_subplot(1, 2, place)
        lines: dict[str, list[tuple[float, float, str]]] = {}
        for row in rows:
            value = row.means[COLUMNS.index(column)]
            name, beams = row.name.rstrip("0123456789 "), row.name.split()[-1]
            if value is not None:
                lines.setdefault(name, []).append((row.milliseconds, value, beams if beams.isdigit() else ""))
        for name, points in lines.items():
            panel.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=name)
            for x, y, beams in points:
                panel.annotate(beams, (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
        if lines:  # no method has a figure for cold targets when there are none
            panel.legend(fontsize=7, frameon=False)
        panel.set(xscale="log", xlabel="milliseconds a user", ylabel=column)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return Section("Quality against cost", figures={"quality_against_cost": figure})


def main() -> None:
    with told():
        run(read(CompareRetrieval, description=__doc__))


if __name__ == "__main__":
    main()
