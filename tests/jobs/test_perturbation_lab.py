"""The alignment lab: closed forms, gradients and minima are what they are said to be, and the job reports them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rayrec.metrics.paired import paired_difference
from studies.perturbation_lab import Cell, Lab, alignment, compared, distances_to_ridge, extra_losses, grid, run
from studies.perturbation_problems import (
    LinearMethod,
    _slopes,
    cosine,
    draw_linear,
    draw_logistic,
    logistic_weights,
    objective,
    ridge_penalty,
    ridge_weights,
    squared_loss_weights,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of 20 columns: threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["lspr", "lspr_additive", "scr"])
def test_with_the_squared_loss_drawn_noise_comes_down_to_the_closed_form_ridge(kind: str) -> None:
    problems = draw_linear(4, 40, 8, label_noise=1.0, seed=0)
    method = LinearMethod(kind, 0.6, 0.7, copies=3000)  # type: ignore[arg-type]
    closed = ridge_weights(problems, ridge_penalty(method))
    drawn = squared_loss_weights(problems, method, seed=1)
    assert float((drawn - closed).norm(dim=1).max()) < 0.02
    plain = ridge_weights(problems, 0.0)
    assert float((plain - closed).norm(dim=1).min()) > 0.1


def test_the_distance_to_the_ridge_falls_with_the_root_of_the_copies() -> None:
    for by_copies in distances_to_ridge(Lab(problems=30, features=5)).values():
        assert by_copies[1] / by_copies[256] == pytest.approx(16, rel=0.5)


def test_the_added_logistic_loss_is_the_second_order_closed_form_for_small_noise() -> None:
    for by_noise in extra_losses(Lab()).values():
        errors = [abs(drawn / closed - 1) for drawn, closed in by_noise.values()]
        assert errors[0] < 0.02
        assert errors[-1] > errors[0]


@pytest.mark.parametrize(
    "method",
    [
        LinearMethod("none"),
        LinearMethod("ridge", 0.1),
        LinearMethod("lspr", 0.7, 0.5),
        LinearMethod("lspr_additive", 0.7, 0.5),
        LinearMethod("scr", 5.0, 0.5),
    ],
    ids=lambda method: method.kind,
)
def test_logistic_weights_are_the_minimum_that_an_independent_solver_finds(method: LinearMethod) -> None:
    """Which integrates over the noise by Gauss-Hermite quadrature, and knows no gradients."""
    problems = draw_logistic(2, 80, 4, signal=1.5, base_rate=0.3, seed=2, correlation=0.5)
    learned = logistic_weights(problems, method)
    points, shares = np.polynomial.hermite_e.hermegauss(80)
    shares = shares / shares.sum()
    for i in range(2):
        x, y = problems.x[i].numpy(), problems.y[i].numpy()

        def cross_entropy(z: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.logaddexp(0, z) - y * z

        def objective(w: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            z = x @ w[:-1] + w[-1]
            others = z[:, None] + method.noise * np.linalg.norm(w[:-1]) * points
            clean = float(cross_entropy(z, y).mean())
            twice = float((cross_entropy(others, y[:, None]) @ shares).mean())
            tiny = 1e-4 * np.sum(w[:-1] ** 2) + 1e-9 * w[-1] ** 2
            match method.kind:
                case "none":
                    return clean + tiny
                case "ridge":
                    return clean + tiny + method.strength * float(np.sum(w[:-1] ** 2))
                case "lspr":
                    return (1 - method.strength) * clean + method.strength * twice + tiny
                case "lspr_additive":
                    return clean + method.strength * twice + tiny
            gap = 1 / (1 + np.exp(-z[:, None])) - 1 / (1 + np.exp(-others))
            return clean + method.strength * float((gap**2 @ shares).mean()) + tiny

        found = minimize(objective, np.full(5, 0.1), method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(learned[i].numpy(), found.x[:-1], atol=2e-4)


@pytest.mark.parametrize(
    "method", [LinearMethod("lspr", 1.0, 1.0), LinearMethod("scr", 10.0, 1.0)], ids=lambda m: m.kind
)
def test_noise_drawn_anew_at_each_step_leads_to_the_weights_of_its_mean(method: LinearMethod) -> None:
    problems = draw_logistic(4, 100, 5, signal=2.0, base_rate=0.5, seed=3)
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    mean = torch.zeros_like(weights).detach()
    for step in range(2000):
        noise = method.noise * torch.randn(problems.x.shape, generator=generator, dtype=torch.float64)
        z, other = (
            torch.einsum("snd,sd->sn", x, weights[:, :-1]) + weights[:, -1:] for x in (problems.x, problems.x + noise)
        )
        if method.kind == "scr":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(z, problems.y, reduction="none")
            loss = loss + method.strength * (torch.sigmoid(z) - torch.sigmoid(other)).square()
        else:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(other, problems.y, reduction="none")
        total = loss.mean(1).sum() + 1e-4 * weights[:, :-1].square().sum()
        (gradient,) = torch.autograd.grad(total, weights)
        with torch.no_grad():
            weights -= 0.3 * gradient
            if step >= 500:
                mean += weights / 1500
    torch.testing.assert_close(mean[:, :-1], logistic_weights(problems, method), atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    "method", [LinearMethod("lspr", 0.7, 2.0), LinearMethod("scr", 30.0, 1.0)], ids=lambda m: m.kind
)
def test_at_the_minimum_the_gradient_of_the_objective_is_0(method: LinearMethod) -> None:
    problems = draw_logistic(3, 60, 6, signal=2.0, base_rate=0.2, seed=4, correlation=0.8)
    x = torch.cat([problems.x, torch.ones(3, 60, 1, dtype=torch.float64)], dim=2)
    penalty = torch.full((7,), 1e-4, dtype=torch.float64)
    penalty[-1] = 1e-9
    weights = torch.full((3, 7), 0.3, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(objective(weights, x, problems.y, method, penalty).sum(), weights)
    gradient, hessian = _slopes(weights.detach(), x, problems.y, method, penalty)
    torch.testing.assert_close(gradient, wanted)
    assert float(torch.linalg.eigvalsh(hessian).min()) > 0


def test_correlated_features_have_the_asked_correlations_and_logits_the_asked_spread() -> None:
    problems = draw_logistic(2, 40_000, 4, signal=2.0, base_rate=0.5, seed=0, correlation=0.8)
    for x, w in zip(problems.x, problems.weights, strict=True):
        np.testing.assert_allclose(np.corrcoef(x.T.numpy())[0], [1.0, 0.8, 0.64, 0.512], atol=0.02)
        assert float(x.var()) == pytest.approx(1.0, abs=0.03)
        assert float((x @ w).std()) == pytest.approx(2.0, rel=0.02)


def test_the_share_of_positives_is_the_asked_one_and_more_rows_align_better() -> None:
    problems = draw_logistic(20, 2000, 5, signal=2.0, base_rate=0.1, seed=0)
    assert float(problems.y.mean()) == pytest.approx(0.1, abs=0.01)
    few = draw_logistic(20, 60, 5, signal=2.0, base_rate=0.1, seed=0)
    plain = LinearMethod("none")
    aligned = [float(cosine(logistic_weights(p, plain), p.weights).mean()) for p in (few, problems)]
    assert aligned[0] < aligned[1] - 0.05
    assert aligned[1] > 0.98


def test_both_methods_align_better_than_plain_training_where_labels_are_scarce() -> None:
    """Which of the two is ahead is a close race that the job's paired intervals report."""
    problems = draw_logistic(40, 50, 20, signal=2.0, base_rate=0.5, seed=1)
    methods = (LinearMethod("none"), LinearMethod("lspr", 0.5, 1.0), LinearMethod("scr", 10.0, 0.5))
    plain, lspr, scr = (cosine(logistic_weights(problems, method), problems.weights) for method in methods)
    for better in (lspr, scr):
        assert paired_difference(better.tolist(), plain.tolist()).low > 0.03


def test_settings_are_chosen_on_problems_that_are_not_judged_on() -> None:
    lab = Lab(problems=3, held_out=4, features=4)
    _, ridge, *_ = alignment(lab, 0.5, 0.3, 40)
    chosen_on = draw_logistic(4, 40, 4, signal=2.0, base_rate=0.3, seed=80, correlation=0.5)
    means = [float(cosine(logistic_weights(chosen_on, m), chosen_on.weights).mean()) for m in grid("ridge")]
    best = grid("ridge")[means.index(max(means))]
    judged_on = draw_logistic(3, 40, 4, signal=2.0, base_rate=0.3, seed=81, correlation=0.5)
    assert ridge.strength == best.strength
    assert list(ridge.cosines) == cosine(logistic_weights(judged_on, best), judged_on.weights).tolist()


def test_one_kind_is_compared_with_another_cell_by_cell_and_overall() -> None:
    def cells(kind: str, *cosines: tuple[float, ...]) -> list[Cell]:
        return [Cell(0.0, 0.5, 30 + i, kind, 1.0, 0.0, sum(c) / len(c), 0.0, c) for i, c in enumerate(cosines)]

    plain = (0.50, 0.52, 0.48, 0.51, 0.49)
    better, worse = (
        tuple(v + 0.1 + i / 1e4 for i, v in enumerate(plain)),
        tuple(v - 0.1 - i / 1e4 for i, v in enumerate(plain)),
    )
    found = compared([*cells("lspr", better, better, worse), *cells("scr", plain, plain, plain)], "lspr", "scr")
    assert (found.cells, found.above, found.told_above, found.told_below) == (3, 2, 2, 1)
    assert found.mean == pytest.approx(0.1 / 3, abs=1e-3)
    assert found.low < found.mean < found.high


def test_the_job_writes_its_figures_report_and_numbers(runs: Path) -> None:
    lines: list[str] = []
    page = run(
        Lab(problems=3, held_out=2, features=4, rows=(30, 60), base_rates=(0.5,), correlations=(0.0,)), lines.append
    )
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "alignment.png", "alignment_by_noise.png", "distance_to_ridge.png"
    }  # fmt: skip
    results = json.loads((runs / "perturbation-lab" / "results.json").read_text())
    assert [(cell["rows"], cell["kind"]) for cell in results["cells"][:4]] == [
        (30, "none"), (30, "ridge"), (30, "scr"), (30, "lspr")
    ]  # fmt: skip
    assert [(win["kind"], win["cells"]) for win in results["wins"]][:2] == [("lspr", 2), ("lspr", 2)]
    assert any("lspr less scr: " in line for line in lines)
