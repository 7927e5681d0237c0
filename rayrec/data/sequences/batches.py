"""Training and evaluation batches from flat histories: every prefix is cut out when it is needed, never stored.

Two views of the training part of the histories:
    windows   the model predicts at every position of a window (SASRec): one row a window
    prefixes  the model predicts one item from what precedes it (TIGER, LIGER): one row a (user, position)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayrec.data.sequences.interactions import Interactions
from rayrec.data.sequences.splits import Examples, SequenceSplit
from rayrec.retrieval.retriever import Personal, Steered


@dataclass(frozen=True)
class HistoryBatch:
    """history: (B, L) int64, left-padded with 0, newest item last.

    target: (B,) int64, the item that came next; for windows (B, L), the item that came next after each position, 0 at padding.
    preference, sign: see ``Steered``; None where the model is blind to preferences. user: see ``Personal``; None likewise.
    row: (B,) int64, the users' rows in the data set, where users are judged: by them judged users are grouped.
    """

    history: Tensor
    target: Tensor
    preference: Tensor | None = None
    sign: Tensor | None = None
    user: Tensor | None = None
    row: Tensor | None = None

    def __len__(self) -> int:
        return len(self.history)

    @property
    def asked(self) -> Tensor | Steered | Personal:
        """What the model reads."""
        if self.preference is not None:
            return Steered(self.history, self.preference, self.sign)
        return self.history if self.user is None else Personal(self.history, self.user)

    def take(self, rows: Tensor) -> "HistoryBatch":
        """The given rows, an int64 index."""

        def taken(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        history, target = self.history[rows], self.target[rows]
        return HistoryBatch(
            history, target, taken(self.preference), taken(self.sign), taken(self.user), taken(self.row)
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "HistoryBatch":
        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        history, target = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.history, self.target))
        return HistoryBatch(
            history, target, moved(self.preference), moved(self.sign), moved(self.user), moved(self.row)
        )


def histories(
    interactions: Interactions, users: NDArray[np.int64], ends: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """(B, length) the newest ``length`` items before position ``ends`` of each user, left-padded with 0."""
    positions = ends[:, None] - np.arange(length, 0, -1)[None, :]  # (B, length)
    inside = positions >= 0
    flat = interactions.offsets[users][:, None] + np.where(inside, positions, 0)
    # A user with an empty history at the very end of the array would point one past it.
    flat = np.minimum(flat, max(len(interactions.items) - 1, 0))
    return np.where(inside, interactions.items[flat], 0).astype(np.int64)


def example_batch(
    interactions: Interactions, examples: Examples, length: int, tokens: NDArray[np.int64] | None = None
) -> HistoryBatch:
    """Histories, trimmed to the longest one of the batch, and targets. tokens: (U,) of all users, for models that read them."""
    ends = examples.positions
    longest = int(min(length, ends.max())) if len(ends) else 1
    matrix = histories(interactions, examples.users, ends, max(longest, 1))
    targets = torch.from_numpy(examples.targets(interactions).astype(np.int64))
    user = None if tokens is None else torch.from_numpy(tokens[examples.users])
    return HistoryBatch(torch.from_numpy(matrix), targets, user=user, row=torch.from_numpy(examples.users))


def evaluation_batches(
    interactions: Interactions,
    examples: Examples,
    length: int,
    batch_size: int,
    tokens: NDArray[np.int64] | None = None,
) -> Iterator[tuple[NDArray[np.int64], HistoryBatch]]:
    """All examples, by history length so that batches hold little padding; with the row numbers of each batch."""
    order = np.argsort(np.minimum(examples.positions, length), kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, example_batch(interactions, examples.take(rows), length, tokens)


class TrainingPrefixes:
    """All training examples (predict position p >= 1 of a training part from what precedes it), by number.

    Memory: one int64 a user. ``locate`` turns numbers into (user, position).
    """

    def __init__(self, split: SequenceSplit) -> None:
        self._first = np.concatenate([[0], np.cumsum(np.maximum(split.train_lengths - 1, 0))])

    def __len__(self) -> int:
        return int(self._first[-1])

    def locate(self, numbers: NDArray[np.int64]) -> Examples:
        users = np.searchsorted(self._first, numbers, side="right") - 1
        return Examples(users, numbers - self._first[users] + 1)


class TrainingWindows:
    """Training parts cut into windows of at most ``length`` targets, so that every position is a target exactly once.

    A window (user, end) covers targets end - length + 1 .. end, cut at 1. Each longer history gives several windows, counted
    from its end, so the newest items always have a full window.
    """

    def __init__(self, split: SequenceSplit, length: int) -> None:
        targets = np.maximum(split.train_lengths - 1, 0)
        self.length = length
        self._train_lengths = split.train_lengths
        self._first = np.concatenate([[0], np.cumsum(-(-targets // length))])

    def __len__(self) -> int:
        return int(self._first[-1])

    def locate(self, numbers: NDArray[np.int64]) -> Examples:
        """(user, last position) of windows by number."""
        users = np.searchsorted(self._first, numbers, side="right") - 1
        steps_back = (numbers - self._first[users]) * self.length
        return Examples(users, self._train_lengths[users] - 1 - steps_back)


def window_batch(
    interactions: Interactions,
    windows: Examples,
    length: int,
    change: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, L), left-padded with 0: targets[b, j] came right after inputs[b, j].

    change: of the windows' items (B, L + 1), before inputs and targets are cut from them.
    """
    longest = int(min(length, windows.positions.max()))
    matrix = histories(interactions, windows.users, windows.positions + 1, longest + 1)
    if change is not None:
        matrix = change(matrix)
    inputs, targets = matrix[:, :-1], matrix[:, 1:]
    return torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.where(inputs > 0, targets, 0))


def shuffled_batches(
    count: int, batch_size: int, *, seed: int, epoch: int, lengths: NDArray[np.int64] | None = None, pool: int = 50
) -> Iterator[NDArray[np.int64]]:
    """Row numbers of one epoch in batches, in an order fixed by (seed, epoch).

    With ``lengths`` (by row) batches hold rows of like length: the shuffled rows are sorted within pools of ``pool`` batches, and
    the pool's batches come in random order. That saves padding and leaves each batch a random sample up to length.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(count)
    for start in range(0, count, batch_size * pool):
        rows = order[start : start + batch_size * pool]
        if lengths is not None:
            rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        yield from (batches[i] for i in generator.permutation(len(batches)))
