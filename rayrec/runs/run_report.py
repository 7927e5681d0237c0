"""The report of a training run: how it ended by task, how it got there, and whether its probabilities can be believed."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrec.reporting import Section, Table
from rayrec.reporting.page import blank_figure, number
from rayrec.training.checkpoint import CurvePoint, Progress, metric_names
from rayrec.typed_json import to_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def run_sections(progress: Progress, config: Any) -> tuple[Section, ...]:
    """Sections of a finished run: final metrics by split, learning curves, calibration, the whole config."""
    sections = [_final(split, tasks) for split, tasks in sorted(progress.evaluations.items())]
    sections.append(
        Section(
            "Learning curves",
            f"{progress.step:,} steps, {progress.rows:,} rows, {progress.seconds:,.1f} s in steps. The best evaluation was at "
            f"step {progress.best_step:,}; its weights are the ones in the bundle.",
            figures={"learning_curves": learning_curves(progress)},
        )
    )
    for split, curves in sorted(progress.calibration.items()):
        sections.append(
            Section(
                f"Calibration, {split} split",
                "Mean observed label against mean predicted probability in bins of equal mass; on the diagonal a prediction "
                "means what it says.",
                figures={f"calibration_{split}": calibration(curves)},
            )
        )
    sections.append(Section("Config", "Repeats this run: python -m jobs.train repeat RUN_ID.", code=to_json(config)))
    return tuple(sections)


def learning_curves(progress: Progress) -> "Figure":
    """The task's first curve metric by epoch, one panel a task: training (mean between evaluations) and validation."""
    judged = [point for point in progress.curve if point.task]
    metric = judged[0].metric if judged else ""
    curves = [point for point in judged if point.metric == metric]
    tasks = list(dict.fromkeys(point.task for point in curves))
    figure, panels = _panels(max(len(tasks), 1))
    for task, panel in zip(tasks, panels, strict=False):
        for split, color in (("train", "#98a2b3"), ("valid", "#1d6fb8")):
            _draw(panel, [p for p in curves if p.task == task and p.split == split], split, color)
        panel.set(title=task, xlabel="epoch", ylabel=metric.replace("_", " "))
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
    return figure


def calibration(curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> "Figure":
    """One panel a task; both axes logarithmic where all values allow it, so that rare events show."""
    from matplotlib.ticker import NullFormatter

    figure, panels = _panels(max(len(curves), 1), square=True)
    for (task, bins), panel in zip(curves.items(), panels, strict=False):
        points = np.array([b[:2] for b in bins]).reshape(-1, 2)
        panel.set(title=task, xlabel="mean predicted", ylabel="mean observed")
        if not len(points):
            continue
        positive = points[(points > 0).all(1)]
        logarithmic = len(positive) > 1 and positive.max() / positive.min() > 20
        shown = positive if logarithmic else points
        low, high = shown.min() * (0.9 if logarithmic else 1.0), shown.max() * 1.05
        panel.plot([low, high], [low, high], color="#98a2b3", linewidth=1)
        panel.plot(shown[:, 0], shown[:, 1], "o-", color="#1d6fb8", markersize=4, linewidth=1)
        if logarithmic:
            panel.set(xscale="log", yscale="log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_minor_formatter(NullFormatter())  # labels of minor ticks would overlap
    return figure


def _final(split: str, tasks: Mapping[str, Mapping[str, float | None]]) -> Section:
    names = metric_names(tasks)
    rows = tuple((task, *(number(metrics.get(name)) for name in names)) for task, metrics in tasks.items())
    return Section(f"Metrics, {split} split", table=Table(("task", *names), rows))


def _draw(panel: "Axes", points: Sequence[CurvePoint], label: str, color: str) -> None:
    known = [(p.epoch, p.value) for p in points if p.value is not None]
    if known:
        epochs, values = zip(*known, strict=True)
        panel.plot(epochs, values, "o-", label=label, color=color, markersize=3)


def _panels(count: int, *, square: bool = False) -> "tuple[Figure, list[Axes]]":
    columns = min(count, 3)
    rows = ceil(count / columns)
    figure = blank_figure(4.0 * columns, (3.8 if square else 3.0) * rows)
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure, panels
