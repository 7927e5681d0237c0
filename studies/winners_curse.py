"""The winner's curse of ranking: whoever picks the highest of noisy scores picks errors that flatter (UKDSL, arXiv 2502.06834).

N candidates have true logits mean + spread * g, a model sees them through noise, score = true logit + noise * e (g, e standard
normal), and the top k by score are shown. On average over all candidates the model may be right; on what is shown the mean
prediction exceeds the mean truth. In this Gaussian case both means are one integral over the order statistics of the scores:

    E[f | shown] = N / k * integral f(x) phi(x) P(Binomial(N - 1, 1 - Phi(x)) <= k - 1) dx,   x: the standardized score,

with f = sigmoid(score) for the prediction, and f = E[sigmoid(true logit) | score] for the truth.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GRID, _LIMIT = (
    4_001,
    9.0,
)  # the integrand is smooth and vanishes at both ends: the trapezoidal rule is exact to float64
_NODES = 61
_CHUNK = 4_000_000  # scores drawn at a time


@dataclass(frozen=True)
class Selection:
    """``shown`` of ``candidates`` by a score with Gaussian noise of standard deviation ``noise``; all in logit units."""

    candidates: int
    shown: int
    noise: float
    spread: float = 1.0
    mean: float = -3.0

    def __post_init__(self) -> None:
        if not 1 <= self.shown <= self.candidates:
            raise ValueError(f"shown must lie in [1, candidates = {self.candidates}], not {self.shown}")
        if not (self.spread > 0 and self.noise >= 0):
            raise ValueError(f"spread must be above 0 and noise at least 0, not {self.spread} and {self.noise}")


@dataclass(frozen=True)
class SelectedMeans:
    """Mean prediction and mean true probability of what is shown; standard_error: of their ratio (0 = no sampling)."""

    predicted: float
    true: float
    standard_error: float = 0.0

    @property
    def ratio(self) -> float:
        return self.predicted / self.true


def expected_means(selection: Selection) -> SelectedMeans:
    """The integrals above."""
    s, total = selection, math.hypot(selection.spread, selection.noise)
    x = torch.linspace(-_LIMIT, _LIMIT, _GRID, dtype=torch.float64)
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    weight = density * _chance_to_be_shown(x, s.candidates, s.shown) * (s.candidates / s.shown)
    reliability = (
        s.spread / total
    ) ** 2  # the true logit given the score: N(mean + reliability * total * x, left over)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(_NODES)
    left_over = s.spread * math.sqrt(1 - reliability)
    true_logits = s.mean + reliability * total * x.unsqueeze(1) + left_over * torch.from_numpy(nodes)
    true = (torch.sigmoid(true_logits) * torch.from_numpy(node_weights / node_weights.sum())).sum(1)
    predicted = torch.sigmoid(s.mean + total * x)
    return SelectedMeans(float(torch.trapezoid(weight * predicted, x)), float(torch.trapezoid(weight * true, x)))


def simulated_means(selection: Selection, requests: int, seed: int = 0, *, posterior: bool = False) -> SelectedMeans:
    """The same by simulation. posterior: the model predicts E[true probability | score] instead of sigmoid(score), the one
    prediction that selection by this very score does not bias."""
    s, total = selection, math.hypot(selection.spread, selection.noise)
    reliability = (s.spread / total) ** 2
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(_NODES)
    pairs = []
    for true_logit, noise in _draws(requests, s.candidates, 2, seed):
        true_logit = s.mean + s.spread * true_logit
        score = true_logit + s.noise * noise
        shown = score.topk(s.shown, dim=1).indices
        predicted = torch.sigmoid(score.gather(1, shown))
        if posterior:
            middle = s.mean + reliability * (score.gather(1, shown) - s.mean)
            spread = s.spread * math.sqrt(1 - reliability)
            points = middle.unsqueeze(-1) + spread * torch.from_numpy(nodes).float()
            predicted = (torch.sigmoid(points) * torch.from_numpy(node_weights / node_weights.sum()).float()).sum(-1)
        pairs.append(torch.stack([predicted.mean(1), torch.sigmoid(true_logit.gather(1, shown)).mean(1)]))
    return _means(torch.cat(pairs, dim=1))


def unbiased_means(
    candidates: int,
    shown: int,
    concentration: float,
    requests: int,
    seed: int = 0,
    *,
    mean: float = -3.0,
    spread: float = 1.0,
) -> SelectedMeans:
    """A model that is unbiased at every candidate: its prediction is Beta(c p, c (1 - p)), of mean p and variance
    p (1 - p) / (c + 1). The top by prediction are shown, and there it over-predicts all the same."""
    torch_state = torch.random.get_rng_state()
    pairs = []
    try:
        torch.manual_seed(seed)  # torch's Beta takes no generator
        for (true_logit,) in _draws(requests, candidates, 1, seed):
            true = torch.sigmoid(mean + spread * true_logit).double()
            predicted = torch.distributions.Beta(concentration * true, concentration * (1 - true)).sample()
            picked = predicted.topk(shown, dim=1).indices
            pairs.append(torch.stack([predicted.gather(1, picked).mean(1), true.gather(1, picked).mean(1)]))
    finally:
        torch.random.set_rng_state(torch_state)
    return _means(torch.cat(pairs, dim=1))


def two_stage_means(
    first: Selection, second_shown: int, second_noise: float, requests: int, seed: int = 0, *, select: bool = True
) -> SelectedMeans:
    """A second model, with noise of its own, picks ``second_shown`` of what the first stage passed on; its predictions there.

    select=False: the first stage passes on as many at random, which is the second stage alone. The first stage leaves candidates
    that are more alike, so that noise decides more among them: the two curses compound.
    """
    pairs = []
    for true_logit, noise, other in _draws(requests, first.candidates, 3, seed):
        true_logit = first.mean + first.spread * true_logit
        score = true_logit + first.noise * noise if select else noise
        passed = true_logit.gather(1, score.topk(first.shown, dim=1).indices)
        second = passed + second_noise * other[:, : first.shown]
        shown = second.topk(second_shown, dim=1).indices
        pairs.append(torch.stack([torch.sigmoid(values.gather(1, shown)).mean(1) for values in (second, passed)]))
    return _means(torch.cat(pairs, dim=1))


def _draws(requests: int, candidates: int, count: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """``count`` standard normal matrices (rows, candidates) at a time, ``requests`` rows in all."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _CHUNK // candidates)
    for first in range(0, requests, rows):
        size = min(rows, requests - first)
        yield tuple(torch.randn(size, candidates, generator=generator) for _ in range(count))


def _means(pairs: Tensor) -> SelectedMeans:
    """Of (2, requests) predicted and true means; the ratio's standard error by the delta method."""
    predicted, true = pairs.double()
    ratio = predicted.mean() / true.mean()
    error = (predicted - ratio * true).std() / math.sqrt(len(true)) / true.mean()
    return SelectedMeans(float(predicted.mean()), float(true.mean()), float(error))


def _chance_to_be_shown(x: Tensor, candidates: int, shown: int) -> Tensor:
    """P(at most shown - 1 of the other candidates score higher than x), x standardized."""
    above, below = torch.special.log_ndtr(-x), torch.special.log_ndtr(x)
    others = candidates - 1
    j = torch.arange(shown, dtype=torch.float64)
    choose = math.lgamma(others + 1) - torch.lgamma(j + 1) - torch.lgamma(others - j + 1)
    return torch.logsumexp(choose + j * above.unsqueeze(1) + (others - j) * below.unsqueeze(1), dim=1).exp()
