"""Stacked layers: the same numbers as T separate networks, and for one shared input the same bits whether expanded or not."""

import pytest
import torch
from torch import Tensor

from rayrec.models.layers.task_stack import StackedFeedForward, StackedLinear


def gradients(layer: StackedLinear, x: Tensor, towards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, at_x = torch.autograd.grad((layer(x) * towards).sum(), [layer.weight, layer.bias, x])
    return weight, bias, at_x


def test_each_slot_is_an_own_linear_layer() -> None:
    layer, x = StackedLinear(3, 5, 4), torch.randn(3, 7, 5)
    for t in range(3):
        torch.testing.assert_close(layer(x)[t], x[t] @ layer.weight[t] + layer.bias[t])


@pytest.mark.parametrize("stack", [1, 4])
def test_a_shared_input_gives_the_same_bits_expanded_or_not(stack: int) -> None:
    layer, towards = StackedLinear(stack, 16, 8), torch.randn(stack, 64, 8)
    x = torch.randn(64, 16, requires_grad=True)
    views = x.detach().expand(stack, 64, 16).requires_grad_()
    assert torch.equal(layer(x), layer(views))
    weight, bias, at_x = gradients(layer, x, towards)
    weight_of_views, bias_of_views, at_views = gradients(layer, views, towards)
    assert torch.equal(weight, weight_of_views)
    assert torch.equal(bias, bias_of_views)
    torch.testing.assert_close(at_views, towards @ layer.weight.transpose(1, 2))
    torch.testing.assert_close(at_views.sum(0), at_x)


def test_an_expanded_input_gets_the_gradients_of_copies() -> None:
    stack, x, towards = StackedFeedForward(3, 6, (5,), out=1), torch.randn(9, 6), torch.randn(3, 9, 1)
    results = []
    for views in (x.expand(3, 9, 6).requires_grad_(), x.repeat(3, 1, 1).requires_grad_()):
        results.append(torch.autograd.grad((stack(views) * towards).sum(), [views, *stack.parameters()]))
    for expanded, copied in zip(*results, strict=True):
        torch.testing.assert_close(expanded, copied)


def test_an_expanded_input_trains_under_autocast() -> None:
    layer = StackedLinear(3, 16, 8)
    x = torch.randn(64, 16).expand(3, 64, 16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().square().sum()
    loss.backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert (x.grad.dtype, layer.weight.grad.dtype) == (torch.float32, torch.float32)
    exact = torch.autograd.grad(layer(x).square().sum(), x)[0]
    torch.testing.assert_close(x.grad, exact, atol=0.5, rtol=0.1)
