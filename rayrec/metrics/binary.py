"""Streaming metrics of binary predictions: log loss, normalized entropy, AUC, calibration.

The state of T tasks is one tensor of sums, so batches are folded in without keeping them, and the states of several workers
add up. Log loss, normalized entropy and the calibration ratio are exact; AUC and ECE come from a histogram over logits,
16,384 bins of width 1/512: scores that fall into one bin count as ties.

Normalized entropy: log loss / entropy of the base rate (He et al. 2014, "Practical lessons from predicting clicks on ads").
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.errors import DivergedError
from rayrec.metrics.binary_groups import BinaryGroups, group_of

_BINS = 16_384
_LIMIT = 16.0  # logits beyond +-16 fall into the outermost bins
_POSITIVE, _NEGATIVE, _PREDICTED = (
    0,
    1,
    2,
)  # rows of the histogram: weight of positives, of negatives, weighted probability
_ROWS, _POSITIVES, _WEIGHT, _WEIGHTED_POSITIVES, _LOSS, _PROBABILITY = range(6)  # the exact sums, in front of it
_SUMS = 6


@dataclass(frozen=True)
class CalibrationBin:
    """One of the equal-mass bins of a calibration curve; ``rows`` is its total weight."""

    mean_predicted: float
    mean_observed: float
    rows: float


@dataclass(frozen=True)
class BinaryResult:
    """Metrics of one task; NaN where undefined (no rows, or only one class).

    rows, positives: counts of observed labels. All else is weighted where rows have weights.
    ece: expected calibration error over equal-mass bins. calibration_ratio: sum of predicted / sum of observed.
    """

    rows: float
    positives: float
    log_loss: float
    normalized_entropy: float
    auc: float
    ece: float
    calibration_ratio: float
    calibration_curve: tuple[CalibrationBin, ...]


class BinaryMetrics:
    """Running metrics of T tasks. ``calibration_bins``: equal-mass bins of the ECE and the calibration curve.

    by_group: also keep sums by group of users or rows, for ``groups.left_out``.
    """

    def __init__(self, num_tasks: int, *, calibration_bins: int = 20, by_group: bool = False) -> None:
        self.groups = BinaryGroups(num_tasks) if by_group else None
        self._rows = 0
        self.num_tasks = num_tasks
        self.calibration_bins = calibration_bins
        self._state = torch.zeros(num_tasks, _SUMS + 3 * _BINS, dtype=torch.float64)

    def update(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, users: Tensor | None = None
    ) -> None:
        """Fold in a batch: logits (B, T), labels (B, T) in {0, 1} or NaN = not observed, weights (B,) or None.

        users: (B,) int64, whose rows these are, 0 = unknown (each such row for itself); None = every row for itself.

        Raises ValueError for other shapes or for a logit that is not finite on an observed row.
        """
        if logits.shape != labels.shape or logits.dim() != 2 or logits.shape[1] != self.num_tasks:
            shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
            raise ValueError(f"{shapes}; expected both to be (rows, {self.num_tasks})")
        self._state = self._state.to(logits.device)
        logits = logits.detach().double()
        observed = ~labels.isnan()
        if bool((observed & ~logits.isfinite()).any()):
            raise DivergedError("a logit is NaN or infinite: training has diverged; lower the learning rate")
        if self.groups is not None:
            own = -1 - torch.arange(self._rows, self._rows + len(logits), device=logits.device)
            keys = own if users is None else torch.where(users == 0, own, users)
            self.groups.update(logits, labels, group_of(keys), weights)
        self._rows += len(logits)
        logits, labels = logits.nan_to_num(), labels.double().nan_to_num(0.0)
        mass = observed.double() if weights is None else observed * weights.double().unsqueeze(1)  # (B, T)
        positive = mass * labels
        probability = mass * logits.sigmoid()
        losses = mass * binary_cross_entropy_with_logits(logits, labels, reduction="none")
        sums = [observed.double(), observed * labels, mass, positive, losses, probability]
        self._state[:, :_SUMS] += torch.stack([s.sum(0) for s in sums], dim=1)
        bins = ((logits + _LIMIT) * (_BINS / (2 * _LIMIT))).long().clamp_(0, _BINS - 1).T  # (T, B)
        for row, values in ((_POSITIVE, positive), (_NEGATIVE, mass - positive), (_PREDICTED, probability)):
            self._histogram(row).scatter_add_(1, bins, values.T)

    def state(self) -> Tensor:
        """(T, S) float64 sums; the sum of several states is the state of all their rows together."""
        return self._state if self.groups is None else torch.cat([self._state, self.groups.state().flatten(1)], dim=1)

    def load_state(self, state: Tensor) -> None:
        """Raises ValueError when it is the state of another number of tasks."""
        if self.groups is not None and state.shape[1] > self._state.shape[1]:
            own = self._state.shape[1]
            self.groups.load_state(state[:, own:].view(self.groups.state().shape))
            state = state[:, :own]
        if state.shape != self._state.shape:
            raise ValueError(f"state of shape {tuple(state.shape)}, expected {tuple(self._state.shape)}")
        self._state = state.clone()

    def compute(self) -> tuple[BinaryResult, ...]:
        """One result a task."""
        state = self._state.cpu()
        return tuple(
            self._result(state[task, :_SUMS], state[task, _SUMS:].view(3, _BINS)) for task in range(self.num_tasks)
        )

    def _histogram(self, row: int) -> Tensor:
        start = _SUMS + row * _BINS
        return self._state[:, start : start + _BINS]

    def _result(self, sums: Tensor, histogram: Tensor) -> BinaryResult:
        rows, positives, weight, positive, loss, probability = sums.tolist()
        curve = _calibration_curve(histogram, self.calibration_bins)
        log_loss = loss / weight if weight > 0 else math.nan
        entropy = _entropy(positive / weight) if weight > 0 else math.nan
        return BinaryResult(
            rows=rows,
            positives=positives,
            log_loss=log_loss,
            normalized_entropy=log_loss / entropy if entropy > 0 else math.nan,
            auc=_auc(histogram[_POSITIVE], histogram[_NEGATIVE]),
            ece=sum(b.rows * abs(b.mean_predicted - b.mean_observed) for b in curve) / weight
            if weight > 0
            else math.nan,
            calibration_ratio=probability / positive if positive > 0 else math.nan,
            calibration_curve=curve,
        )


def _entropy(rate: float) -> float:
    return 0.0 if rate in (0.0, 1.0) else -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)


def _auc(positive: Tensor, negative: Tensor) -> float:
    """Share of (positive, negative) pairs in the right order; pairs within a bin count half."""
    pairs = float(positive.sum() * negative.sum())
    if pairs == 0:
        return math.nan
    below = negative.cumsum(0) - negative
    return float((positive * (below + 0.5 * negative)).sum()) / pairs


def _calibration_curve(histogram: Tensor, bins: int) -> tuple[CalibrationBin, ...]:
    """Merge the fine bins into ``bins`` of about equal mass (fewer where one fine bin holds more)."""
    mass = histogram[_POSITIVE] + histogram[_NEGATIVE]
    total = mass.sum()
    if total == 0:
        return ()
    middle = mass.cumsum(0) - 0.5 * mass
    coarse = (middle / total * bins).long().clamp_(0, bins - 1)
    merged = torch.zeros(3, bins, dtype=torch.float64)
    merged.index_add_(1, coarse, torch.stack([mass, histogram[_POSITIVE], histogram[_PREDICTED]]))
    return tuple(CalibrationBin(p / m, o / m, m) for m, o, p in merged.T.tolist() if m > 0)
