"""Vectors of numbers: linear between quantiles, of bins as far as they are known, with gradients by hand."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from rayrec.batch import Batch
from rayrec.models.layers.binned_numbers import BinnedNumbers
from rayrec.models.ranker import Ranker, RankerArchitecture, RankerInputs


def test_a_vector_is_that_of_the_feature_the_bins_below_and_a_share_of_its_own() -> None:
    layer = BinnedNumbers([(0.0, 1.0, 3.0), (-1.0, 0.0, 1.0)], bins=2, dim=1)
    feature, bins = layer.weight.detach()[0, 0, 0], layer.weight.detach()[0, 1:, 0]
    numbers = torch.tensor([-5.0, 0.0, 0.25, 1.0, 2.0, 3.0, 9.0])
    wanted = (
        feature + torch.tensor([0, 0, 0.25, 1, 1, 1, 1]) * bins[0] + torch.tensor([0, 0, 0, 0, 0.5, 1, 1]) * bins[1]
    )
    given_out = layer(torch.stack([numbers, torch.full((7,), torch.nan)], dim=1))
    torch.testing.assert_close(given_out[:, 0], wanted)
    assert (given_out[:, 1] == 0).all()  # missing: not the vector of the least value


def test_fewer_bins_take_every_so_many_quantiles_and_a_bin_without_width_is_empty() -> None:
    layer = BinnedNumbers([(0.0, 1.0, 2.0, 3.0, 4.0)], bins=2, dim=3)
    assert layer.lower.tolist() == [[0.0, 2.0]]
    layer = BinnedNumbers([(0.0, 2.0, 4.0)], bins=4, dim=3)  # more than are known: between them
    assert layer.lower.tolist() == [[0.0, 1.0, 2.0, 3.0]]
    constant = BinnedNumbers([(5.0, 5.0, 5.0)], bins=2, dim=3)
    numbers = torch.tensor([[4.0], [5.0], [6.0]])
    torch.testing.assert_close(constant(numbers), constant.weight[0, :1].expand(3, 3))


def test_bins_too_narrow_or_too_wide_for_float32_are_empty() -> None:
    layer = BinnedNumbers([(0.0, 1e-45, 1e-39, 1.0, 2.0), (-3e38, -1.0, 0.0, 1.0, 3e38)], bins=4, dim=2)
    torch.nn.init.constant_(layer.weight, 1.0)
    out = layer(torch.tensor([[0.0, 3e38], [1e-45, -3e38], [1.5, 0.5]]))
    torch.testing.assert_close(out[:, ::2], torch.tensor([[1.0, 5.0], [1.0, 1.0], [2.5, 3.5]]))
    endless = BinnedNumbers([(-3e38, 3e38)], bins=1, dim=2)
    assert (endless(torch.tensor([[3e38]])) == endless.weight[0, 0]).all()


@example([0.0, 1e-45], 1, [0.0, 0.0])
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=9),
    st.integers(1, 8),
    st.lists(st.floats(-200, 200, width=32), min_size=2, max_size=20),
)
def test_with_rising_weights_vectors_rise_with_their_numbers(
    quantiles: Sequence[float], bins: int, numbers: Sequence[float]
) -> None:
    layer = BinnedNumbers([sorted(quantiles)], bins, 1)
    torch.nn.init.constant_(layer.weight, 1.0)
    out = layer(torch.tensor(sorted(numbers)).unsqueeze(1)).detach().flatten()
    assert bool((out.diff() >= 0).all())
    assert float(out.min()) >= 1.0
    assert float(out.max()) <= 1.0 + bins


def test_gradients_are_those_by_hand() -> None:
    layer = BinnedNumbers([(0.0, 1.0, 3.0)], bins=2, dim=2)
    numbers = torch.tensor([[0.5], [2.0], [torch.nan]])
    at_out = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    layer(numbers).backward(at_out)
    # of the feature; of the first bin, .5 and 1 of which lie below; of the second, 0 and .5
    wanted = torch.tensor([[[11.0, 22.0], [10.5, 21.0], [5.0, 10.0]]])
    torch.testing.assert_close(layer.weight.grad, wanted)


def test_bins_without_quantiles_are_refused() -> None:
    inputs = RankerInputs((0.0,), (1.0,), (False,), (False,), (5,), (), (), 1)
    with pytest.raises(ValueError, match="dense_bins need quantiles of every dense feature"):
        Ranker(inputs, RankerArchitecture(dense_bins=4))
    with pytest.raises(ValueError, match="dense_bins must be at least 0"):
        RankerArchitecture(dense_bins=-1)


def test_a_missing_number_has_no_vector_or_where_none_was_missing_that_of_the_mean() -> None:
    inputs = RankerInputs((2.0, 2.0), (1.0, 1.0), (False, False), (True, False), (5,), (), (), 1, 0, ((1.0, 3.0),) * 2)
    model = Ranker(inputs, RankerArchitecture(embedding_dim=4, dense_bins=2))
    gone = Batch(torch.full((1, 2), torch.nan), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
    mean = Batch(torch.full((1, 2), 2.0), gone.categorical, gone.labels)
    missing, known = (model.embed(batch)[0, model.number_columns].view(2, 4) for batch in (gone, mean))
    assert (missing[0] == 0).all()
    assert (known != 0).all()
    torch.testing.assert_close(missing[1], known[1])


def test_vectors_follow_a_threshold_that_no_linear_model_of_the_number_can() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(2048, 1, generator=generator)
    target = ((numbers > 0.4) & (numbers < 0.6)).float()
    layer = BinnedNumbers([torch.linspace(0, 1, 65).tolist()], bins=32, dim=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(numbers), target).backward()
        optimizer.step()
    assert float((layer(numbers).detach() - target).square().mean()) < 0.03 < float(target.var()) / 4
