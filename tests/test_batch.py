"""A batch: rows picked, moved and put together, every column alike."""

from dataclasses import replace

import pytest
import torch

from rayrec.batch import Batch


@pytest.fixture
def batch() -> Batch:
    """Five rows with every kind of column."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        dense=torch.randn(5, 3, generator=generator),
        categorical=torch.randint(0, 9, (5, 2), generator=generator),
        labels=torch.tensor([[1.0, torch.nan], [0, 1], [1, 0], [0, 0], [torch.nan, 1]]),
        sequences=(torch.randint(0, 9, (5, 4), generator=generator), torch.randint(0, 9, (5, 1), generator=generator)),
        weights=torch.rand(5, generator=generator),
        extras={"time": torch.arange(5), "truth": torch.rand(5, generator=generator, dtype=torch.float64)},
    )


def assert_same(left: Batch, right: Batch) -> None:
    torch.testing.assert_close(vars(left), vars(right), rtol=0, atol=0, equal_nan=True)


def test_its_length_is_its_number_of_rows(batch: Batch) -> None:
    assert len(batch) == 5
    assert len(batch[1:3]) == 2


def test_a_slice_is_a_view_and_an_index_a_copy(batch: Batch) -> None:
    view, copy = batch[1:4], batch[torch.tensor([1, 2, 3])]
    assert_same(view, copy)
    view.dense[0] = 7
    assert batch.dense[1].tolist() == [7, 7, 7]
    assert copy.dense[0].tolist() != [7, 7, 7]


def test_every_column_follows_the_picked_rows(batch: Batch) -> None:
    picked = batch[torch.tensor([4, 0])]
    assert picked.extras["time"].tolist() == [4, 0]
    assert picked.categorical.tolist() == [batch.categorical[4].tolist(), batch.categorical[0].tolist()]
    assert [ids.shape for ids in picked.sequences] == [(2, 4), (2, 1)]
    assert picked.weights is not None
    assert picked.weights.shape == (2,)


def test_parts_put_together_are_the_whole(batch: Batch) -> None:
    assert_same(Batch.concatenate([batch[:2], batch[2:2], batch[2:]]), batch)


def test_parts_without_weights_have_none_together(batch: Batch) -> None:
    bare = replace(batch, weights=None)
    assert Batch.concatenate([bare, bare]).weights is None
    assert bare[:2].weights is None


def test_on_its_device_already_it_is_the_very_same_object(batch: Batch) -> None:
    assert batch.to("cpu") is batch


def test_all_columns_move_to_another_device(batch: Batch) -> None:
    moved = batch.to("meta")
    tensors = [moved.dense, moved.categorical, moved.labels, *moved.sequences, moved.weights, *moved.extras.values()]
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert moved.sequences[0].shape == batch.sequences[0].shape
    bare = replace(batch, weights=None).to("meta")
    assert bare.weights is None
