"""Items held out of training: cold afterwards, and nothing else changed."""

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.sequences import Interactions, ItemTable, SequenceData, leave_one_out
from rayrec.data.sequences.held_out import without_items

ITEMS = 40


def walks() -> SequenceData:
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 9, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = generator.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)
    times = np.concatenate([np.arange(n) for n in lengths]).astype(np.int64)
    users = pa.array([f"user-{i}" for i in range(200)])
    return SequenceData(Interactions(offsets, items, ITEMS, times), ItemTable.of([str(i) for i in range(ITEMS)]), users)


def test_the_share_of_items_is_cold_afterwards_and_still_a_target() -> None:
    data = walks()
    found = without_items(data, 0.25, seed=3)
    before, after = leave_one_out(data.interactions), leave_one_out(found.interactions)
    out = np.flatnonzero(before.seen & ~after.seen)
    assert len(out) == round(0.25 * before.seen.sum())
    assert np.isin(after.test.targets(found.interactions), out).any()
    assert found.items is data.items
    other = leave_one_out(without_items(data, 0.25, seed=4).interactions)
    assert (other.seen != after.seen).any()


def test_all_but_the_held_out_training_events_stays_as_it_was() -> None:
    data = walks()
    found = without_items(data, 0.25, seed=3)
    after = leave_one_out(found.interactions)
    gone = set(np.flatnonzero(leave_one_out(data.interactions).seen & ~after.seen))
    rows = {name: row for row, name in enumerate(data.users.to_pylist())}
    kept = found.users.to_pylist()
    for row, name in enumerate(kept):
        old, times = (
            getattr(data.interactions, part)[data.interactions.offsets[rows[name]] : data.interactions.offsets[rows[name] + 1]]
            for part in ("items", "timestamps")
        )  # fmt: skip
        stays = np.array([i >= len(old) - 2 or item not in gone for i, item in enumerate(old)])
        assert found.interactions.timestamps is not None
        new = slice(found.interactions.offsets[row], found.interactions.offsets[row + 1])
        assert found.interactions.items[new].tolist() == old[stays].tolist()
        assert found.interactions.timestamps[new].tolist() == times[stays].tolist()
    for name in set(rows) - set(kept):
        history = data.interactions.items[
            data.interactions.offsets[rows[name]] : data.interactions.offsets[rows[name] + 1]
        ]
        assert len(history) < 3 or set(history[:-2]) <= gone


def test_a_share_is_a_part() -> None:
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"share must lie in \(0, 1\)"):
            without_items(walks(), share, seed=0)
