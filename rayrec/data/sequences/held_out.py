"""Items held out of training, so that there are enough that training never saw to judge by."""

import numpy as np
import pyarrow as pa

from rayrec.data.sequences.interactions import Interactions, SequenceData
from rayrec.data.sequences.splits import leave_one_out


def without_items(data: SequenceData, share: float, seed: int) -> SequenceData:
    """The same items, ``share`` of those that training sees drawn and taken out of the training part of every history.

    By the leave-one-out split of what comes back the drawn items are cold: they occur as validation and test targets only. Users
    with fewer than three items, or with no training item left, are left out. Raises ValueError for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), not {share}")
    events, split = data.interactions, leave_one_out(data.interactions)
    seen = np.flatnonzero(split.seen)
    out = np.zeros(events.num_items + 1, dtype=bool)
    out[np.random.default_rng((seed, 7)).choice(seen, max(1, round(share * len(seen))), replace=False)] = True
    users = np.repeat(np.arange(events.num_users), events.lengths)
    train = split.in_training(events)
    keep = ~(train & out[events.items])
    left = np.bincount(users[train & keep], minlength=events.num_users)
    stays = (events.lengths >= 3) & (left > 0)
    keep &= stays[users]
    lengths = np.bincount(users[keep], minlength=events.num_users)[stays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = None if events.timestamps is None else events.timestamps[keep]
    kept = Interactions(offsets, events.items[keep], events.num_items, times)
    return SequenceData(kept, data.items, data.users.filter(pa.array(stays)), data.source)
