"""The chunked softmax loss against torch's cross-entropy, and the sampled one against its limit."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import rayrec.models.layers.item_softmax as item_softmax
from rayrec.models.layers.item_softmax import full_softmax_loss, sampled_softmax_loss


def small(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(37, 6, dtype=dtype, generator=generator).requires_grad_()
    items = torch.randn(21, 6, dtype=dtype, generator=generator).requires_grad_()
    return states, items, torch.randint(1, 21, (37,), generator=generator)


@pytest.mark.parametrize("chunk", [5, 1000])
def test_full_softmax_loss_and_gradients_equal_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(item_softmax, "_CHUNK", chunk)
    states, items, targets = small()
    loss = full_softmax_loss(states, items, targets)
    gradients = torch.autograd.grad(3 * loss, (states, items))
    logits = states @ items.T
    wanted = cross_entropy(logits[:, 1:], targets - 1)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * wanted, (states, items)))
    assert torch.equal(gradients[1][0], torch.zeros(6, dtype=torch.float64))  # padding is no candidate


@pytest.mark.parametrize("weighted", [False, True])
def test_shifted_logits_and_their_gradients_equal_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    monkeypatch.setattr("rayrec.models.layers.item_softmax._CHUNK", 7)
    generator = torch.Generator().manual_seed(2)
    states, items = (torch.randn(n, 5, generator=generator, dtype=torch.float64, requires_grad=True) for n in (23, 11))
    shift = torch.tensor(-0.8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 11, (23,), generator=generator)
    shifted = torch.stack([torch.randperm(10, generator=generator)[:3] + 1 for _ in range(23)])
    shifted[::4, 0] = 0
    shifted[1] = 0
    logits = states @ items.T
    logits = logits + torch.zeros_like(logits).scatter(1, shifted, 1.0) * shift
    logits = torch.cat([torch.full_like(logits[:, :1], -torch.inf), logits[:, 1:]], 1)
    weights = torch.rand(23, generator=generator, dtype=torch.float64) if weighted else None
    expected = cross_entropy(logits, targets)
    if weights is not None:
        expected = (weights * cross_entropy(logits, targets, reduction="none")).sum() / weights.sum()
    loss = full_softmax_loss(states, items, targets, shifted=shifted, shift=shift, weights=weights)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        torch.autograd.grad(loss, (states, items, shift)),
        torch.autograd.grad(expected, (states, items, shift), retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)
    alone = full_softmax_loss(states.detach(), items.detach(), targets, shifted=shifted, shift=shift, weights=weights)
    (gradient,) = torch.autograd.grad(alone, shift)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, shift)[0])
    with pytest.raises(ValueError, match="belong together"):
        full_softmax_loss(states, items, targets, shifted=shifted)


def test_full_softmax_loss_passes_gradcheck() -> None:
    states, items, targets = small()
    assert torch.autograd.gradcheck(lambda s, i: full_softmax_loss(s, i, targets[:7]), (states[:7], items))


def test_bf16_autocast_moves_loss_and_gradients_only_by_rounding() -> None:
    states, items, targets = small(torch.float32)
    wanted = full_softmax_loss(states, items, targets)
    exact = torch.autograd.grad(wanted, (states, items))
    with torch.autocast("cpu", torch.bfloat16):
        loss = full_softmax_loss(states, items, targets)
    rounded = torch.autograd.grad(loss, (states, items))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=0.02, atol=0)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


def test_sampled_softmax_approaches_the_full_one_with_many_samples() -> None:
    states, items, targets = small(torch.float32)
    states, items = states.detach(), items.detach()
    probability = torch.rand(21, generator=torch.Generator().manual_seed(1)) + 0.2
    probability[0] = 0
    log_q = (probability / probability.sum()).log()
    sampled = torch.multinomial(probability, 60_000, replacement=True, generator=torch.Generator().manual_seed(2))
    loss = sampled_softmax_loss(states, items, targets, sampled, log_q)
    torch.testing.assert_close(loss, full_softmax_loss(states, items, targets), rtol=0.01, atol=0)


def test_sampled_softmax_leaves_out_samples_that_equal_the_target() -> None:
    states, items, targets = small(torch.float32)
    log_q = torch.full((21,), -3.0)
    only_hits = torch.full((5,), int(targets[0]))
    loss = sampled_softmax_loss(states[:1], items, targets[:1], only_hits, log_q)
    assert loss.item() == 0.0
