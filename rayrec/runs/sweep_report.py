"""The report of a sweep: every trial, and what each swept parameter did to the objective."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayrec.reporting import Section, Table
from rayrec.reporting.page import blank_figure, number
from rayrec.runs.sweep_trial import Trial, ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sweep_sections(trials: Sequence[Trial], winner: str, objective: str, mode: str) -> tuple[Section, ...]:
    """The table of trials, best first, and one panel a parameter."""
    order = ranked(trials, mode)
    paths = sorted({path for trial in trials for path in trial.parameters})
    columns = ("trial", objective, "evaluations", "seconds", "ended", *(path.rpartition(".")[2] for path in paths))
    rows = tuple(
        (
            trial.name,
            number(trial.objective),
            str(trial.evaluations),
            f"{trial.seconds:.1f}",
            "failed" if trial.error else "stopped early" if trial.stopped_early else "finished",
            *(_shown(trial.parameters.get(path)) for path in paths),
        )
        for trial in order
    )
    highlighted = next((i for i, trial in enumerate(order) if trial.name == winner), None)
    stopped = sum(trial.stopped_early for trial in trials)
    return (
        Section(
            "Sweep",
            f"{len(trials)} trials, {stopped} of them stopped early by ASHA; {objective} ({mode}) decides.",
            table=Table(columns, rows, highlighted),
            figures={"sweep": sweep_plot(trials, winner, objective)},
        ),
    )


def sweep_plot(trials: Sequence[Trial], winner: str, objective: str) -> "Figure":
    """Objective against each swept parameter; hollow: stopped early, ring: the winner."""
    paths = sorted({path for trial in trials for path in trial.parameters})
    count = max(len(paths), 1)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = blank_figure(4.0 * columns, 3.0 * rows)
    judged = [trial for trial in trials if trial.objective is not None]
    for i, path in enumerate(paths):
        panel = figure.add_subplot(rows, columns, i + 1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.set(xlabel=path.rpartition(".")[2], ylabel=objective if i % columns == 0 else "")
        values = [trial.parameters.get(path) for trial in judged]
        numeric = [float(v) for v in values if isinstance(v, float | int) and not isinstance(v, bool)]
        if len(numeric) < len(values):
            labels = [str(v) for v in values]
            names = sorted(set(labels))
            positions = [float(names.index(label)) for label in labels]
            panel.set_xticks(range(len(names)), names)
        else:
            positions = numeric
            if positions and min(positions) > 0 and max(positions) / min(positions) > 20:
                panel.set_xscale("log")
        for position, trial in zip(positions, judged, strict=True):
            face = "none" if trial.stopped_early else "#1d6fb8"
            panel.plot(position, trial.objective or np.nan, "o", markerfacecolor=face, markeredgecolor="#1d6fb8")
            if trial.name == winner:
                panel.plot(position, trial.objective or np.nan, "o", markersize=13, mfc="none", mec="#2b8a3e", mew=2)
    return figure


def _shown(value: float | int | str | bool | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
