"""Poly-attention, dense and sparse: closed forms, invariances, gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rayrec.models.layers.poly_attention import PolyAttention, masked_softmax
from rayrec.models.layers.relevance import Relevance
from rayrec.models.layers.sparse_attention import SparsePattern, SparsePolyAttention, block_masks, dense_mask

PATTERN = SparsePattern(contents=7, slots=5, lead=4, window=11, random_share=0.2, block=3)


def states_of(lead: int, contents: int, slots: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    real = torch.arange(slots) < torch.randint(1, slots + 1, (2, contents, 1), generator=random)
    front = torch.arange(lead) < torch.tensor([[lead], [1]])
    return (
        torch.randn(2, lead, 6, generator=random), front, torch.randn(2, contents, slots, 6, generator=random), real
    )  # fmt: skip


def test_poly_attention_is_its_formula() -> None:
    layer, states = PolyAttention(6, 3, 4), torch.randn(2, 5, 6)
    weights = torch.softmax(layer.codes @ torch.tanh(states @ layer.project.weight.T).transpose(1, 2), -1)
    assert torch.allclose(layer(states, torch.ones(2, 5, dtype=torch.bool)), weights @ states, atol=1e-6)


def test_poly_attention_knows_neither_order_nor_padding() -> None:
    layer, states = PolyAttention(6, 3, 4), torch.randn(2, 5, 6)
    real = torch.ones(2, 5, dtype=torch.bool)
    whole = layer(states, real)
    assert torch.allclose(layer(states[:, torch.randperm(5)], real), whole, atol=1e-6)
    longer = torch.cat([states, torch.full((2, 3, 6), 9.0)], 1)
    assert torch.allclose(layer(longer, torch.arange(8).expand(2, 8) < 5), whole, atol=1e-6)


def test_an_input_of_padding_only_gives_zeros() -> None:
    assert not PolyAttention(6, 3, 4)(torch.randn(1, 5, 6), torch.zeros(1, 5, dtype=torch.bool)).any()


@pytest.mark.parametrize("block", [3, 6])  # of 6: windows of 4 codes and of 2, read as slices
@pytest.mark.parametrize(("lead", "contents", "slots"), [(4, 7, 5), (2, 4, 3), (0, 6, 5)])
def test_sparse_attention_equals_dense_attention_with_its_mask_gradients_too(
    lead: int, contents: int, slots: int, block: int
) -> None:
    layer = SparsePolyAttention(6, 4, replace(PATTERN, block=block)).double()
    front, front_real, grid, real = states_of(lead, contents, slots)
    inputs = [front.double().requires_grad_(), grid.double().requires_grad_()]
    weights = torch.randn(2, contents, 6, dtype=torch.float64)
    sparse = layer.summarize(inputs[0], front_real, inputs[1], real)
    given = (*(one for one in inputs if one.numel()), layer.codes, layer.project.weight)
    sparse_gradients = torch.autograd.grad((sparse * weights).sum(), given)

    states = torch.cat([inputs[0], inputs[1].flatten(1, 2)], 1)
    seen = dense_mask(layer.masks(contents, slots, lead), states.shape[1])
    seen = seen & torch.cat([front_real, real.flatten(1)], 1).unsqueeze(1)
    dense = masked_softmax(layer.codes[:contents] @ layer.keys(states).transpose(1, 2), seen) @ states
    assert torch.allclose(sparse, dense, atol=1e-10)
    for found, expected in zip(sparse_gradients, torch.autograd.grad((dense * weights).sum(), given), strict=True):
        assert torch.allclose(found, expected, atol=1e-10)


def test_every_code_sees_its_window_all_first_tokens_and_a_share_of_the_others() -> None:
    pattern = SparsePattern(contents=20, slots=30, lead=10, window=60, random_share=0.1, block=4)
    seen = dense_mask(block_masks(pattern, 20, 30, 10), 610)
    firsts = torch.tensor([0, *(10 + 30 * i for i in range(20))])
    assert seen[:, firsts].all()
    for code in (0, 7, 19):
        middle = 10 + 30 * code + 15
        assert seen[code, max(0, middle - 30) : middle + 30].all()
    others = 610 - 21 - 60
    assert 60 + 21 + 0.05 * others < seen.sum(1).double().mean() < 60 + 21 + 0.13 * others


def test_a_shorter_input_sees_the_same_tokens_as_in_a_longer_grid() -> None:
    layer = SparsePolyAttention(6, 4, PATTERN)
    front, front_real, grid, real = states_of(2, 4, 3)
    short = layer.summarize(front, front_real, grid, real)
    pad = torch.nn.functional.pad
    longer = layer.summarize(
        pad(front, (0, 0, 0, 2)), pad(front_real, (0, 2)), pad(grid, (0, 0, 0, 2, 0, 3)), pad(real, (0, 2, 0, 3))
    )
    assert torch.allclose(longer[:, :4], short, atol=1e-6)


def test_what_is_kept_for_the_backward_pass_goes_with_attended_tokens() -> None:
    kept = {slots: _kept_beside_inputs(slots) for slots in (64, 256)}
    assert kept[256] < 3 * kept[64]  # of four times the tokens: the windows are as wide as before
    assert kept[256] < 0.1 * 60 * 60 * 256  # codes x tokens, what dense attention keeps at least once


def _kept_beside_inputs(slots: int) -> int:
    """Numbers that 60 codes keep beside states and keys, over 60 contents."""
    layer = SparsePolyAttention(16, 16, SparsePattern(60, slots, 0, window=128, random_share=0.02))
    grid, real = torch.randn(1, 60, slots, 16, requires_grad=True), torch.ones(1, 60, slots, dtype=torch.bool)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer.summarize(grid.new_zeros(1, 0, 16), real[:, 0, :0], grid, real)
    assert out.shape == (1, 60, 16)
    return sum(saved.values()) - 2 * 60 * slots * 16


def test_masks_are_made_once_a_shape() -> None:
    assert block_masks(PATTERN, 4, 3, 2) is block_masks(PATTERN, 4, 3, 2)
    with pytest.raises(ValueError, match="the pattern has 4 \\+ 7 x 5"):
        block_masks(PATTERN, 8, 3, 2)


def test_relevance_is_its_formula() -> None:
    layer, user, items = Relevance(4), torch.randn(1, 3, 4), torch.randn(1, 2, 5, 4)
    for place in range(2):
        products = (user[0] @ items[0, place].T).flatten()
        gates = (user[0] @ torch.nn.functional.gelu(items[0, place] @ layer.weigh.weight.T).T).flatten()
        expected = (gates.softmax(0) * products).sum()
        assert torch.allclose(layer(user, items)[0, place], expected, atol=1e-6)


@pytest.mark.parametrize("window", [11, 60])
def test_random_tokens_are_none_of_the_windows_of_their_block(window: int) -> None:
    """Drawn among what no code of a block has in its window: what one sees beside its window, the others see too."""
    pattern = SparsePattern(contents=12, slots=30, lead=10, window=window, random_share=0.5, block=4)
    total = 10 + 12 * 30
    place = torch.arange(total)
    first = (place == 0) | (place >= 10) & ((place - 10) % 30 == 0)
    low = 10 + 30 * torch.arange(12) + 15 - window // 2
    windows = (place >= low.unsqueeze(1)) & (place < low.unsqueeze(1) + window)
    seen = dense_mask(block_masks(pattern, 12, 30, 10), total)
    for start in range(0, 12, 4):
        own = slice(start, start + 4)
        beside = seen[own] & ~windows[own] & ~first
        assert not (beside & windows[own].any(0)).any()
        assert (beside == beside[:1])[:, ~windows[own].any(0)].all()
        assert beside.any()
