"""Splits and prefixes: nothing of a target is ever trained on, for any histories."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data.sequences import Interactions, InteractionsError, leave_one_out, temporal_split
from rayrec.data.sequences.batches import (
    TrainingPrefixes,
    TrainingWindows,
    evaluation_batches,
    example_batch,
    shuffled_batches,
    window_batch,
)
from rayrec.data.sequences.splits import SequenceSplit

LENGTH = 4


@st.composite
def any_interactions(draw: st.DrawFn) -> Interactions:
    """Up to 12 users with 0 to 14 items; timestamps may tie, items may repeat."""
    lengths = draw(st.lists(st.integers(0, 14), min_size=1, max_size=12))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = generator.integers(1, 31, offsets[-1]).astype(np.int32)
    stamps = [np.sort(generator.integers(0, 100, n)) for n in lengths]
    return Interactions(offsets, items, 30, np.concatenate(stamps).astype(np.int64))


def trained_pairs(interactions: Interactions, split: SequenceSplit) -> set[tuple[int, int]]:
    """(user, position) of every item that any training batch reads, as input or target; by loops over the batches' maths."""
    pairs = set()
    for numbers in shuffled_batches(len(TrainingPrefixes(split)), 5, seed=1, epoch=0):
        located = TrainingPrefixes(split).locate(numbers)
        for user, position in zip(located.users, located.positions, strict=True):
            pairs |= {(int(user), p) for p in range(int(position) + 1)}
    windows = TrainingWindows(split, LENGTH)
    for numbers in shuffled_batches(len(windows), 5, seed=1, epoch=0):
        located = windows.locate(numbers)
        for user, position in zip(located.users, located.positions, strict=True):
            pairs |= {(int(user), p) for p in range(max(0, int(position) - LENGTH), int(position) + 1)}
    return pairs


@settings(max_examples=60, deadline=None)
@given(any_interactions())
def test_leave_one_out_never_trains_on_a_validation_or_test_target(interactions: Interactions) -> None:
    split = leave_one_out(interactions)
    trained = trained_pairs(interactions, split)
    for judged in (split.valid, split.test):
        assert not trained & set(zip(judged.users.tolist(), judged.positions.tolist(), strict=True))
    assert (split.test.positions == split.valid.positions + 1).all()
    seen = {int(interactions.items[interactions.offsets[u] + p]) for u, p in trained}
    assert seen <= set(np.flatnonzero(split.seen).tolist())
    assert not seen & set(split.cold_items.tolist())


@settings(max_examples=60, deadline=None)
@given(any_interactions(), st.integers(1, 50), st.integers(1, 49))
def test_a_temporal_split_trains_only_on_the_time_before_all_targets(
    interactions: Interactions, valid_from: int, more: int
) -> None:
    split = temporal_split(interactions, valid_from, valid_from + more)
    assert interactions.timestamps is not None
    for user, position in trained_pairs(interactions, split):
        assert interactions.timestamps[interactions.offsets[user] + position] < valid_from
    for judged, low, high in ((split.valid, valid_from, valid_from + more), (split.test, valid_from + more, 10**9)):
        stamps = interactions.timestamps[interactions.offsets[judged.users] + judged.positions]
        assert ((low <= stamps) & (stamps < high)).all()
        assert (judged.positions > 0).all()
    late = int((interactions.timestamps >= valid_from).sum())
    without_history = sum(
        1 for u in range(interactions.num_users)
        if interactions.lengths[u] and interactions.timestamps[interactions.offsets[u]] >= valid_from
    )  # fmt: skip
    assert len(split.valid) + len(split.test) == late - without_history


@settings(max_examples=60, deadline=None)
@given(any_interactions())
def test_histories_hold_exactly_the_newest_items_before_the_target(interactions: Interactions) -> None:
    split = leave_one_out(interactions)
    visited = []
    for rows, batch in evaluation_batches(interactions, split.test, LENGTH, 3):
        visited += rows.tolist()
        for row, history, target in zip(rows, batch.history.tolist(), batch.target.tolist(), strict=True):
            user, position = split.test.users[row], split.test.positions[row]
            own = interactions.items[interactions.offsets[user] : interactions.offsets[user + 1]].tolist()
            wanted = own[max(0, position - LENGTH) : position]
            assert history == [0] * (len(history) - len(wanted)) + wanted
            assert target == own[position]
    assert sorted(visited) == list(range(len(split.test)))


@settings(max_examples=60, deadline=None)
@given(any_interactions())
def test_windows_predict_every_training_position_exactly_once(interactions: Interactions) -> None:
    split = leave_one_out(interactions)
    windows = TrainingWindows(split, LENGTH)
    predicted: list[tuple[int, int]] = []
    inputs_of: list[tuple[int, int]] = []
    for numbers in shuffled_batches(len(windows), 4, seed=0, epoch=3):
        inputs, targets = window_batch(interactions, windows.locate(numbers), LENGTH)
        users = windows.locate(numbers).users
        for user, row_inputs, row_targets in zip(users.tolist(), inputs.tolist(), targets.tolist(), strict=True):
            predicted += [(user, t) for i, t in zip(row_inputs, row_targets, strict=True) if i]
            inputs_of += [(i, t) for i, t in zip(row_inputs, row_targets, strict=True) if i]
    wanted, wanted_steps = [], []
    for user in range(interactions.num_users):
        start = interactions.offsets[user]
        own = interactions.items[start : start + split.train_lengths[user]].tolist()
        wanted += [(user, item) for item in own[1:]]
        wanted_steps += list(pairwise(own))
    assert sorted(predicted) == sorted(wanted)
    assert sorted(inputs_of) == sorted(wanted_steps)


@settings(max_examples=40, deadline=None)
@given(any_interactions(), st.integers(0, 5))
def test_prefixes_visit_every_training_step_once_an_epoch_in_a_seeded_order(
    interactions: Interactions, epoch: int
) -> None:
    prefixes = TrainingPrefixes(leave_one_out(interactions))
    lengths = prefixes.locate(np.arange(len(prefixes))).positions
    visits = [
        np.concatenate([*shuffled_batches(len(prefixes), 3, seed=7, epoch=epoch, lengths=lengths, pool=2), [-1]])
        for _ in range(2)
    ]
    assert (visits[0] == visits[1]).all()
    assert sorted(visits[0][:-1].tolist()) == list(range(len(prefixes)))


def test_a_history_longer_than_the_window_is_cut_to_its_newest_items() -> None:
    interactions = Interactions(np.array([0, 8]), np.arange(1, 9, dtype=np.int32), 8)
    split = leave_one_out(interactions)
    batch = example_batch(interactions, split.test, 3)
    assert batch.history.tolist() == [[5, 6, 7]]
    assert batch.target.tolist() == [8]
    assert split.cold_items.tolist() == [7, 8]


def test_a_temporal_split_without_timestamps_is_refused() -> None:
    with pytest.raises(InteractionsError, match="needs timestamps"):
        temporal_split(Interactions(np.array([0, 1]), np.array([1], dtype=np.int32), 1), 0, 1)
