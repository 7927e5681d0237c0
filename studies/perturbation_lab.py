"""SCR and LSPR where the truth is known, closed forms beside Monte Carlo: python -m studies.perturbation_lab.

1. Squared loss: with more and more noise copies both methods come down to the ridge solution.
2. Logistic loss: what they add to the cross-entropy, drawn and to second order in the noise.
3. Logistic loss: cosine of learned and true weights against sample size, rarity of positives, correlation of features and
   noise, beside plain and ridge regression. Noise is drawn anew at each step (its mean, exactly). Each method takes the one of
   twelve settings that aligns best on problems of their own, and is judged on others.

Writes a report with figures to <runs>/<name>/report and its numbers to <runs>/<name>/results.json; minutes on two cores.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from rayrec.errors import told
from rayrec.files import write_text_atomically
from rayrec.metrics.paired import holm, mean_estimate, paired_difference
from rayrec.registry import runs_folder
from rayrec.reporting import Section, Table, write_page
from studies.perturbation_problems import (
    LinearMethod,
    cosine,
    draw_linear,
    draw_logistic,
    draw_noise,
    expected_extra_loss,
    logistic_weights,
    ridge_penalty,
    ridge_weights,
    squared_loss_weights,
)

COLORS = {"none": "#98a2b3", "ridge": "#2b8a3e", "scr": "#c2410c", "lspr": "#1d6fb8", "lspr_additive": "#7c3aed"}
NOISES = (0.25, 0.5, 1.0, 2.0)
KINDS = ("none", "ridge", "scr", "lspr")


@dataclass(frozen=True)
class Lab:
    """Problems, methods and their size."""

    name: str = "perturbation-lab"
    """Folder and run name."""
    problems: int = 500
    """Independent data sets of each cell, on which methods are judged."""
    held_out: int = 200
    """Further ones of each cell, on which their settings are chosen."""
    features: int = 20
    """d, columns of the matrix."""
    signal: float = 2.0
    """Standard deviation of the true logits."""
    rows: tuple[int, ...] = (30, 50, 100, 200, 500)
    """Sample sizes."""
    base_rates: tuple[float, ...] = (0.5, 0.1, 0.02)
    """Shares of positives."""
    correlations: tuple[float, ...] = (0.0, 0.8)
    """Of neighbouring features; of others, to the power of their distance."""
    label_noise: float = 1.0
    """Of the linear model."""
    seed: int = 0
    """Of the problems."""
    threads: int = 1
    """The matrices are small; more threads mostly wait for each other."""


@dataclass(frozen=True)
class Cell:
    """Mean cosine of one kind of method for one sample size, base rate and correlation, at the setting chosen there, and its
    standard error."""

    correlation: float
    base_rate: float
    rows: int
    kind: str
    strength: float
    noise: float
    cosine: float
    standard_error: float
    cosines: tuple[float, ...]


def run(lab: Lab, say: Callable[[str], None] = lambda text: print(text, flush=True)) -> Path:
    """Run all parts; returns the report's page."""
    torch.set_num_threads(lab.threads)
    folder = runs_folder() / lab.name
    folder.mkdir(parents=True, exist_ok=True)
    ridge = distances_to_ridge(lab)
    say("squared loss: relative distance to the closed form by noise copies")
    say(
        _text(
            ("method", *map(str, next(iter(ridge.values())))), ((k, *map(_shown, v.values())) for k, v in ridge.items())
        )
    )
    extra = extra_losses(lab)
    say("\nlogistic loss: added loss, drawn over closed form, by noise")
    say(
        _text(
            ("method", *map(str, NOISES_OF_EXTRA)),
            ((k, *(_shown(a / b) for a, b in v.values())) for k, v in extra.items()),
        )
    )
    cells: list[Cell] = []
    for correlation in lab.correlations:
        for base_rate in lab.base_rates:
            for rows in lab.rows:
                found = alignment(lab, correlation, base_rate, rows)
                cells += found
                shown = ", ".join(f"{cell.kind} {cell.cosine:.4f} ± {cell.standard_error:.4f}" for cell in found)
                say(f"correlation {correlation:g}, positives {base_rate:g}, {rows:,} rows: {shown}")
    strengths = alignment_by_noise(lab)
    wins = tuple(compared(cells, kind, other) for kind, other in PAIRS)
    say("\n" + "\n".join(map(str, wins)))
    page = write_page(folder / "report", "Perturbation lab", _sections(lab, ridge, extra, cells, strengths, wins))
    results = {
        "lab": asdict(lab),
        "distance_to_ridge": ridge,
        "extra_loss": extra,
        "cells": [asdict(cell) for cell in cells],
        "by_noise": strengths,
        "wins": [asdict(win) for win in wins],
    }
    write_text_atomically(folder / "results.json", json.dumps(results, indent=1))
    say(f"report: {page}")
    return page


def distances_to_ridge(lab: Lab) -> dict[str, dict[int, float]]:
    """By method and number of copies: mean |learned - closed form| / |closed form| with the squared loss."""
    problems = draw_linear(lab.problems, 2 * lab.features, lab.features, label_noise=lab.label_noise, seed=lab.seed)
    found: dict[str, dict[int, float]] = {}
    for kind in ("lspr", "lspr_additive", "scr"):
        for copies in (1, 4, 16, 64, 256):
            method = LinearMethod(kind, 0.5, 0.7, copies)
            closed = ridge_weights(problems, ridge_penalty(method))
            drawn = squared_loss_weights(problems, method, lab.seed + 1)
            distance = (drawn - closed).norm(dim=1) / closed.norm(dim=1)
            found.setdefault(kind, {})[copies] = float(distance.mean())
    return found


NOISES_OF_EXTRA = (0.05, 0.1, 0.2, 0.4)


def extra_losses(lab: Lab) -> dict[str, dict[float, tuple[float, float]]]:
    """By method and noise: the added loss at the true weights, drawn (1,000 times for 1,000 rows) and in closed form."""
    problem = draw_logistic(1, 1000, lab.features, signal=lab.signal, base_rate=0.2, seed=lab.seed)
    logits = problem.x[0] @ problem.weights[0] + problem.intercepts[0]
    found: dict[str, dict[float, tuple[float, float]]] = {}
    for kind in ("lspr", "scr"):
        for noise in NOISES_OF_EXTRA:
            method = LinearMethod(kind, 0.5, noise)
            drawn = _drawn_extra_loss(method, logits, problem.y[0], lab.signal, lab.seed)
            found.setdefault(kind, {})[noise] = (drawn, float(expected_extra_loss(method, logits, lab.signal)))
    return found


def grid(kind: str) -> list[LinearMethod]:
    """The twelve settings among which a kind of method chooses."""
    match kind:
        case "none":
            return [LinearMethod("none")]
        case "ridge":
            strengths = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
            return [LinearMethod("ridge", strength) for strength in strengths]
        case "lspr":
            return [LinearMethod("lspr", strength, noise) for strength in (0.25, 0.5, 1.0) for noise in NOISES]
        case _:
            return [LinearMethod("scr", strength, noise) for strength in (1.0, 10.0, 100.0) for noise in NOISES]


def alignment(lab: Lab, correlation: float, base_rate: float, rows: int) -> list[Cell]:
    """Each kind of method at the setting whose mean cosine is best on the held-out problems."""
    held_out, judged = (
        draw_logistic(
            count,
            rows,
            lab.features,
            signal=lab.signal,
            base_rate=base_rate,
            seed=2 * (lab.seed + rows) + place,
            correlation=correlation,
        )
        for place, count in enumerate((lab.held_out, lab.problems))
    )
    cells = []
    for kind in KINDS:
        settings = grid(kind)
        method = settings[0]
        if len(settings) > 1:
            means = [float(cosine(logistic_weights(held_out, m), held_out.weights).mean()) for m in settings]
            method = settings[means.index(max(means))]
        cosines = cosine(logistic_weights(judged, method), judged.weights).tolist()
        estimate = mean_estimate(cosines)
        error = estimate.standard_error or 0.0
        cells.append(
            Cell(
                correlation,
                base_rate,
                rows,
                kind,
                method.strength,
                method.noise,
                estimate.mean,
                error,
                tuple(cosines),
            )
        )
    return cells


def alignment_by_noise(lab: Lab) -> dict[str, dict[float, float]]:
    """Mean cosine against the noise at fixed strengths, few rows and even labels."""
    problems = draw_logistic(
        lab.problems, 5 * lab.features, lab.features, signal=lab.signal, base_rate=0.5, seed=lab.seed
    )
    fixed = (("none", 0.0), ("lspr", 0.5), ("lspr", 1.0), ("scr", 1.0), ("scr", 10.0))
    found: dict[str, dict[float, float]] = {}
    for kind, strength in fixed:
        for noise in (0.1, 0.2, 0.4, 0.8, 1.6):
            method = LinearMethod(kind, strength, noise)  # type: ignore[arg-type]  # kinds of the table above
            mean = float(cosine(logistic_weights(problems, method), problems.weights).mean())
            found.setdefault(kind if kind == "none" else f"{kind} {strength:g}", {})[noise] = mean
    return found


@dataclass(frozen=True)
class Wins:
    """In how many of the cells one kind's mean cosine is above another's, and in how many it is told from it, either way (paired
    t, Holm over the cells); mean, low, high: of the difference over all problems of all cells, its t interval over problems,
    equal numbers of problems in the cells taken as one."""

    kind: str
    other: str
    cells: int
    above: int
    told_above: int
    told_below: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.kind} less {self.other}: {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]; above in {self.above} of "
            f"{self.cells} cells, told from 0 (paired t, Holm): above in {self.told_above}, below in {self.told_below}"
        )


PAIRS = (("lspr", "scr"), ("lspr", "ridge"), ("scr", "ridge"), ("lspr", "none"), ("ridge", "none"))


def compared(cells: Sequence[Cell], kind: str, other: str) -> Wins:
    """One kind against another over all cells."""
    pairs = _pairs(cells, kind, other)
    differences = [paired_difference(one.cosines, two.cosines) for one, two in pairs]
    p_values = holm([1.0 if d.p_value is None else d.p_value for d in differences])
    told = [d.mean for d, p_value in zip(differences, p_values, strict=True) if p_value <= 0.05]
    over_cells = [[sum(values) / len(pairs) for values in zip(*side, strict=True)] for side in (
        [one.cosines for one, _ in pairs], [two.cosines for _, two in pairs]
    )]  # fmt: skip
    overall = paired_difference(*over_cells)
    return Wins(
        kind,
        other,
        len(pairs),
        sum(d.mean > 0 for d in differences),
        sum(mean > 0 for mean in told),
        sum(mean < 0 for mean in told),
        overall.mean,
        overall.low,
        overall.high,
    )


def _pairs(cells: Sequence[Cell], kind: str, other: str) -> list[tuple[Cell, Cell]]:
    places = {(c.correlation, c.base_rate, c.rows, c.kind): c for c in cells}
    return [(c, places[c.correlation, c.base_rate, c.rows, other]) for c in cells if c.kind == kind]


def _drawn_extra_loss(method: LinearMethod, logits: Tensor, y: Tensor, length: float, seed: int) -> float:
    """Mean over draws e . w ~ N(0, (noise |w|)^2) and, so that the first order cancels, their negatives."""
    moved = draw_noise(logits.view(1, 1, -1), method.noise * length, 500, seed)[0]  # (500, n)
    others = logits + torch.cat([moved, -moved])
    if method.kind == "scr":
        added = (torch.sigmoid(others) - torch.sigmoid(logits)).square()
    else:
        added = torch.nn.functional.softplus(others) - torch.nn.functional.softplus(logits) - y * (others - logits)
    return float(method.strength * added.mean())


def _sections(
    lab: Lab,
    ridge: Mapping[str, Mapping[int, float]],
    extra: Mapping[str, Mapping[float, tuple[float, float]]],
    cells: Sequence[Cell],
    strengths: Mapping[str, Mapping[float, float]],
    wins: Sequence[Wins],
) -> tuple[Section, ...]:
    copies = [str(n) for n in next(iter(ridge.values()))]
    extra_rows = tuple(
        (kind, f"{noise:g}", f"{drawn:.3e}", f"{closed:.3e}", f"{drawn / closed:.4f}")
        for kind, of_noise in extra.items()
        for noise, (drawn, closed) in of_noise.items()
    )
    cell_rows = tuple(
        (
            f"{c.correlation:g}",
            f"{c.base_rate:g}",
            f"{c.rows:,}",
            c.kind,
            f"{c.strength:g}",
            f"{c.noise:g}",
            f"{c.cosine:.4f} ± {c.standard_error:.4f}",
        )
        for c in cells
    )
    return (
        Section(
            "Squared loss: both are a ridge",
            "In expectation over the noise, LSPR (balanced) and SCR are least squares plus strength * noise^2 |w|^2, additive "
            "LSPR the same over 1 + strength. Relative distance of the solution with drawn copies to that closed form: it falls "
            "with the root of the number of copies.",
            Table(("method", *copies), tuple((kind, *map(_shown, row.values())) for kind, row in ridge.items())),
            {"distance_to_ridge": _lines(ridge, "noise copies", "relative distance to the ridge solution", log_y=True)},
        ),
        Section(
            "Logistic loss: what is added",
            "At the true weights: mean over drawn noise beside the second-order closed form of studies.perturbation_problems.",
            Table(("method", "noise", "drawn", "closed form", "ratio"), extra_rows),
        ),
        Section(
            "Alignment with the true weights",
            f"Cosine, mean over {lab.problems} problems of {lab.features} features, each method at the strength and noise that "
            f"align best on {lab.held_out} others. {'. '.join(map(str, wins))}.",
            Table(("correlation", "positives", "rows", "method", "strength", "noise", "cosine"), cell_rows),
            {"alignment": _alignment_plot(lab, cells)},
        ),
        Section(
            "Alignment against the noise",
            f"{5 * lab.features} rows, even labels, fixed strengths.",
            figures={"alignment_by_noise": _lines(strengths, "noise (standard deviations)", "mean cosine")},
        ),
    )


def _alignment_plot(lab: Lab, cells: Sequence[Cell]) -> Figure:
    """One panel a base rate and correlation: 1 - cosine against the sample size."""
    shape = len(lab.correlations), len(lab.base_rates)
    figure = Figure(figsize=(4.2 * shape[1], 3.4 * shape[0]), layout="constrained")
    for i, (correlation, base_rate) in enumerate(product(lab.correlations, lab.base_rates)):
        panel = figure.add_subplot(*shape, i + 1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        for kind in KINDS:
            own = [
                cell
                for cell in cells
                if (cell.kind, cell.correlation, cell.base_rate) == (kind, correlation, base_rate)
            ]
            panel.errorbar(
                [cell.rows for cell in own],
                [1 - cell.cosine for cell in own],
                [cell.standard_error for cell in own],
                fmt="o-",
                label=kind,
                color=COLORS[kind],
                markersize=3,
                linewidth=1.2,
            )
        panel.set(
            title=f"positives {base_rate:g}, correlation {correlation:g}",
            xlabel="rows",
            ylabel="1 - cosine" if i % shape[1] == 0 else "",
            xscale="log",
            yscale="log",
        )
        panel.legend(frameon=False)
    return figure


def _lines(
    series: Mapping[str, Mapping[float, float]] | Mapping[str, Mapping[int, float]],
    x: str,
    y: str,
    *,
    log_y: bool = False,
) -> Figure:
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    panel = figure.add_subplot()
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    for name, values in series.items():
        panel.plot(list(values.keys()), list(values.values()), "o-", label=name, markersize=3, linewidth=1.2)
    panel.set(xlabel=x, ylabel=y, xscale="log", yscale="log" if log_y else "linear")
    panel.legend(frameon=False)
    return figure


def _shown(value: float) -> str:
    return f"{value:.4f}"


def _text(columns: Sequence[str], rows: object) -> str:
    return "\n".join("".join(f"{cell:>16}" for cell in row) for row in (columns, *rows))  # type: ignore[misc]


def main() -> None:
    with told():
        run(tyro.cli(Lab, description=__doc__))


if __name__ == "__main__":
    main()
