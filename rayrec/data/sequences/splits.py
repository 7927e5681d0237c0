"""Which part of each history is for training and which targets judge the model, so that nothing of a target is ever trained on.

An example is a pair (user, position): predict the item at ``position`` of the user's history from all that precedes it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrec.data.sequences.interactions import Interactions, InteractionsError


@dataclass(frozen=True)
class Examples:
    """E targets: users (E,) and positions (E,), both int64."""

    users: NDArray[np.int64]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    def targets(self, interactions: Interactions) -> NDArray[np.int32]:
        """(E,) the items to be predicted."""
        return interactions.items[interactions.offsets[self.users] + self.positions]

    def take(self, rows: NDArray[np.int64]) -> "Examples":
        return Examples(self.users[rows], self.positions[rows])


@dataclass(frozen=True)
class SequenceSplit:
    """train_lengths: (U,) int64; the first so many items of each history are for training, none of the others is.

    valid, test: targets. seen: (N + 1,) bool by item; items that are not seen in training are *cold*. Entry 0 is False.
    """

    train_lengths: NDArray[np.int64]
    valid: Examples
    test: Examples
    seen: NDArray[np.bool_]

    def in_training(self, interactions: Interactions) -> NDArray[np.bool_]:
        """(E,) which of all events are for training."""
        within = np.arange(len(interactions.items)) - np.repeat(interactions.offsets[:-1], interactions.lengths)
        found: NDArray[np.bool_] = within < np.repeat(self.train_lengths, interactions.lengths)
        return found

    @property
    def cold_items(self) -> NDArray[np.int64]:
        """Items that occur as a validation or test target or in no history at all, but never in training."""
        return np.flatnonzero(~self.seen)[1:]


def leave_one_out(interactions: Interactions) -> SequenceSplit:
    """Each history's last item is the test target, the second last the validation target, the rest is for training.

    Histories of fewer than three items are for training only. (The protocol of SASRec, S3-Rec, TIGER and LIGER.)
    """
    lengths = interactions.lengths
    judged = np.flatnonzero(lengths >= 3)
    train_lengths = np.where(lengths >= 3, lengths - 2, lengths)
    return SequenceSplit(
        train_lengths,
        Examples(judged, lengths[judged] - 2),
        Examples(judged, lengths[judged] - 1),
        _seen(interactions, train_lengths),
    )


def temporal_split(interactions: Interactions, valid_from: int, test_from: int) -> SequenceSplit:
    """Train before ``valid_from``, validate from there to before ``test_from``, test from there on; all users by one clock.

    Every interaction from ``valid_from`` on that has at least one before it is a target. Raises InteractionsError without
    timestamps or when the moments are in the wrong order.
    """
    if interactions.timestamps is None:
        raise InteractionsError("a temporal split needs timestamps; these interactions have none")
    if not valid_from < test_from:
        raise InteractionsError(f"valid_from {valid_from} must lie before test_from {test_from}")
    users = np.repeat(np.arange(interactions.num_users), interactions.lengths)
    positions = np.arange(len(users)) - interactions.offsets[users]
    train = interactions.timestamps < valid_from
    late = interactions.timestamps >= test_from
    train_lengths = np.bincount(users[train], minlength=interactions.num_users).astype(np.int64)
    has_history = positions > 0
    valid, test = ~train & ~late & has_history, late & has_history
    return SequenceSplit(
        train_lengths,
        Examples(users[valid], positions[valid]),
        Examples(users[test], positions[test]),
        _seen(interactions, train_lengths),
    )


def _seen(interactions: Interactions, train_lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    within = np.arange(len(interactions.items)) - np.repeat(interactions.offsets[:-1], interactions.lengths)
    train = within < np.repeat(train_lengths, interactions.lengths)
    seen = np.zeros(interactions.num_items + 1, dtype=bool)
    seen[interactions.items[train]] = True
    return seen
