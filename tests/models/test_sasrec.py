"""SASRec: padding and batch invariance, causality, and a pattern it must learn."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import cosine_similarity

from rayrec.models.sasrec import SASRec, SASRecConfig


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_model(temperature: float | None = None, repeat: float | None = None) -> SASRec:
    """``repeat``: the repeat bias, at its own scale."""
    torch.manual_seed(0)
    config = SASRecConfig(dim=16, max_length=6, dropout=0.2, temperature=temperature, repeat_bias=repeat is not None)
    model = SASRec(30, config).eval()
    if repeat is not None:
        model.repeat.data.fill_(repeat)
    return model


def test_padding_and_batch_mates_change_nothing() -> None:
    model = small_model()
    alone = model.scores(torch.tensor([[3, 9, 4]]))
    padded = model.scores(torch.tensor([[0, 0, 0, 3, 9, 4], [1, 2, 3, 4, 5, 6]]))
    torch.testing.assert_close(padded[:1], alone)
    assert padded.shape == (2, 31)
    assert (padded[:, 0] == -torch.inf).all()


def test_only_the_newest_items_are_read() -> None:
    model = small_model()
    long = torch.tensor([[7, 8, 1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(model.scores(long), model.scores(long[:, 2:]))


def test_an_empty_history_scores_all_items_alike() -> None:
    scores = small_model().scores(torch.tensor([[0, 0], [0, 5]]))
    assert (scores[0, 1:] == 0).all()
    assert scores[1, 1:].std() > 0
    assert (small_model().scores(torch.zeros(2, 3, dtype=torch.int64))[:, 1:] == 0).all()


def test_with_a_temperature_logits_are_cosines_over_it() -> None:
    plain, model = small_model(), small_model(temperature=0.1)
    history = torch.tensor([[3, 9, 4], [0, 0, 7]])
    cosines = cosine_similarity(plain(history).unsqueeze(1), plain.items.weight[1:].unsqueeze(0), dim=2)
    torch.testing.assert_close(model.scores(history)[:, 1:], cosines / 0.1)
    torch.testing.assert_close(model(history) @ model.item_vectors()[1:].T, cosines / 0.1)


@pytest.mark.parametrize("repeat", [None, -0.7, 0.4])
@pytest.mark.parametrize("temperature", [None, 0.1])
def test_training_at_every_position_equals_scoring_each_prefix(temperature: float | None, repeat: float | None) -> None:
    model = small_model(temperature, repeat)
    inputs, targets = torch.tensor([[0, 0, 5, 7, 9], [1, 2, 1, 4, 1]]), torch.tensor([[0, 0, 7, 9, 5], [2, 1, 4, 1, 6]])
    prefixes = [(row[: i + 1], t[i]) for row, t in zip(inputs, targets, strict=True) for i in range(5) if row[i] > 0]
    losses = [-model.scores(prefix.unsqueeze(0)).log_softmax(1)[0, target] for prefix, target in prefixes]
    expected, found = torch.stack(losses).mean(), model.next_item_loss(inputs, targets)
    torch.testing.assert_close(found, expected)
    for wanted, gradient in zip(
        torch.autograd.grad(expected, tuple(model.parameters())),
        torch.autograd.grad(found, tuple(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_the_repeat_bias_shifts_the_items_of_the_history_and_no_others() -> None:
    history = torch.tensor([[0, 3, 9, 3], [8, 2, 5, 1]])
    plain, biased = small_model(0.1).scores(history), small_model(0.1, repeat=-0.3).scores(history)
    expected = plain.clone()
    for row, items in enumerate(([3, 9], [8, 2, 5, 1])):
        expected[row, items] -= 3.0
    torch.testing.assert_close(biased, expected)


@pytest.mark.parametrize(("repeats", "sign"), [(False, -1), (True, 1)])
def test_the_log_decides_the_sign_of_the_repeat_bias(repeats: bool, sign: int) -> None:
    torch.manual_seed(0)
    model = SASRec(30, SASRecConfig(dim=16, layers=1, max_length=6, dropout=0.1, temperature=0.1, repeat_bias=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        rows = torch.stack([torch.randperm(30)[:7] + 1 for _ in range(64)])
        if repeats:  # some of the same three, nobody can tell which
            rows = rows.gather(1, torch.randint(0, 3, (64, 7)))
        optimizer.zero_grad()
        model.next_item_loss(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    assert sign * model.repeat.item() > 0.05


def test_the_same_seed_gives_the_same_loss_and_gradients() -> None:
    rows = torch.randint(1, 31, (8, 7), generator=torch.Generator().manual_seed(1))

    def step() -> list[torch.Tensor]:
        model = small_model().train()
        loss = model.next_item_loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    for first, second in zip(step(), step(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("sampled", [False, True])
def test_it_learns_that_each_item_is_followed_by_the_next(sampled: bool) -> None:
    torch.manual_seed(0)
    model = SASRec(30, SASRecConfig(dim=32, layers=1, max_length=6, dropout=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    log_q = torch.full((31,), 1 / 30).log()
    for _ in range(60):
        rows = (torch.randint(0, 30, (64, 1)) + torch.arange(7)) % 30 + 1
        negatives = torch.randint(1, 31, (20,)) if sampled else None
        loss = model.next_item_loss(rows[:, :-1], rows[:, 1:], negatives, log_q)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    starts = torch.arange(30).unsqueeze(1)
    predicted = model.scores((starts + torch.arange(4)) % 30 + 1).argmax(1)
    assert (predicted == (starts.squeeze(1) + 4) % 30 + 1).float().mean() > 0.95


def test_bf16_attention_is_attention() -> None:
    model = small_model()
    history = torch.randint(1, 31, (8, 6), generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rounded = model(history).float()
    torch.testing.assert_close(rounded, model(history), rtol=0.1, atol=0.1)
    assert torch.cosine_similarity(rounded, model(history)).min() > 0.999


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        SASRecConfig(dim=10, heads=3)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        SASRecConfig(dropout=1.0)
    with pytest.raises(ValueError, match="repeat_bias needs the full softmax"):
        SASRecConfig(repeat_bias=True, sampled_items=10)
