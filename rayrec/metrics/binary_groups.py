"""Binary metrics on the judged rows less one group at a time: how much they hang on the users, or rows, that were judged.

Rows are dealt to G groups by a hash of their user, or of their number; the state holds sums by group, so states of workers add
up. Log loss, normalized entropy and calibration ratio are exact; AUC comes from a histogram of 512 bins of width 1/16 of a logit,
coarse for the value itself and fine for how it varies.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

GROUPS = 64
_BINS = 512
_LIMIT = 16.0
_SUMS = 4  # weight, weighted positives, losses, probabilities


class BinaryGroups:
    """Sums of T tasks by group, (T, G, 4 + 2 * bins) float64."""

    def __init__(self, num_tasks: int, groups: int = GROUPS) -> None:
        self.groups = groups
        self._state = torch.zeros(num_tasks, groups, _SUMS + 2 * _BINS, dtype=torch.float64)

    def update(self, logits: Tensor, labels: Tensor, group: Tensor, weights: Tensor | None = None) -> None:
        """Fold in logits (B, T), labels (B, T) in {0, 1} or NaN = not observed, group (B,) int64 in [0, G), weights (B,)."""
        self._state = self._state.to(logits.device)
        logits = logits.detach().double().nan_to_num()
        observed = (~labels.isnan()).double()
        labels = labels.double().nan_to_num(0.0)
        mass = observed if weights is None else observed * weights.double().unsqueeze(1)  # (B, T)
        positive = mass * labels
        losses = mass * binary_cross_entropy_with_logits(logits, labels, reduction="none")
        sums = torch.stack([mass, positive, losses, mass * logits.sigmoid()], dim=2)  # (B, T, 4)
        self._state[:, :, :_SUMS].index_add_(1, group, sums.transpose(0, 1))
        bins = ((logits + _LIMIT) * (_BINS / (2 * _LIMIT))).long().clamp_(0, _BINS - 1)  # (B, T)
        width = self._state.shape[2]
        flat = self._state.view(len(self._state), -1)
        for start, values in ((_SUMS, positive), (_SUMS + _BINS, mass - positive)):
            flat.scatter_add_(1, (group.unsqueeze(1) * width + start + bins).T, values.T)

    def state(self) -> Tensor:
        return self._state

    def load_state(self, state: Tensor) -> None:
        """Raises ValueError when it is the state of another number of tasks or groups."""
        if state.shape != self._state.shape:
            raise ValueError(f"state of shape {tuple(state.shape)}, expected {tuple(self._state.shape)}")
        self._state = state.clone()

    def left_out(self) -> list[dict[str, tuple[float, ...]]]:
        """By task and metric the G values without each group; a metric that is undefined without one of them is not there."""
        found = []
        for state in self._state.cpu():
            rest = state.sum(0) - state  # (G, ...)
            weight, positive, loss, probability = rest[:, :_SUMS].unbind(1)
            rate = positive / weight
            entropy = -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
            positives, negatives = rest[:, _SUMS : _SUMS + _BINS], rest[:, _SUMS + _BINS :]
            below = negatives.cumsum(1) - 0.5 * negatives
            values = {
                "log_loss": loss / weight,
                "normalized_entropy": loss / weight / entropy,
                "auc": (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1)),
                "calibration_ratio": probability / positive,
            }
            found.append({name: tuple(v.tolist()) for name, v in values.items() if bool(v.isfinite().all())})
        return found


def group_of(keys: Tensor, groups: int = GROUPS) -> Tensor:
    """(B,) int64 in [0, groups) of integer keys (B,): the same key is in the same group everywhere (splitmix64's mixing)."""
    x = keys.long() * -7046029254386353131
    x = (x ^ (x >> 31)) * -4658895280553007687
    return (x ^ (x >> 29)).remainder(groups)
