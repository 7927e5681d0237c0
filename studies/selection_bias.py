"""Why a student that learns from a teacher's scores on unlabeled candidates is right where one that learns from labels is not.

A linear world: the true logit of a request's candidate is w_s x_s + w_t x_t + b; the teacher sees x_s and x_t, the student x_s
only. The candidates with the highest logits (with some noise) are shown and get labels. Given the teacher's features selection
is ignorable: they drove it. Given the student's it is not: among shown candidates x_t is high, so the student fitted to
impressions learns P(y | x_s, shown), too high for all candidates. The teacher, fitted to the same impressions, is right on all,
and its scores of unlabeled candidates average to P(y | x_s) (UKDSL, arXiv 2502.06834; the analysis is ours).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_NEWTON_STEPS = 30


@dataclass(frozen=True)
class LinearWorld:
    """Requests whose shown candidates are chosen by a teacher that sees more than the student."""

    student_features: int = 8
    """Numbers that both see, standard normal."""
    teacher_features: int = 8
    """Numbers that the teacher alone sees, standard normal."""
    student_effect: float = 0.8
    """Norm of w_s, the true weights of what both see."""
    teacher_effect: float = 0.7
    """Norm of w_t, the true weights of what the teacher alone sees."""
    intercept: float = -2.4
    """Of the true logit."""
    candidates: int = 50
    """Of a request; the ``shown`` best are shown."""
    shown: int = 2
    """Impressions of a request."""
    selection_noise: float = 0.6
    """Standard deviation of what is added to the true logit to choose them."""
    unlabeled_per_shown: int = 4
    """Candidates drawn at random from all of a request for each one shown."""
    requests: int = 20_000
    """That are learned from."""
    seed: int = 0
    """Of weights, candidates and labels."""


@dataclass(frozen=True)
class LinearOutcome:
    """Of one student. ece: expected calibration error on all candidates (20 equal-mass bins, against the true probabilities);
    the ratios are sum of predictions / sum of true probabilities."""

    ece: float
    ratio_on_candidates: float
    ratio_on_impressions: float


def linear_check(world: LinearWorld) -> dict[str, LinearOutcome]:
    """Students by what they learn from, and the teacher; judged on requests that none of them has seen."""
    generator = torch.Generator().manual_seed(world.seed)
    weights = torch.cat(
        [
            effect * torch.nn.functional.normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=0)
            for size, effect in (
                (world.student_features, world.student_effect),
                (world.teacher_features, world.teacher_effect),
            )
        ]
    )
    shown, labels, unlabeled = _impressions(world, weights, generator)
    every, seen = slice(None), slice(0, world.student_features)
    teacher = fit_logistic(shown, labels)
    taught = predict_logistic(teacher, unlabeled)
    both = torch.cat([shown, unlabeled])
    zeros = torch.zeros_like(taught)
    students = {
        "supervised": (fit_logistic(shown[:, seen], labels), seen),
        "candidates as negatives": (fit_logistic(both[:, seen], torch.cat([labels, zeros])), seen),
        "UKDSL, joint": (fit_logistic(both[:, seen], torch.cat([labels, taught])), seen),
        "UKDSL, unlabeled rows only": (fit_logistic(unlabeled[:, seen], taught), seen),
        "teacher": (teacher, every),
    }
    fresh, true, order = _requests(world, weights, min(world.requests, 4_000), generator)
    picked = true.gather(1, order)
    outcomes = {}
    for name, (model, columns) in students.items():
        predicted = predict_logistic(model, fresh[..., columns])  # (R, P)
        on_impressions = predicted.gather(1, order).sum() / picked.sum()
        ratio = predicted.sum() / true.sum()
        outcomes[name] = LinearOutcome(_ece(predicted.flatten(), true.flatten()), float(ratio), float(on_impressions))
    return outcomes


def fit_logistic(x: Tensor, targets: Tensor) -> Tensor:
    """(F + 1,) coefficients and intercept of least cross-entropy to targets (n,) in [0, 1], by Newton's method; x (n, F)."""
    inputs = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    theta = inputs.new_zeros(inputs.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(inputs @ theta)
        hessian = inputs.T @ (inputs * (p * (1 - p)).unsqueeze(1))
        step = torch.linalg.solve(hessian, inputs.T @ (p - targets))
        theta = theta - step
        if float(step.abs().max()) < 1e-10:
            break
    return theta


def predict_logistic(theta: Tensor, x: Tensor) -> Tensor:
    """(...,) probabilities of x (..., F)."""
    return torch.sigmoid(x @ theta[:-1] + theta[-1])


def _requests(
    world: LinearWorld, weights: Tensor, requests: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (R, P, F), true probabilities (R, P), and the places (R, shown) of the candidates that are shown."""
    x = torch.randn(requests, world.candidates, len(weights), generator=generator, dtype=torch.float64)
    logits = x @ weights + world.intercept
    noise = world.selection_noise * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    return x, torch.sigmoid(logits), (logits + noise).topk(world.shown, dim=1).indices


def _impressions(world: LinearWorld, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, F) and labels (n,) of what is shown, features (m, F) of unlabeled candidates."""
    shown, labels, unlabeled = [], [], []
    for first in range(0, world.requests, 2_000):
        x, true, order = _requests(world, weights, min(2_000, world.requests - first), generator)
        shown.append(x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1])).flatten(0, 1))
        chance = true.gather(1, order).flatten()
        labels.append((torch.rand(chance.shape, generator=generator) < chance).double())
        places = torch.randint(world.candidates, (len(x), world.shown * world.unlabeled_per_shown), generator=generator)
        unlabeled.append(x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1])).flatten(0, 1))
    return torch.cat(shown), torch.cat(labels), torch.cat(unlabeled)


def _ece(predicted: Tensor, true: Tensor, bins: int = 20) -> float:
    order = predicted.argsort()
    parts = zip(predicted[order].tensor_split(bins), true[order].tensor_split(bins), strict=True)
    return float(sum(len(p) * (p.mean() - t.mean()).abs() for p, t in parts)) / len(true)
