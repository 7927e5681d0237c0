"""The depth retriever: its likelihoods against brute force over all items, what search finds, and invariances."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, silu

from rayrec.models.catalogue import ItemFeatures
from rayrec.models.depth_retriever import DepthRetriever, DepthRetrieverConfig
from rayrec.retrieval.searching import Searcher
from rayrec.retrieval.semantic_ids import resolve_collisions

ITEMS = 40
CONFIG = DepthRetrieverConfig(dim=16, layers=2, heads=2, max_length=5)
HISTORY = torch.tensor([[0, 0, 5, 9, 4], [1, 2, 6, 7, 8], [0, 0, 0, 0, 3], [6, 4, 6, 9, 6]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(config: DepthRetrieverConfig = CONFIG) -> DepthRetriever:
    """Over 40 items of three codes; repeat terms that matter."""
    torch.manual_seed(0)
    ids = resolve_collisions(torch.randint(0, 4, (ITEMS, 2)), 4)
    seen = torch.ones(ITEMS + 1, dtype=torch.bool)
    found = DepthRetriever(ItemFeatures(ids.item_tokens(), ids.num_tokens, torch.zeros(ITEMS + 1, 1), seen), config)
    if config.repeat_terms:
        torch.nn.init.normal_(found.repeat, std=0.3)
    return found.eval()


def by_hand(found: DepthRetriever, history: list[int], item: int) -> Tensor:
    """Log-likelihood () of an item after the items of one history, one Python loop a code and a candidate."""
    tokens = found.item_tokens
    x = torch.stack([tokens_of(found, i) for i in history]) + found.positions.weight[: len(history)]
    x = found.input_norm(x)
    for block in found.blocks:
        q, k, v = block.query_key_value(block.norm(x)).view(len(history), 3, 2, 8).permute(1, 2, 0, 3)
        scores = (q @ k.transpose(1, 2) / 8**0.5).masked_fill(
            torch.ones(len(history), len(history)).triu(1) > 0, -torch.inf
        )
        x = x + block.output((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
        x = x + swiglu(block.feed_forward, x)
    h, total = x[-1], torch.zeros(())
    for level in range(3):
        prefix = tokens[item, :level].tolist()
        siblings = sorted({int(row[level]) for row in tokens[1:] if row[:level].tolist() == prefix})
        scores = []
        for code in siblings:
            score = normalize(h, dim=0) @ normalize(found.tokens.weight[code], dim=0) / found.config.temperature
            path = [*prefix, code]
            any_item = any(tokens[i, : level + 1].tolist() == path for i in history)
            last_item = tokens[history[-1], : level + 1].tolist() == path
            shift = 5.0 * found.repeat[2 * level : 2 * level + 2]
            scores.append(score + any_item * shift[0] + last_item * shift[1])
        total = total + torch.stack(scores).log_softmax(0)[siblings.index(int(tokens[item, level]))]
        if level < 2:
            h = h + found.code_norms[level](found.tokens.weight[tokens[item, level]])
            h = h + swiglu(found.depth[level], h)
    return total


def tokens_of(found: DepthRetriever, item: int) -> Tensor:
    read = found.tokens.weight[found.item_tokens[item]].sum(0) / 3**0.5
    if found.config.item_embeddings:
        read = read + found.items.weight[item] * found.seen[item]
    return read + found.read_text.weight @ found.item_text[item] if found.config.text_input else read


def swiglu(layer: torch.nn.Module, x: Tensor) -> Tensor:
    gate, value = (layer.norm(x) @ layer.expand.weight.T).chunk(2, -1)
    return (silu(gate) * value) @ layer.contract.weight.T


def test_losses_and_gradients_are_those_of_a_loop_over_positions_codes_and_candidates() -> None:
    found = model()
    target = torch.tensor([[0, 0, 9, 4, 11], [2, 6, 7, 8, 8], [0, 0, 0, 0, 40], [4, 6, 9, 6, 1]])
    loss = found.loss(HISTORY, target)["loss"]
    likelihoods = []
    for row, goals in zip(HISTORY.tolist(), target.tolist(), strict=True):
        for place in range(5):
            if row[place]:
                likelihoods.append(by_hand(found, [i for i in row[: place + 1] if i], goals[place]))
    assert len(likelihoods) == 14
    wanted = -torch.stack(likelihoods).mean()
    torch.testing.assert_close(loss, wanted)
    parameters = dict(found.named_parameters())
    ours, theirs = (torch.autograd.grad(x, list(parameters.values())) for x in (loss, wanted))
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, msg=name)


def test_codes_that_alone_can_follow_teach_nothing_and_still_belong_to_every_workers_graph() -> None:
    found = of_tokens([[1, 4, 6], [2, 4, 6], [3, 5, 7]])  # the first code tells all items apart
    parts = found.losses(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 3]]))
    assert parts["code_1"] > 0
    assert parts["code_2"] == 0
    assert parts["code_3"] == 0
    sum(parts.values(), torch.zeros(())).backward()
    for name, parameter in found.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("depth", "code_norms")):
            assert not parameter.grad.any(), name


def test_a_certain_code_before_one_that_is_not_keeps_its_position() -> None:
    """Of items 1 and 2 the second code is certain and the third is not, of 3 and 4 the other way round, of 5 both are certain."""
    found = of_tokens([[1, 4, 7], [1, 4, 8], [2, 5, 8], [2, 6, 7], [3, 5, 9]])
    assert found.known.choices(torch.arange(1, 6)).tolist() == [
        [True, False, True], [True, False, True], [True, True, False], [True, True, False], [True, False, False]
    ]  # fmt: skip
    loss = found.loss(torch.tensor([[2, 3, 1, 4, 5]]), torch.tensor([[1, 2, 3, 4, 5]]))["loss"]
    wanted = -torch.stack([by_hand(found, [2, 3, 1, 4, 5][: i + 1], i + 1) for i in range(5)]).mean()
    torch.testing.assert_close(loss, wanted)
    parameters = dict(found.named_parameters())
    ours, theirs = (torch.autograd.grad(x, list(parameters.values()), materialize_grads=True) for x in (loss, wanted))
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, msg=name)


def of_tokens(tokens: list[list[int]]) -> DepthRetriever:
    torch.manual_seed(0)
    rows, seen = torch.tensor([[0] * len(tokens[0]), *tokens]), torch.ones(len(tokens) + 1, dtype=torch.bool)
    seen[0] = False
    found = DepthRetriever(ItemFeatures(rows, int(rows.max()) + 1, torch.zeros(len(rows), 1), seen), CONFIG)
    torch.nn.init.normal_(found.repeat, std=0.3)
    return found.eval()


@torch.no_grad()
def test_a_beam_as_wide_as_the_catalogue_scores_every_item_by_its_likelihood() -> None:
    found = model()
    everything = Searcher(found, beams=ITEMS).search(HISTORY, ITEMS, "generative")
    assert everything.items.sort(1).values.tolist() == [list(range(1, ITEMS + 1))] * len(HISTORY)
    for row, (items, scores) in enumerate(zip(everything.items.tolist(), everything.scores, strict=True)):
        history = [i for i in HISTORY[row].tolist() if i]
        torch.testing.assert_close(
            scores, torch.stack([by_hand(found, history, i) for i in items]), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(everything.scores.logsumexp(1), torch.zeros(len(HISTORY)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_result_of_a_narrow_beam_is_an_item_with_its_own_likelihood() -> None:
    found = model()
    narrow = Searcher(found, beams=6).search(HISTORY, 6, "generative")
    everything = Searcher(found, beams=ITEMS).search(HISTORY, ITEMS, "generative")
    for row in range(len(HISTORY)):
        scores = dict(zip(everything.items[row].tolist(), everything.scores[row].tolist(), strict=True))
        assert len(set(narrow.items[row].tolist())) == 6
        for item, score in zip(narrow.items[row].tolist(), narrow.scores[row].tolist(), strict=True):
            assert score == pytest.approx(scores[item], abs=1e-5)


@torch.no_grad()
def test_padding_batch_mates_and_items_too_old_to_be_read_change_nothing() -> None:
    found = model()
    search = Searcher(found, beams=ITEMS).search
    together = search(HISTORY, 5, "generative")
    for row, history in enumerate(HISTORY.tolist()):
        own = [i for i in history if i]
        alone = search(torch.tensor([own]), 5, "generative")
        assert alone.items[0].tolist() == together.items[row].tolist()
        torch.testing.assert_close(alone.scores[0], together.scores[row], rtol=1e-4, atol=1e-5)
    longer = torch.cat([torch.full((4, 3), 11), HISTORY.masked_fill(HISTORY == 0, 12)], 1)
    assert torch.equal(search(longer, 5, "generative").items, search(longer[:, 3:], 5, "generative").items)


COLD = [3, 17, 40]
WITH_DENSE = replace(CONFIG, dense_weight=0.5)


def with_text(config: DepthRetrieverConfig = WITH_DENSE) -> DepthRetriever:
    """Over texts of 6 numbers; three items were never seen."""
    torch.manual_seed(0)
    ids = resolve_collisions(torch.randint(0, 4, (ITEMS, 2)), 4, smallest_last_level=16)
    seen = torch.ones(ITEMS + 1, dtype=torch.bool)
    seen[[0, *COLD]] = False
    items = ItemFeatures(ids.item_tokens(), ids.num_tokens, torch.randn(ITEMS + 1, 6), seen)
    found = DepthRetriever(items, config)
    if config.dense_weight > 0:
        torch.nn.init.constant_(found.dense_repeat, -0.4)
    return found.eval()


@pytest.mark.parametrize("embeddings", [False, True])
@torch.no_grad()
def test_texts_are_read_beside_codes_those_of_unseen_items_too(embeddings: bool) -> None:
    found = with_text(replace(CONFIG, text_input=True, item_embeddings=embeddings))
    history = [5, COLD[1], 4]
    everything = Searcher(found, beams=ITEMS).search(torch.tensor([history]), ITEMS, "generative")
    wanted = torch.stack([by_hand(found, history, item) for item in everything.items[0].tolist()])
    torch.testing.assert_close(everything.scores[0], wanted, rtol=1e-4, atol=1e-4)
    assert found.growing is None  # no head that could find what is added


def dense_items_of(found: DepthRetriever) -> Tensor:
    """(N + 1, D), row 0 of no item."""
    if found.config.dense_items == "text":
        return normalize(found.item_text @ found.text.weight.T, dim=1)
    return normalize(torch.stack([tokens_of(found, item) for item in range(ITEMS + 1)]), dim=1)


@pytest.mark.parametrize("items", ["text", "input"])
def test_the_dense_loss_is_that_of_shifted_cosines_among_seen_items_gradients_too(
    items: Literal["text", "input"],
) -> None:
    found = with_text(replace(WITH_DENSE, dense_items=items))
    history, target = HISTORY[[1, 3]], torch.tensor([[2, 6, 7, 8, 8], [4, 6, 9, 6, 1]])
    seen = found.seen.nonzero().squeeze(1).tolist()
    losses = []
    for row, goals in zip(history.tolist(), target.tolist(), strict=True):
        for place in range(5):
            state = found.newest_states(torch.tensor([row[: place + 1]]))[0]
            asked = normalize(found.ask.weight @ state, dim=0)
            cosines = dense_items_of(found) @ asked
            read = torch.zeros(ITEMS + 1).index_fill(0, torch.tensor(row[: place + 1]), 1.0)
            cosines = cosines + read * found.dense_repeat
            losses.append(-(cosines[seen] / 0.07).log_softmax(0)[seen.index(goals[place])])
    parts = found.loss(history, target)
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(parts["dense"], wanted)
    codes = torch.stack([value for name, value in parts.items() if name.startswith("code")]).sum()
    torch.testing.assert_close(parts["loss"], codes + 0.5 * parts["dense"])
    known_by = found.text if items == "text" else found.items
    some = (found.ask.weight, known_by.weight, found.dense_repeat, found.tokens.weight)
    ours = torch.autograd.grad(parts["dense"], some)
    for one, other in zip(ours, torch.autograd.grad(wanted, some), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_new_items_are_read_and_found_by_their_text() -> None:
    found = with_text()
    searcher = Searcher(found, beams=ITEMS)
    searcher.prepare()
    before = searcher.search(HISTORY, 5, "dense")
    tokens = found.item_tokens[[5, 9]].clone()
    tokens[:, 2] = found.num_tokens - 1
    text = torch.linalg.lstsq(found.text.weight, found.query(HISTORY[:1]).T).solution.squeeze(1)  # what it asks for
    first = found.add_items(tokens, torch.stack([text, -text]))
    searcher.take_in(torch.arange(first, first + 2))
    for method in ("dense", "hybrid"):
        now = searcher.search(HISTORY, 5, method).items  # type: ignore[arg-type]
        assert int(now[0, 0]) == first
        assert first + 1 not in now[0].tolist()
    barred = torch.tensor([[first, first + 1]] * 4)
    assert torch.equal(searcher.search(HISTORY, 5, "dense", barred=barred).items, before.items)
    assert searcher.search(barred, 5, "hybrid").items.min() > 0


@torch.no_grad()
def test_a_new_item_known_by_its_codes_scores_as_a_seen_one_without_its_embedding() -> None:
    found = with_text(replace(WITH_DENSE, dense_items="input"))
    searcher = Searcher(found, beams=ITEMS)
    searcher.prepare()
    searcher.search(HISTORY, 5, "dense")
    first = found.add_items(found.item_tokens[[5]].clone(), torch.zeros(1, 6))
    searcher.take_in(torch.tensor([first]))
    everything = searcher.search(HISTORY, ITEMS + 1, "dense")
    asked = found.query(HISTORY)
    found.items.weight[5] = 0.0
    wanted = asked @ found.item_vectors(torch.tensor([5]))[0]
    torch.testing.assert_close(everything.scores[everything.items == first], wanted)


def test_options_leave_out_what_they_name() -> None:
    plain = model(replace(CONFIG, item_embeddings=False, repeat_terms=False))
    names = {name.partition(".")[0] for name, _ in plain.named_parameters()}
    assert not names & {"items", "repeat"}
    assert plain.loss(HISTORY, HISTORY)["loss"].isfinite()


def test_items_loaded_later_are_the_ones_searched() -> None:
    found, other = model(), model()
    _ = found.known
    other.item_tokens[[1, 2]] = other.item_tokens[[2, 1]]
    found.load_state_dict(other.state_dict())
    with torch.no_grad():
        ours, theirs = (Searcher(m, beams=ITEMS).search(HISTORY, 9, "generative").items for m in (found, other))
    assert torch.equal(ours, theirs)


def test_it_learns_that_each_item_is_followed_by_the_next() -> None:
    torch.manual_seed(0)
    found = model(replace(CONFIG, max_length=3, dropout=0.0, input_dropout=0.0, item_dropout=0.0)).train()
    optimizer = torch.optim.AdamW(found.parameters(), lr=3e-3)
    for _ in range(100):
        start = torch.randint(1, ITEMS - 2, (64, 1))
        optimizer.zero_grad()
        found.loss(start + torch.arange(3), start + torch.arange(1, 4))["loss"].backward()
        optimizer.step()
    found.eval()
    history = torch.arange(1, ITEMS - 2).unsqueeze(1) + torch.arange(2)
    best = Searcher(found, beams=5).search(history, 1, "generative").items[:, 0]
    assert (best == history[:, -1] + 1).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dim": 15}, "multiple of heads"), ({"layers": 0}, "layers"), ({"item_dropout": 1.0}, "item_dropout"),
     ({"temperature": 0.0}, "temperature"), ({"dense_items": "input"}, "give dense_weight above 0")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
