"""Batches of pools: every row once an epoch, resumable, sharded, opposites with a negative sign."""

import numpy as np
import pytest
import torch

from rayrec.data.log.streams import StreamPosition
from rayrec.data.preferences.pools import Pool
from rayrec.data.preferences.streams import JudgedPool, PoolTraining, pool_batch, signed, training_pool
from rayrec.data.sequences import Interactions
from rayrec.data.sequences.batches import HistoryBatch
from rayrec.data.sequences.streams import SequenceStreamConfig
from rayrec.retrieval.retriever import Steered

INTERACTIONS = Interactions(np.array([0, 4, 7]), np.array([1, 2, 3, 4, 5, 6, 7], np.int32), 9)
FEATURES = torch.arange(10.0).unsqueeze(1) + 1
STREAM = SequenceStreamConfig(batch_size=4, evaluation_batch_size=3)


def pool(rows: int) -> Pool:
    numbers = np.arange(rows)
    return Pool.of(numbers % 2, 1 + numbers % 3, 1 + numbers % 9, numbers % 10)


def training(rows: int = 22, **options: object) -> PoolTraining:
    return PoolTraining(INTERACTIONS, pool(rows), None, FEATURES, STREAM, length=2, **options)  # type: ignore[arg-type]


def contents(batch: HistoryBatch) -> list[tuple[object, ...]]:
    """By row, without the padding, which is as long as the batch's longest history makes it."""
    assert batch.preference is not None
    histories = [tuple(item for item in row if item) for row in batch.history.tolist()]
    return list(zip(histories, batch.target.tolist(), batch.preference[:, 0].tolist(), strict=True))


def test_a_row_is_history_preference_and_target() -> None:
    wanted = Pool.of(np.array([0, 1, 0]), np.array([3, 1, 0]), np.array([9, 8, 7]), np.array([2, 0, 5]))
    batch = pool_batch(INTERACTIONS, wanted, FEATURES, 2)
    assert contents(batch) == [((2, 3), 9, 3.0), ((5,), 8, 1.0), ((), 7, 6.0)]
    assert batch.history.tolist() == [[2, 3], [0, 5], [0, 0]]
    assert isinstance(batch.asked, Steered)
    blind = pool_batch(INTERACTIONS, wanted, None, 2)
    assert isinstance(blind.asked, torch.Tensor)
    alone = pool_batch(INTERACTIONS, wanted.take(np.array([2])), FEATURES, 2)
    assert alone.history.tolist() == [[0]]


def test_an_epoch_holds_each_row_once_in_an_order_of_its_own_and_goes_on_where_it_stopped() -> None:
    stream = training()
    first = [contents(batch) for batch, _ in stream.epoch_batches()]
    assert sorted(row for rows in first for row in rows) == sorted(
        contents(pool_batch(INTERACTIONS, pool(22), FEATURES, 2))
    )
    assert stream.position == StreamPosition(1, 0)
    second = [contents(batch) for batch, _ in stream.epoch_batches()]
    assert second != first
    resumed = training(start=StreamPosition(0, 2))
    assert [contents(batch) for batch, _ in resumed.epoch_batches()] == first[2:]
    assert [contents(batch) for batch, _ in resumed.epoch_batches()] == second


def test_ranks_share_the_rows_and_make_equally_many_steps() -> None:
    shares = [[contents(b) for b, _ in training(24, rank=rank, world_size=2).epoch_batches()] for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(rows) == sorted(contents(pool_batch(INTERACTIONS, pool(24), FEATURES, 2)))
    with pytest.raises(ValueError, match="too few"):
        training(3, world_size=2)


def test_a_row_with_an_opposite_stands_twice_once_with_each_sign() -> None:
    plain, two = (
        pool(3),
        Pool.of(*(np.array([0, 0]) for _ in range(2)), np.array([4, 5]), np.array([1, 2]), np.array([3, -1])),
    )
    union, sign = signed([("recommendation", plain), ("sentiment", two)])
    assert sign is not None
    assert sign.tolist() == [1, 1, 1, 1, 1, -1]
    assert union.preferences.tolist() == [0, 1, 2, 1, 2, 3]
    assert union.targets.tolist() == [1, 2, 3, 4, 5, 4]
    stream = PoolTraining(INTERACTIONS, union, sign, FEATURES, STREAM, length=2)
    found = [
        (target, wish, s)
        for batch, _ in stream.epoch_batches()
        for target, wish, s in zip(
            batch.target.tolist(), batch.preference[:, 0].tolist(), batch.sign.tolist(), strict=True
        )  # type: ignore[index, union-attr]
    ]
    assert sorted(found) == sorted(
        zip(union.targets.tolist(), (union.preferences + 1.0).tolist(), sign.tolist(), strict=True)
    )
    assert signed([("recommendation", plain)])[1] is None
    few, _ = training_pool({("fine", "train"): pool(20)}, ("fine",), 5, seed=1)
    again, _ = training_pool({("fine", "train"): pool(20)}, ("fine",), 5, seed=1)
    assert len(few) == 5
    assert few.targets.tolist() == again.targets.tolist()


def test_a_judged_pool_keeps_its_order() -> None:
    batches = list(JudgedPool(INTERACTIONS, pool(7), FEATURES, STREAM, length=2).epoch_batches())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.target for batch in batches]).tolist() == pool(7).targets.tolist()
