"""Perplexity: exp of the mean loss of a token, whatever batches and workers the tokens came in."""

import math

import pytest
import torch

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
