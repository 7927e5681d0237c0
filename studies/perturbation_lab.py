"""SCR and LSPR where the truth is known, closed forms beside Monte Carlo: python -m studies.perturbation_lab.

1. Squared loss: with more and more noise copies both methods come down to the ridge solution.
2. Logistic loss: what they add to the cross-entropy, drawn and to second order in the noise.
3. Logistic loss: cosine of learned and true weights against sample size, rarity of positives and noise, each method at its own
   best strength, beside plain and ridge regression.

Writes a report with figures to <runs>/<name>/report and its numbers to <runs>/<name>/results.json; minutes on two cores.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
NOISES = (0.25, 0.5, 1.0)
KINDS = ("none", "ridge", "scr", "lspr")


@dataclass(frozen=True)
class Lab:
    """Problems, methods and their size."""

    name: str = "perturbation-lab"
    """Folder and run name."""
    problems: int = 20
    """Independent data sets ("seeds") of each cell."""
    features: int = 20
    """d, columns of the matrix."""
    signal: float = 2.0
    """Length of the true weights (logistic)."""
    rows: tuple[int, ...] = (30, 50, 100, 200, 500, 1000)
    """Sample sizes."""
    base_rates: tuple[float, ...] = (0.5, 0.1, 0.02)
    """Shares of positives."""
    copies: int = 4
    """Perturbed copies of each row."""
    label_noise: float = 1.0
    """Of the linear model."""
    seed: int = 0
    """Of the problems and of the noise."""
    threads: int = 1
    """The matrices are small; more threads mostly wait for each other."""


@dataclass(frozen=True)
class Cell:
    """Mean cosine of one kind of method at its best strength for one sample size and base rate, and its standard error."""

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
    for base_rate in lab.base_rates:
        for rows in lab.rows:
            found = alignment(lab, base_rate, rows)
            cells += found
            shown = ", ".join(f"{cell.kind} {cell.cosine:.4f} ± {cell.standard_error:.4f}" for cell in found)
            say(f"positives {base_rate:g}, {rows:,} rows: {shown}")
    strengths = alignment_by_noise(lab)
    share, wins = lspr_over_scr(cells)
    say(f"\nLSPR's mean cosine is at least SCR's in {share:.0%} of {len(cells) // len(KINDS)} cells; {wins}")
    page = write_page(folder / "report", "Perturbation lab", _sections(lab, ridge, extra, cells, strengths, wins))
    results = {
        "lab": asdict(lab),
        "distance_to_ridge": ridge,
        "extra_loss": extra,
        "cells": [asdict(cell) for cell in cells],
        "by_noise": strengths,
        "share_lspr_at_least_scr": share,
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


def grid(kind: str, copies: int) -> list[LinearMethod]:
    """The strengths and noises among which a kind of method finds its best."""
    match kind:
        case "none":
            return [LinearMethod("none")]
        case "ridge":
            return [LinearMethod("ridge", strength) for strength in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)]
        case "lspr":
            return [LinearMethod("lspr", strength, noise, copies) for strength in (0.25, 0.5, 1.0) for noise in NOISES]
        case _:
            return [LinearMethod("scr", strength, noise, copies) for strength in (1.0, 10.0, 100.0) for noise in NOISES]


def alignment(lab: Lab, base_rate: float, rows: int) -> list[Cell]:
    """Each kind of method at the strength whose mean cosine is best, on the same problems."""
    problems = draw_logistic(
        lab.problems, rows, lab.features, signal=lab.signal, base_rate=base_rate, seed=lab.seed + rows
    )
    cells = []
    for kind in KINDS:
        tried = [
            (method, cosine(logistic_weights(problems, method, lab.seed), problems.weights))
            for method in grid(kind, lab.copies)
        ]
        method, cosines = max(tried, key=lambda pair: float(pair[1].mean()))
        estimate = mean_estimate(cosines.tolist())
        cells.append(
            Cell(
                base_rate,
                rows,
                kind,
                method.strength,
                method.noise,
                estimate.mean,
                estimate.standard_error or 0.0,
                tuple(cosines.tolist()),
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
            method = LinearMethod(kind, strength, noise, lab.copies)  # type: ignore[arg-type]  # kinds of the table above
            mean = float(cosine(logistic_weights(problems, method, lab.seed), problems.weights).mean())
            found.setdefault(kind if kind == "none" else f"{kind} {strength:g}", {})[noise] = mean
    return found


def lspr_over_scr(cells: Sequence[Cell]) -> tuple[float, str]:
    """Share of cells where LSPR's mean cosine is at least SCR's; and in words, in how many they are told apart."""
    pairs = [
        (lspr, scr)
        for lspr in cells
        for scr in cells
        if (lspr.kind, scr.kind) == ("lspr", "scr") and (lspr.base_rate, lspr.rows) == (scr.base_rate, scr.rows)
    ]
    differences = [paired_difference(lspr.cosines, scr.cosines) for lspr, scr in pairs]
    p_values = holm([1.0 if d.p_value is None else d.p_value for d in differences])
    told = [d.mean for d, p_value in zip(differences, p_values, strict=True) if p_value <= 0.05]
    above, below = sum(mean > 0 for mean in told), sum(mean < 0 for mean in told)
    share = sum(lspr.cosine >= scr.cosine for lspr, scr in pairs) / len(pairs)
    return share, f"told from 0 (paired t, Holm): above in {above}, below in {below}"


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
    wins: str,
) -> tuple[Section, ...]:
    copies = [str(n) for n in next(iter(ridge.values()))]
    extra_rows = tuple(
        (kind, f"{noise:g}", f"{drawn:.3e}", f"{closed:.3e}", f"{drawn / closed:.4f}")
        for kind, of_noise in extra.items()
        for noise, (drawn, closed) in of_noise.items()
    )
    cell_rows = tuple(
        (
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
            f"align best, {lab.copies} noise copies of each row. {wins}.",
            Table(("positives", "rows", "method", "strength", "noise", "cosine"), cell_rows),
            {"alignment": _alignment_plot(lab, cells)},
        ),
        Section(
            "Alignment against the noise",
            f"{5 * lab.features} rows, even labels, fixed strengths.",
            figures={"alignment_by_noise": _lines(strengths, "noise (standard deviations)", "mean cosine")},
        ),
    )


def _alignment_plot(lab: Lab, cells: Sequence[Cell]) -> Figure:
    """One panel a base rate: 1 - cosine against the sample size."""
    figure = Figure(figsize=(4.2 * len(lab.base_rates), 3.4), layout="constrained")
    for i, base_rate in enumerate(lab.base_rates):
        panel = figure.add_subplot(1, len(lab.base_rates), i + 1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        for kind in KINDS:
            own = [cell for cell in cells if cell.kind == kind and cell.base_rate == base_rate]
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
            title=f"positives {base_rate:g}",
            xlabel="rows",
            ylabel="1 - cosine" if i == 0 else "",
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
