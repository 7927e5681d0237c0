"""The miscalibration lab: why the early stages of a funnel are wrong about what they serve, and what UKDSL does about it.

    python -m studies.miscalibration --out FOLDER                       simulation A and the linear check: a minute
    python -m studies.miscalibration --out FOLDER --seeds 5             and simulation B, at a million candidates a seed

Writes FOLDER/report/report.html with its figures. Simulation B keeps what it has done in FOLDER/world: running the same command
again goes on; --stop-after ends a run in time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayrec.errors import told
from rayrec.kept_options import hold_to_options
from rayrec.reporting import Section, Table, write_page
from rayrec.typed_json import to_plain
from studies.funnel_study import (
    SUPERVISED,
    ArmResult,
    FunnelStudyConfig,
    Judgement,
    arms,
    read_results,
    run_study,
)
from studies.selection_bias import LinearOutcome, LinearWorld, linear_check
from studies.winners_curse import (
    SelectedMeans,
    Selection,
    expected_means,
    simulated_means,
    two_stage_means,
    unbiased_means,
)

_NOISES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5)
_POOLS = ((10, 2), (50, 2), (200, 2))
_COLORS = ("#1d6fb8", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#4d7c0f", "#475569")


@dataclass(frozen=True)
class Miscalibration:
    """Run the lab and write its report."""

    out: Path
    """Folder of results; a stopped study goes on."""
    seeds: int = 0
    """Of simulation B; 0 leaves it out."""
    stop_after: float | None = None
    """Seconds after which simulation B begins nothing new."""
    requests: int = 20_000
    """Simulated for each point of simulation A."""
    linear: LinearWorld = field(default_factory=LinearWorld)
    """The world of simulation A."""
    study: FunnelStudyConfig = field(default_factory=FunnelStudyConfig)
    """Of simulation B."""


def run(command: Miscalibration) -> Path:
    """Do what is missing, print the tables, write the report; returns its path.

    Raises ConfigError when the folder holds worlds of another study.
    """
    folder = command.out / "world"
    if command.seeds:
        hold_to_options(folder / "study.json", to_plain(command.study), "seed-*/*")
    sections = [_single_stage(command.requests), _other_forms(command.requests), _linear(command.linear)]
    finished = True
    if command.seeds:
        finished = run_study(
            command.study,
            folder,
            range(command.seeds),
            stop_after=command.stop_after,
            say=lambda text: print(text, flush=True),
        )
        results = {arm: by_seed for arm, by_seed in read_results(command.study, folder).items() if by_seed}
        sections += _world(command.study, results)
    for section in sections:
        if section.table is not None:
            print(f"\n{section.heading}\n{_text(section.table)}")
    report = write_page(command.out / "report", "Miscalibration of a multi-stage funnel", sections)
    print(f"\nreport: {report}")
    if not finished:
        print("simulation B is not finished: run the same command again")
    return report


def _single_stage(requests: int) -> Section:
    rows = []
    figure, panel = _panel("noise of the score (logit units)", "mean predicted / mean true, on what is shown")
    for (candidates, shown), color in zip(_POOLS, _COLORS, strict=False):
        selections = [Selection(candidates, shown, noise) for noise in _NOISES]
        expected = [expected_means(selection) for selection in selections]
        simulated = [simulated_means(selection, requests, seed) for seed, selection in enumerate(selections)]
        posterior = [
            simulated_means(selection, requests // 4, seed, posterior=True) for seed, selection in enumerate(selections)
        ]
        panel.plot(_NOISES, [e.ratio for e in expected], color=color, label=f"{shown} of {candidates}: integral")
        panel.errorbar(
            _NOISES,
            [s.ratio for s in simulated],
            [2 * s.standard_error for s in simulated],
            fmt="o",
            color=color,
            markersize=4,
            label=f"{shown} of {candidates}: simulated",
        )
        rows += [
            (
                f"{shown} of {candidates}",
                f"{noise:g}",
                f"{e.ratio:.4f}",
                f"{s.ratio:.4f}",
                f"{s.standard_error:.4f}",
                f"{p.ratio:.4f}",
            )
            for noise, e, s, p in zip(_NOISES, expected, simulated, posterior, strict=True)
        ]
    panel.legend(frameon=False)
    return Section(
        "Simulation A: one stage",
        "True logits are normal (mean -3, standard deviation 1); the model adds normal noise, and the best by score are shown. "
        "The over-prediction on what is shown rises with the noise and with candidates per place, as the integral over the order "
        "statistics says. A model that predicts the mean true probability given its own score is not biased by this selection.",
        Table(("shown", "noise", "integral", "simulated", "standard error", "mean given the score"), tuple(rows)),
        {"simulation_a": figure},
    )


def _other_forms(requests: int) -> Section:
    rows = [
        (f"unbiased at every candidate (Beta, c = {c:g})", "2 of 50", _ratio(unbiased_means(50, 2, c, requests // 4)))
        for c in (1000.0, 100.0, 30.0)
    ]
    for noise in (0.3, 0.6, 1.0):
        first = Selection(200, 20, noise)
        alone, after = (two_stage_means(first, 2, noise, requests // 2, select=s) for s in (False, True))
        rows.append((f"second stage after 20 at random, noise {noise:g}", "2 of 20", _ratio(alone)))
        rows.append((f"second stage after the first stage's 20 of 200, noise {noise:g}", "2 of 20", _ratio(after)))
    return Section(
        "Simulation A: unbiased predictions, and two stages",
        "Being right on average at every single candidate does not help: selection picks the errors that flatter. After a first "
        "stage the candidates are more alike, noise decides more among them, and the second stage over-predicts more: the two "
        "compound (in logits always; in probabilities while these are small, since sigmoid flattens what is likely).",
        Table(("model", "shown", "predicted / true on what is shown"), tuple(rows)),
    )


def _linear(world: LinearWorld) -> Section:
    outcomes: Mapping[str, LinearOutcome] = linear_check(world)
    rows = tuple(
        (name, f"{o.ece:.4f}", f"{o.ratio_on_candidates:.2f}", f"{o.ratio_on_impressions:.2f}")
        for name, o in outcomes.items()
    )
    return Section(
        "Linear check: why it works",
        f"{world.student_features} features that both see and {world.teacher_features} that the teacher alone sees; "
        f"{world.shown} of {world.candidates} candidates are shown in {world.requests:,} requests; "
        f"{world.unlabeled_per_shown} unlabeled rows per impression. Given the teacher's features selection is ignorable; "
        "given the student's it is not. A student that is right on all candidates under-predicts on impressions, and rightly "
        "so: it cannot see why they were selected.",
        Table(
            ("student", "ECE, all candidates", "predicted / true, all candidates", "predicted / true, impressions"),
            rows,
        ),
    )


def _world(config: FunnelStudyConfig, results: Mapping[str, Mapping[int, ArmResult]]) -> list[Section]:
    if not results:
        return []
    base = results.get(SUPERVISED.name, {})
    columns = (
        "arm",
        "seeds",
        "all: predicted / true",
        "all: ECE",
        "supervised ECE / ECE",
        "all: log loss",
        "impressions: predicted / true",
        "impressions: ECE",
        "impressions: NE",
        "NE change, %",
        "value per request",
        "value change, %",
    )
    rows = []
    for arm, by_seed in results.items():
        both = sorted(by_seed.keys() & base.keys())
        change = [
            100 * (by_seed[s].impressions.normalized_entropy / base[s].impressions.normalized_entropy - 1) for s in both
        ]
        gain = [100 * (by_seed[s].value / base[s].value - 1) for s in both]
        of = list(by_seed.values())
        rows.append(
            (
                arm,
                str(len(of)),
                _mean([r.candidates.predicted_over_true for r in of], 3),
                _mean([r.candidates.ece for r in of], 5),
                _mean([base[s].candidates.ece / by_seed[s].candidates.ece for s in both], 2),
                _mean([r.candidates.log_loss for r in of], 5),
                _mean([r.impressions.predicted_over_true for r in of], 3),
                _mean([r.impressions.ece for r in of], 5),
                _mean([r.impressions.normalized_entropy for r in of], 4),
                _mean(change, 3),
                _mean([r.value for r in of], 5),
                _mean(gain, 2),
            )
        )
    text = (
        f"{config.candidates:,} candidates a seed; mean and standard error over seeds. ECE, log loss and normalized entropy "
        "(NE) are against the true click probabilities, on every candidate of the test period (what the early stage serves) "
        "and on its impressions (what it was trained on). NE and value change: against supervised only, seed by seed. value: "
        "what the funnel shows per request, bid * true click probability, when its early stage selects by the student. The "
        "teacher sees the late signals too and is fitted to the same impressions."
    )
    return [
        Section("Simulation B: the ads world", text, Table(columns, tuple(rows)), {"deciles": _deciles(results)}),
        Section(
            "Simulation B: the unlabeled ratio",
            "Ratio 0 is supervised training.",
            figures={"unlabeled_ratio": _by_ratio(config, results)},
        ),
    ]


def _deciles(results: Mapping[str, Mapping[int, ArmResult]]) -> Figure:
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    for place, (name, of) in enumerate((("all candidates", _on_candidates), ("impressions", _on_impressions))):
        panel = figure.add_subplot(1, 2, place + 1)
        _dress(panel, "decile of the early stage's score", "mean predicted / mean true")
        for (arm, by_seed), color in zip(results.items(), _COLORS, strict=False):
            points = np.mean([np.array(of(r).deciles) for r in by_seed.values()], axis=0)  # (10, 2)
            panel.plot(range(1, 11), points[:, 0] / points[:, 1], "o-", color=color, markersize=3, label=arm)
        panel.axhline(1.0, color="#98a2b3", linewidth=1)
        panel.set(title=name, yscale="log")
        if place == 0:
            panel.legend(frameon=False, fontsize=7)
    return figure


def _by_ratio(config: FunnelStudyConfig, results: Mapping[str, Mapping[int, ArmResult]]) -> Figure:
    figure = Figure(figsize=(12.0, 3.6), layout="constrained")
    panels: Sequence[tuple[str, Callable[[ArmResult], float]]] = (
        ("ECE, all candidates", lambda r: r.candidates.ece),
        ("log loss, all candidates", lambda r: r.candidates.log_loss),
        ("value per request", lambda r: r.value),
    )
    by_ratio = {0.0: SUPERVISED.name} | {
        arm.ratio: arm.name for arm in arms(config) if arm.name.startswith("UKDSL, ratio")
    }
    known = {ratio: results[arm] for ratio, arm in sorted(by_ratio.items()) if arm in results}
    for place, (title, metric) in enumerate(panels):
        panel = figure.add_subplot(1, len(panels), place + 1)
        _dress(panel, "unlabeled rows per labeled row", title)
        values = [np.array([metric(r) for r in by_seed.values()]) for by_seed in known.values()]
        errors = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0.0 for v in values]
        panel.errorbar(range(len(known)), [v.mean() for v in values], errors, fmt="o-", color=_COLORS[0], markersize=4)
        panel.set_xticks(range(len(known)), [f"{ratio:g}" for ratio in known])
    return figure


def _on_candidates(result: ArmResult) -> Judgement:
    return result.candidates


def _on_impressions(result: ArmResult) -> Judgement:
    return result.impressions


def _panel(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.add_subplot()
    _dress(panel, x, y)
    return figure, panel


def _dress(panel: Axes, x: str, y: str) -> None:
    panel.set(xlabel=x, ylabel=y)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)


def _ratio(means: SelectedMeans) -> str:
    return f"{means.ratio:.4f} ± {means.standard_error:.4f}"


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return "n/a"
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f}" + (f" ± {error:.{digits}f}" if len(values) > 1 else "")


def _text(table: Table) -> str:
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main() -> None:
    with told():
        run(tyro.cli(Miscalibration, description=__doc__))


if __name__ == "__main__":
    main()
