"""The report of a comparison: means with standard errors, paired differences to the baseline, their plot, and a CSV of all."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import TYPE_CHECKING

from rayrec.metrics.paired import MeanEstimate, PairedDifference, holm, mean_estimate, paired_difference
from rayrec.reporting import Section, Table
from rayrec.reporting.page import blank_figure, number
from rayrec.runs.comparison import ComparisonState, TrialKey, describe_left
from rayrec.training.checkpoint import Progress
from rayrec.training.judging import Judged
from rayrec.training.task import COUNTS
from rayrec.typed_json import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERALL = "mean of tasks"
SIGNIFICANT = 0.05
DIFFERENCE_LEGEND = (
    "Mean of the differences of equal seeds, and its 95 % t interval, over seeds and, where known, judged rows or users; "
    "a star marks one that is told from 0 with all others of the table counted (Holm, 5 % a table)."
)


@dataclass(frozen=True)
class Outcome:
    """One metric of one task on one split for one arm: over all its seeds, and over those that the baseline has too."""

    arm: str
    split: str
    task: str
    metric: str
    estimate: MeanEstimate
    difference: PairedDifference | None  # None: the baseline itself, or no seed in common


def outcomes(state: ComparisonState) -> tuple[Outcome, ...]:
    """Every metric that is defined in at least one trial, and its mean over tasks where there are several.

    What was judged further is an arm of its own, "ARM WAY", measured against the baseline judged in the same way, or in its own
    where that is not one of the baseline's.
    """
    comparison = state.record.comparison
    values = _values(state)
    found = []
    for name, places in values.items():
        arm, way = name
        like = (comparison.baseline, way) if (comparison.baseline, way) in values else (comparison.baseline, "")
        for place, of_seeds in places.items():
            of_baseline = values.get(like, {}).get(place, {})
            common = sorted(set(of_seeds) & set(of_baseline))
            difference = None
            if arm != comparison.baseline and common:
                numbers, rests = _stacked(of_seeds, common)
                others, others_rests = _stacked(of_baseline, common)
                known = rests is not None and others_rests is not None
                difference = paired_difference(
                    numbers, others, rests if known else None, others_rests if known else None
                )
            seen = list(of_seeds)[:1] if arm in state.untrained else list(of_seeds)
            estimate = mean_estimate(*_stacked(of_seeds, seen))
            found.append(Outcome(f"{arm} {way}".rstrip(), *place, estimate, difference))
    return tuple(found)


def reported(found: Sequence[Outcome]) -> list[str]:
    """The arms of a report in their order, each way in which an arm was judged further behind it."""
    return list(dict.fromkeys(outcome.arm for outcome in found))


def _stacked(
    of_seeds: Mapping[int, "Measured"], seeds: Sequence[int]
) -> tuple[list[float], list[tuple[float, ...]] | None]:
    """Values of the seeds, and what they are without each group; None where one of them has no groups."""
    rests = [rest for seed in seeds if (rest := of_seeds[seed][1])]
    return [of_seeds[seed][0] for seed in seeds], rests if len(rests) == len(seeds) else None


def metrics_in_order(state: ComparisonState) -> tuple[str, ...]:
    """The metrics that the task follows first, then the others as they are listed."""
    comparison = state.record.comparison
    followed = comparison.trial(comparison.parts[comparison.baseline][0]).task().curve_metrics
    listed = [metric for outcome in outcomes(state) for metric in (outcome.metric,)]
    return tuple(metric for metric in dict.fromkeys((*followed, *listed)) if metric in listed)


def comparison_sections(state: ComparisonState, split: str) -> tuple[Section, ...]:
    """For each metric on ``split`` a table of means, one of differences, and a plot."""
    found = [outcome for outcome in outcomes(state) if outcome.split == split]
    comparison = state.record.comparison
    arms, metrics = reported(found), [m for m in metrics_in_order(state) if any(o.metric == m for o in found)]
    sections = [Section("Comparison", _introduction(state, split))]
    for metric in metrics:
        of_metric = [outcome for outcome in found if outcome.metric == metric]
        sections.append(
            Section(
                f"{metric.replace('_', ' ')}, {split} split",
                "Mean over seeds ± standard error over seeds; where known, that over judged rows or users in brackets.",
                table=means_table(of_metric, arms, comparison.baseline),
            )
        )
        sections.append(
            Section(
                f"{metric.replace('_', ' ')}: difference to {comparison.baseline}",
                DIFFERENCE_LEGEND,
                table=differences_table(of_metric, arms),
                figures={f"difference_{split}_{metric}": difference_plot(of_metric, comparison.baseline)},
            )
        )
    sections.append(Section("Costs", "Medians over seeds.", table=costs_table(state)))
    for arm, experiment in comparison.arms.items():
        sections.append(Section(f"Arm {arm}", code=to_json(experiment)))
    return tuple(sections)


def costs_table(state: ComparisonState) -> Table:
    """Rows: arms, with each way in which they were judged further. Columns: training, then what judging told."""
    further = [judged for ways in state.further.values() for judged in ways.values()]
    names = tuple(dict.fromkeys(name for judged in further for name in judged.costs))
    rows = []
    for arm in state.record.comparison.arms:
        keys = [key for key in state.done if key.arm == arm]
        if not keys:
            continue
        seconds = [state.done[key].seconds for key in keys]
        speeds = [state.done[key].rows / max(state.done[key].seconds, 1e-9) for key in keys]
        ways = list(dict.fromkeys(way for key in keys for way in state.further.get(key, {}))) or [""]
        for way in ways:
            costs = [state.further[key][way].costs for key in keys if way in state.further.get(key, {})]
            known = [[cost[name] for cost in costs if name in cost] for name in names]
            cells = (number(median(values), 3) if values else "" for values in known)
            rows.append((f"{arm} {way}".rstrip(), number(median(seconds), 1), f"{median(speeds):,.0f}", *cells))
    return Table(("arm", "training s", "rows/s", *names), tuple(rows))


def means_table(found: Sequence[Outcome], arms: Sequence[str], baseline: str) -> Table:
    """Rows: arms, the baseline marked. Columns: tasks. Cells: mean ± standard error."""
    tasks = list(dict.fromkeys(outcome.task for outcome in found))
    cells = {(outcome.arm, outcome.task): outcome.estimate for outcome in found}
    shown = [arm for arm in arms if any((arm, task) in cells for task in tasks)]
    seeds = {arm: max(cells[arm, task].count for task in tasks if (arm, task) in cells) for arm in shown}
    rows = tuple((arm, str(seeds[arm]), *(_estimate(cells.get((arm, task))) for task in tasks)) for arm in shown)
    return Table(("arm", "seeds", *tasks), rows, shown.index(baseline) if baseline in shown else None)


def differences_table(found: Sequence[Outcome], arms: Sequence[str]) -> Table:
    """Rows: arms but the baseline. Columns: tasks. Cells: mean difference [interval], starred where ``told_apart``."""
    tasks = list(dict.fromkeys(outcome.task for outcome in found))
    cells = {(outcome.arm, outcome.task): outcome.difference for outcome in found}
    starred = told_apart(found)
    shown = [arm for arm in arms if any(cells.get((arm, task)) is not None for task in tasks)]
    rows = tuple(
        (arm, *(_difference(cells.get((arm, task)), (arm, task) in starred) for task in tasks)) for arm in shown
    )
    return Table(("arm", *tasks), rows)


def told_apart(found: Sequence[Outcome]) -> frozenset[tuple[str, str]]:
    """(arm, task) of one table's differences that are not 0, any of them wrongly so in at most 5 % of tables."""
    return frozenset(place for place, p_value in adjusted(found).items() if p_value <= SIGNIFICANT)


def adjusted(found: Sequence[Outcome]) -> dict[tuple[str, str], float]:
    """Holm's p-values by (arm, task) of the differences of one metric on one split, of two seeds or more."""
    known = {
        (o.arm, o.task): o.difference.p_value
        for o in found
        if o.difference is not None and o.difference.count > 1 and o.difference.p_value is not None
    }
    return dict(zip(known, holm(list(known.values())), strict=True))


def difference_plot(found: Sequence[Outcome], baseline: str) -> "Figure":
    """One panel a task: each arm's mean difference to the baseline with its interval, the baseline at 0."""
    judged = [outcome for outcome in found if outcome.difference is not None]
    tasks = list(dict.fromkeys(outcome.task for outcome in judged))
    arms = list(dict.fromkeys(outcome.arm for outcome in judged))
    count = max(len(tasks), 1)
    columns = min(count, 3)
    figure = blank_figure(4.2 * columns, (0.9 + 0.32 * max(len(arms), 1)) * ceil(count / columns))
    starred = told_apart(found)
    for i, task in enumerate(tasks):
        panel = figure.add_subplot(ceil(count / columns), columns, i + 1)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.grid(alpha=0.25, axis="x")
        panel.axvline(0.0, color="#98a2b3", linewidth=1)
        panel.set_title(f"{task}, less {baseline}", fontsize=9)
        panel.set_yticks(range(len(arms)), arms if i % columns == 0 else [""] * len(arms))
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
        for outcome in judged:
            difference = outcome.difference
            if outcome.task != task or difference is None:
                continue
            color = "#1d6fb8" if (outcome.arm, task) in starred else "#98a2b3"
            place = arms.index(outcome.arm)
            panel.plot([difference.low, difference.high], [place, place], color=color, linewidth=2)
            panel.plot(difference.mean, place, "o", color=color, markersize=5)
    return figure


def results_csv(found: Sequence[Outcome]) -> str:
    """Every outcome, one a line, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("arm", "split", "task", "metric", "mean", "standard_error", "seeds", "error_over_rows", "difference",
         "difference_standard_error", "low", "high", "pairs", "p_value", "p_holm", "difference_error_over_rows")
    )  # fmt: skip
    tables: dict[tuple[str, str], list[Outcome]] = {}
    for o in found:
        tables.setdefault((o.split, o.metric), []).append(o)
    p_holm = {place: adjusted(table) for place, table in tables.items()}
    for o in found:
        d = o.difference
        paired = ("",) * 8 if d is None else (
            d.mean, d.standard_error, d.low, d.high, d.count, d.p_value, p_holm[o.split, o.metric].get((o.arm, o.task), ""),
            d.group_error,
        )  # fmt: skip
        e = o.estimate
        writer.writerow((o.arm, o.split, o.task, o.metric, e.mean, e.standard_error, e.count, e.group_error, *paired))
    return text.getvalue()


def _introduction(state: ComparisonState, split: str) -> str:
    comparison = state.record.comparison
    text = (
        f"{len(comparison.parts)} arms, seeds {', '.join(map(str, comparison.seeds))}, judged on the {split} split at the best "
        f"evaluation of each trial; {comparison.baseline} is the baseline. {describe_left(state)}.\n"
        "Differences are paired: equal seeds share initialization and order of rows. Intervals are "
        "those of the t distribution, each for itself; stars count all comparisons of their table."
    )
    if state.failed:
        text += "\nFailed: " + "; ".join(f"{key}: {error}" for key, error in state.failed.items())
    return text


Measured = tuple[float, tuple[float, ...]]  # a value, and what it is without each group of judged rows: () = not known
Places = dict[tuple[str, str, str], dict[int, Measured]]  # values by seed, by split, task and metric


def _values(state: ComparisonState) -> dict[tuple[str, str], Places]:
    """Of each arm by the ways in which it was judged, the first, "", being its own; then what was not trained."""
    values: dict[tuple[str, str], Places] = {}
    for arm, parts in state.record.comparison.parts.items():
        ways = dict.fromkeys(
            ("", *(way for part in parts for key in state.further if key.arm == part for way in state.further[key]))
        )
        for way in ways:
            judged = {
                key: (*(_own(progress) if not way else ()), *_further(state, key, way))
                for key, progress in state.done.items()
                if key.arm in parts
            }
            values[arm, way] = _by_place(judged, parts)
    for name, untrained in state.untrained.items():  # the same whatever the seed
        seeds = state.record.comparison.seeds
        values[name, ""] = _by_place({TrialKey(name, seed): (untrained,) for seed in seeds}, (name,))
    return values


def _own(progress: Progress) -> tuple[Judged, ...]:
    return tuple(
        Judged(split, found, progress.left_out.get(split, {})) for split, found in progress.evaluations.items()
    )


def _further(state: ComparisonState, key: TrialKey, way: str) -> tuple[Judged, ...]:
    found = state.further.get(key, {}).get(way)
    return () if found is None else (found,)


def _by_place(judged: Mapping[TrialKey, Sequence[Judged]], parts: tuple[str, ...]) -> Places:
    """Values by seed of each (split, task, metric) of an arm, the mean over tasks among them. parts: the arms it is made of; only
    seeds that all of them have count."""
    places: Places = {}
    for seed in sorted({key.seed for key in judged}):
        if not all(TrialKey(part, seed) in judged for part in parts):
            continue
        splits: dict[str, dict[str, dict[str, Measured]]] = {}
        for part in parts:
            for one in judged[TrialKey(part, seed)]:
                for task, metrics in one.metrics.items():
                    splits.setdefault(one.split, {}).setdefault(task, {}).update(
                        {
                            metric: (value, one.left_out.get(task, {}).get(metric, ()))
                            for metric, value in metrics.items()
                            if metric not in COUNTS and value is not None
                        }
                    )
        for split, tasks in splits.items():
            by_metric: dict[str, list[Measured]] = {}
            for task, found in tasks.items():
                for metric, measured in found.items():
                    places.setdefault((split, task, metric), {})[seed] = measured
                    by_metric.setdefault(metric, []).append(measured)
            for metric, of_tasks_measured in by_metric.items():
                if len(of_tasks_measured) == len(tasks) > 1:
                    value = sum(value for value, _ in of_tasks_measured) / len(tasks)
                    groups = [rest for _, rest in of_tasks_measured]
                    mean = tuple(sum(g) / len(tasks) for g in zip(*groups, strict=True)) if all(groups) else ()
                    places.setdefault((split, OVERALL, metric), {})[seed] = (value, mean)
    return places


def _estimate(estimate: MeanEstimate | None) -> str:
    if estimate is None:
        return "n/a"
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.5f}"
    groups = "" if estimate.group_error is None else f" (rows {estimate.group_error:.5f})"
    return f"{estimate.mean:.5f}{error}{groups}"


def _difference(difference: PairedDifference | None, starred: bool) -> str:
    if difference is None:
        return "n/a"
    known = difference.p_value is not None
    interval = f" [{difference.low:+.5f}, {difference.high:+.5f}]" if known else ""
    return f"{difference.mean:+.5f}{interval}{' *' if starred else ''}"
