"""The alignment lab: closed forms, gradients and minima are what they are said to be, and the job reports them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rayrec.metrics.paired import paired_difference
from studies.perturbation_lab import Lab, distances_to_ridge, extra_losses, run
from studies.perturbation_problems import (
    LinearMethod,
    cosine,
    draw_linear,
    draw_logistic,
    draw_noise,
    logistic_weights,
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
        LinearMethod("lspr", 0.7, 0.5, 2),
        LinearMethod("lspr_additive", 0.7, 0.5, 2),
        LinearMethod("scr", 5.0, 0.5, 2),
    ],
    ids=lambda method: method.kind,
)
def test_logistic_weights_are_the_minimum_that_an_independent_solver_finds(method: LinearMethod) -> None:
    problems = draw_logistic(2, 80, 4, signal=1.5, base_rate=0.3, seed=2)
    noise = draw_noise(problems.x, method.noise, method.copies, seed=5).numpy()
    learned = logistic_weights(problems, method, seed=5)
    for i in range(2):
        x, y = problems.x[i].numpy(), problems.y[i].numpy()
        copies = np.concatenate([x] * method.copies) + noise[i]

        def cross_entropy(z: np.ndarray, y: np.ndarray) -> float:
            return float(np.mean(np.logaddexp(0, z) - y * z))

        def objective(w: np.ndarray, x: np.ndarray = x, y: np.ndarray = y, copies: np.ndarray = copies) -> float:
            z, other = x @ w[:-1] + w[-1], copies @ w[:-1] + w[-1]
            clean, twice = cross_entropy(z, y), cross_entropy(other, np.concatenate([y] * method.copies))
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
            gap = 1 / (1 + np.exp(-np.concatenate([z] * method.copies))) - 1 / (1 + np.exp(-other))
            return clean + method.strength * float(np.mean(gap**2)) + tiny

        found = minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(learned[i].numpy(), found.x[:-1], atol=2e-4)


def test_the_share_of_positives_is_the_asked_one_and_more_rows_align_better() -> None:
    problems = draw_logistic(20, 2000, 5, signal=2.0, base_rate=0.1, seed=0)
    assert float(problems.y.mean()) == pytest.approx(0.1, abs=0.01)
    few = draw_logistic(20, 60, 5, signal=2.0, base_rate=0.1, seed=0)
    plain = LinearMethod("none")
    aligned = [float(cosine(logistic_weights(p, plain, 0), p.weights).mean()) for p in (few, problems)]
    assert aligned[0] < aligned[1] - 0.05
    assert aligned[1] > 0.98


def test_both_methods_align_better_than_plain_training_where_labels_are_scarce() -> None:
    """Which of the two is ahead is a close race that the job's paired intervals report."""
    problems = draw_logistic(40, 50, 20, signal=2.0, base_rate=0.5, seed=1)
    methods = (LinearMethod("none"), LinearMethod("lspr", 0.5, 1.0, 4), LinearMethod("scr", 10.0, 0.5, 4))
    plain, lspr, scr = (cosine(logistic_weights(problems, method, 0), problems.weights) for method in methods)
    for better in (lspr, scr):
        assert paired_difference(better.tolist(), plain.tolist()).low > 0.03


def test_the_job_writes_its_figures_report_and_numbers(runs: Path) -> None:
    lines: list[str] = []
    page = run(Lab(problems=3, features=4, rows=(30, 60), base_rates=(0.5,), threads=1), lines.append)
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "alignment.png", "alignment_by_noise.png", "distance_to_ridge.png"
    }  # fmt: skip
    results = json.loads((runs / "perturbation-lab" / "results.json").read_text())
    assert [(cell["rows"], cell["kind"]) for cell in results["cells"][:4]] == [
        (30, "none"), (30, "ridge"), (30, "scr"), (30, "lspr")
    ]  # fmt: skip
    assert 0 <= results["share_lspr_at_least_scr"] <= 1
    assert any("LSPR's mean cosine is at least SCR's" in line for line in lines)
