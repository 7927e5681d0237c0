"""Perplexity: exp of the mean loss of a token, whatever batches and workers the tokens came in."""

import math

import pytest
import torch

from rayrec.metrics.binary_groups import group_of
from rayrec.metrics.perplexity import Perplexity


def test_perplexity_is_exp_of_the_mean_over_tokens_and_states_add_up() -> None:
    losses = torch.tensor([[0.5, 1.0, 4.0], [0.25, 0.0, 2.0]])
    first, second, both = Perplexity(), Perplexity(), Perplexity()
    first.update(losses[:, :1])
    second.update(losses[:, 1:])
    second.update(torch.tensor([3.0]))
    both.load_state(first.state() + second.state())
    found = both.compute()
    assert found.tokens == 7
    assert found.cross_entropy == pytest.approx(10.75 / 7)
    assert found.perplexity == pytest.approx(math.exp(10.75 / 7))


def test_no_token_has_no_perplexity_and_a_hopeless_model_has_an_infinite_one() -> None:
    none = Perplexity().compute()
    assert none.tokens == 0
    assert math.isnan(none.cross_entropy)
    assert math.isnan(none.perplexity)
    hopeless = Perplexity()
    hopeless.update(torch.tensor([1e4]))
    assert hopeless.compute().perplexity == math.inf


def test_perplexity_without_a_group_is_that_of_the_other_blocks() -> None:
    losses, whole = torch.rand(300, 5, generator=torch.Generator().manual_seed(0)) * 6, Perplexity()
    for start in range(0, 300, 70):  # places go on over batches
        whole.update(losses[start : start + 70])
    groups = group_of(torch.arange(300))
    rests = whole.left_out()
    for group in (0, 7, 63):
        mean = float(losses[groups != group].mean())
        assert rests["cross_entropy"][group] == pytest.approx(mean, rel=1e-6)
        assert rests["perplexity"][group] == pytest.approx(math.exp(mean), rel=1e-5)
    alone = Perplexity()
    alone.update(losses[:1])
    assert alone.left_out() == {}


def test_a_rest_of_one_token_has_a_perplexity() -> None:
    few, state = Perplexity(), torch.zeros(64, 2, dtype=torch.float64)
    state[5], state[9] = torch.tensor([2.0, 1.0]), torch.tensor([3.0, 1.0])
    few.load_state(state)
    rests = few.left_out()["cross_entropy"]
    assert (rests[5], rests[9], rests[0]) == (3.0, 2.0, 2.5)
