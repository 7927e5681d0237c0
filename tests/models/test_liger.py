"""TIGER, dense and LIGER: the heads against explicit formulas, who gets gradients, and invariances."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from rayrec.models.catalogue import ItemFeatures
from rayrec.models.liger import Liger, LigerConfig
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.retrieval.beam_search import beam_search
from rayrec.retrieval.hybrid import hybrid_ranking
from rayrec.retrieval.index import DenseIndex, IndexConfig
from rayrec.retrieval.searching import Searcher
from rayrec.retrieval.semantic_ids import resolve_collisions
from rayrec.retrieval.text_blend import TextBlend
from rayrec.retrieval.trie import ItemTrie

T5 = T5Config(dim=16, feed_forward=24, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1, dropout=0.1)
HYBRID = LigerConfig(T5, projection=(12,), max_length=5)
ITEMS = 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def features() -> ItemFeatures:
    generator = torch.Generator().manual_seed(1)
    ids = resolve_collisions(torch.randint(0, 4, (ITEMS, 2), generator=generator), 4)
    text = torch.randn(ITEMS + 1, 6, generator=generator)
    seen = torch.ones(ITEMS + 1, dtype=torch.bool)
    seen[[0, 3, 17, 40]] = False
    return ItemFeatures(ids.item_tokens(), ids.num_tokens, text, seen)


def model(config: LigerConfig = HYBRID) -> Liger:
    torch.manual_seed(0)
    return Liger(features(), config).eval()


HISTORY = torch.tensor([[0, 0, 5, 9, 4], [1, 2, 6, 7, 8], [0, 0, 0, 0, 3]])


def test_dense_scores_equal_explicit_cosines() -> None:
    liger = model()
    states, _ = liger.encode(HISTORY)
    projected = liger.projection(liger.item_text)
    scores = liger.dense_scores(HISTORY)
    for row in range(3):
        for item in (1, 3, 40):
            wanted = cosine_similarity(states[row, -1], projected[item], dim=0)
            torch.testing.assert_close(scores[row, item], wanted)
    assert (scores[:, 0] == -torch.inf).all()


def test_the_input_is_the_normed_sum_of_code_text_place_and_level() -> None:
    liger = model()
    projection, history = liger.projection, HISTORY[:2]
    text = liger.item_text[history]  # (2, 5, E)
    first, relu, _, last = projection.network
    projected = text @ projection.linear.weight.T + projection.linear.bias
    projected = projected + relu(text @ first.weight.T + first.bias) @ last.weight.T + last.bias
    place = liger.position_embedding.weight[[4, 3, 2, 1, 0]]  # counted from the newest item
    tokens = liger.token_embedding.weight[liger.item_tokens[history]]  # (2, 5, 3, D)
    summed = tokens + projected.unsqueeze(2) + place[:, None] + liger.level_embedding.weight
    normed = (summed - summed.mean(-1, keepdim=True)) / (summed.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = normed * liger.input_norm.weight + liger.input_norm.bias
    wanted = liger.encoder(normed.flatten(1, 2), (history > 0).repeat_interleave(3, 1))
    torch.testing.assert_close(liger.encode(history)[0], wanted)
    given = liger.encode(history, projection(liger.item_text))[0]  # as the loss passes it
    torch.testing.assert_close(given, wanted)


def test_losses_equal_their_formulas_and_weigh_in_one_sum() -> None:
    liger = model(LigerConfig(T5, projection=(12,), max_length=5, generative_weight=0.5, dense_weight=2.0))
    target = torch.tensor([6, 9, 17])  # the last one was never seen: it is no target of the dense loss
    parts = liger.loss(HISTORY, target)
    seen = liger.seen.nonzero().squeeze(1)
    logits = liger.dense_scores(HISTORY)[:2, seen] / 0.07
    places = torch.tensor([seen.tolist().index(6), seen.tolist().index(9)])
    torch.testing.assert_close(parts["dense"], cross_entropy(logits, places))
    likelihood = liger.log_likelihood(HISTORY, target.unsqueeze(1))
    torch.testing.assert_close(parts["generative"], -likelihood.sum() / (3 * 3))
    torch.testing.assert_close(parts["loss"], 0.5 * parts["generative"] + 2.0 * parts["dense"])


def test_with_a_repeat_bias_loss_and_gradients_are_those_of_shifted_cosines() -> None:
    liger = model(LigerConfig(T5, projection=(12,), max_length=3, generative_weight=0.0, repeat_bias=True))
    liger.repeat.data.fill_(-0.3)
    history = torch.tensor([[0, 6, 5, 9, 5], [1, 2, 6, 7, 8]])  # 5 twice; 6 and 1, 2 are too old to be read
    plain = model(LigerConfig(T5, projection=(12,), max_length=3, generative_weight=0.0)).dense_scores(history)
    shifted = plain.clone()
    for row, items in enumerate(([5, 9], [6, 7, 8])):
        shifted[row, items] -= 0.3
    scores = liger.dense_scores(history)
    torch.testing.assert_close(scores, shifted)
    target = torch.tensor([6, 7])
    seen = liger.seen.nonzero().squeeze(1).tolist()
    wanted = cross_entropy(scores[:, seen] / 0.07, torch.tensor([seen.index(6), seen.index(7)]))
    found = liger.loss(history, target)["loss"]
    torch.testing.assert_close(found, wanted)
    parameters = (liger.repeat, liger.projection.linear.weight)
    for gradient, expected in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="repeat_bias belongs to the dense head"):
        LigerConfig(T5, dense_weight=0.0, repeat_bias=True)


def test_neighbours_add_the_cosines_of_faded_texts_in_principal_dimensions() -> None:
    liger = model(replace(HYBRID, neighbours=4, repeat_bias=True))
    liger.neighbour_weight.data.fill_(0.7)
    liger.fading.data.copy_(torch.tensor([0.1, 0.2, 0.3, 0.5, 0.9]))
    text, seen = liger.item_text.double(), liger.seen
    axes = torch.linalg.svd(text[seen], full_matrices=False).Vh[:4]  # signs are free, cosines do not hang on them
    kin = text @ axes.T
    states, _ = liger.encode(HISTORY)
    projected, scores = liger.projection(liger.item_text), liger.dense_scores(HISTORY)
    for row, history in enumerate(HISTORY.tolist()):
        weights = liger.fading.tolist()
        asked = sum(w * kin[i] / kin[i].norm() for w, i in zip(weights, history, strict=True) if i)
        for item in (1, 3, 40):
            own = cosine_similarity(states[row, -1], projected[item], dim=0)
            wanted = own + 0.7 * cosine_similarity(asked, kin[item], dim=0)
            torch.testing.assert_close(scores[row, item], wanted.float(), rtol=1e-4, atol=1e-5)
    target = torch.tensor([7, 12, 22])
    expected = cross_entropy(scores[:, liger.seen] / HYBRID.temperature, liger.seen.cumsum(0)[target] - 1)
    loss = liger.losses(HISTORY, target)["dense"]
    torch.testing.assert_close(loss, expected)
    names = [name for name, parameter in liger.named_parameters() if name in ("neighbour_weight", "fading", "repeat")]
    for found, hand in zip(
        torch.autograd.grad(loss, [liger.get_parameter(name) for name in names]),
        torch.autograd.grad(expected, [liger.get_parameter(name) for name in names]),
        strict=True,
    ):
        torch.testing.assert_close(found, hand, rtol=1e-4, atol=1e-6)
    assert len(names) == 3


def test_an_item_added_later_has_its_neighbours_and_the_searcher_finds_them() -> None:
    liger = model(replace(HYBRID, neighbours=6))
    number = liger.add_items(liger.item_tokens[9:10], liger.item_text[9:10])
    torch.testing.assert_close(liger.item_vectors()[number], liger.item_vectors()[9])
    found = Searcher(liger).search(HISTORY, 7, "dense")
    assert torch.equal(found.items, liger.dense_scores(HISTORY).topk(7).indices)
    query, _ = liger.query_and_decoding(HISTORY)
    assert torch.equal(query, liger.query(HISTORY))


BLENDED = LigerConfig(T5, projection=(12,), max_length=5, repeat_bias=True, unseen_budget=0.05)


def test_a_blend_puts_the_faded_texts_cosine_and_a_bonus_for_unseen_items_on_top_of_the_dense_score() -> None:
    plain, blended = model(replace(BLENDED, unseen_budget=None)), model(BLENDED)
    torch.testing.assert_close(blended.dense_scores(HISTORY), plain.dense_scores(HISTORY))
    blended.blend_with(TextBlend(text=0.3, decay=0.5, unseen=0.2))
    text, unseen = blended.item_text, torch.tensor([float(not seen) for seen in blended.seen])
    unit = text / text.norm(dim=1, keepdim=True)
    oldest_first = [[5, 9, 4], [1, 2, 6, 7, 8], [3]]
    for row, items in enumerate(oldest_first):
        asked = sum(0.5**age * unit[item] for age, item in enumerate(reversed(items)))
        wanted = plain.dense_scores(HISTORY)[row] + 0.3 * cosine_similarity(asked, text, dim=1) + 0.2 * unseen
        torch.testing.assert_close(blended.dense_scores(HISTORY)[row, 1:], wanted[1:])
    hybrid = blended.query_and_decoding(HISTORY)[0] @ blended.item_vectors().T  # holds all unseen items as it is
    plain_text = blended.query(HISTORY) @ blended.item_vectors().T - 0.2 * unseen
    torch.testing.assert_close(hybrid, plain_text)


def test_vectors_with_a_blend_can_be_searched_by_every_index() -> None:
    liger = model(BLENDED)
    liger.blend_with(TextBlend(text=0.3, decay=0.5, unseen=0.2))
    assert liger.item_vectors().shape == (ITEMS + 1, 32)
    many = liger.item_vectors()[1:].repeat(10, 1)
    wanted = (liger.query(HISTORY) @ many.T).topk(5).values
    for method in ("exact", "hnsw", "ivf_pq"):
        config = IndexConfig(method=method, lists=4, probes=4, rerank=20)
        found = DenseIndex.build(many, config).search(liger.query(HISTORY), 5)
        torch.testing.assert_close(found.scores, wanted, atol=0.03, rtol=0.0)


def test_a_blend_takes_no_part_in_training() -> None:
    plain, blended = model(replace(BLENDED, unseen_budget=None)), model(BLENDED)
    blended.blend_with(TextBlend(text=0.3, decay=0.5, unseen=0.2))
    target = torch.tensor([7, 3, 12])
    for name, part in plain.loss(HISTORY, target).items():
        assert part.equal(blended.loss(HISTORY, target)[name])


def test_an_item_added_later_is_lifted_as_unseen_ones_are() -> None:
    liger = model(BLENDED)
    tokens, text = liger.item_tokens[-1:] + 0, torch.randn(1, 6)
    number = liger.add_items(tokens, text)
    before = liger.dense_scores(HISTORY)[:, number]
    liger.blend_with(TextBlend(text=0.0, decay=0.0, unseen=0.2))
    torch.testing.assert_close(liger.dense_scores(HISTORY)[:, number], before + 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen_budget": 1.0}, "unseen_budget must lie in"),
        ({"unseen_budget": 0.1, "dense_weight": 0.0, "text": False}, "unseen_budget belongs to the dense head"),
    ],
)
def test_a_budget_for_unseen_items_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LigerConfig(T5, **changes)


def test_cold_items_get_no_gradient_from_the_dense_loss() -> None:
    liger = model(LigerConfig(T5, projection=(12,), max_length=5, generative_weight=0.0))
    liger.item_text.requires_grad_()
    liger.loss(HISTORY[:2], torch.tensor([6, 17]))["loss"].backward()
    gradient = liger.item_text.grad
    assert gradient is not None
    assert (gradient[[3, 17, 40]] == 0).all()
    assert (gradient[10].abs() > 0).any()  # a seen item that is neither target nor history
    assert liger.loss(HISTORY[:2], torch.tensor([3, 17]))["loss"].item() == 0.0  # cold targets only


def test_one_code_path_builds_only_the_heads_that_have_a_weight() -> None:
    tiger, dense = model(TigerConfig(T5).as_liger), model(LigerConfig(T5, projection=(12,), generative_weight=0.0))
    assert set(tiger.loss(HISTORY, torch.tensor([1, 2, 3]))) == {"generative", "loss"}
    assert set(dense.loss(HISTORY, torch.tensor([1, 2, 4]))) == {"dense", "loss"}
    assert not [name for name, _ in tiger.named_parameters() if "projection" in name]
    assert not [name for name, _ in dense.named_parameters() if "decoder" in name or "head" in name]


def test_beam_search_scores_are_the_models_log_likelihood() -> None:
    liger = model()
    trie = ItemTrie.of(liger.item_tokens)
    found = beam_search(trie, liger.decoding(HISTORY), ITEMS)
    assert found.items.sort(1).values.tolist() == [list(range(1, ITEMS + 1))] * 3
    torch.testing.assert_close(found.scores, liger.log_likelihood(HISTORY, found.items), atol=1e-5, rtol=1e-5)
    narrow = beam_search(trie, liger.decoding(HISTORY), 4)
    torch.testing.assert_close(narrow.scores, liger.log_likelihood(HISTORY, narrow.items), atol=1e-5, rtol=1e-5)


def masked_log_probabilities(liger: Liger, history: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """(B, M) of the tokens of items (B,), by a mask over all tokens that is made by comparing every item's prefix."""
    tokens = liger.item_tokens[items]
    logits = liger.head(liger._decode(tokens[:, :-1], liger.decoder.cache(*liger.encode(history))))
    found = []
    for row, own in enumerate(tokens.tolist()):
        each = []
        for level, token in enumerate(own):
            siblings = {other[level] for other in liger.item_tokens[1:].tolist() if other[:level] == own[:level]}
            mask = torch.tensor([number not in siblings for number in range(liger.num_tokens)])
            each.append(logits[row, level].masked_fill(mask, -torch.inf).log_softmax(0)[token])
        found.append(torch.stack(each))
    return torch.stack(found)


def test_a_constrained_softmax_is_that_of_a_mask_over_tokens_that_lead_to_no_item_gradients_too() -> None:
    liger = model(replace(HYBRID, constrained_softmax=True))
    target = torch.tensor([6, 9, 17])
    wanted = -masked_log_probabilities(liger, HISTORY, target).mean()
    loss = liger.losses(HISTORY, target)["generative"]
    torch.testing.assert_close(loss, wanted)
    parameters = (liger.head.weight, liger.token_embedding.weight, liger.projection.linear.weight)
    for gradient, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    unmasked = model().losses(HISTORY, target)["generative"]
    assert unmasked > loss + 0.1


@torch.no_grad()
def test_under_a_constrained_softmax_the_likelihoods_of_all_items_sum_to_one_and_search_finds_them() -> None:
    liger = model(replace(HYBRID, constrained_softmax=True))
    every = torch.arange(1, ITEMS + 1).expand(3, -1)
    likelihoods = liger.log_likelihood(HISTORY, every)
    torch.testing.assert_close(likelihoods.exp().sum(1), torch.ones(3))
    for beams in (ITEMS, 4):
        found = beam_search(ItemTrie.of(liger.item_tokens), liger.decoding(HISTORY), beams)
        torch.testing.assert_close(found.scores, likelihoods.gather(1, found.items - 1), atol=1e-5, rtol=1e-5)
    taken = {tuple(tokens) for tokens in liger.item_tokens[1:].tolist()}
    levels = range(1, 5), range(5, 9), range(9, liger.num_tokens)
    free = next(tokens for tokens in product(*levels) if tokens not in taken)
    liger.add_items(torch.tensor([free]), torch.randn(1, 6))
    grown = torch.arange(1, ITEMS + 2).expand(3, -1)
    torch.testing.assert_close(liger.log_likelihood(HISTORY, grown).exp().sum(1), torch.ones(3))
    other = model(replace(HYBRID, constrained_softmax=True))
    _ = other.known
    state = other.state_dict() | {"item_tokens": other.item_tokens.flip(0).roll(1, 0)}
    other.load_state_dict(state)
    torch.testing.assert_close(other.log_likelihood(HISTORY, every).exp().sum(1), torch.ones(3))


@torch.no_grad()
def test_liger_candidates_are_the_beam_and_the_cold_items_ranked_by_the_dense_score() -> None:
    liger = model()
    cold = torch.tensor([3, 17, 40])
    beam = beam_search(ItemTrie.of(liger.item_tokens), liger.decoding(HISTORY), 6).items
    beam[0, 5], beam[1, 5] = 17, 0  # a candidate that is cold as well, and a beam that found nothing
    items, scores = hybrid_ranking(liger.query(HISTORY), beam, cold, liger.item_vectors(), 12)
    full = liger.dense_scores(HISTORY)
    for row in range(3):
        candidates = ({*beam[row].tolist()} | {3, 17, 40}) - {0}
        wanted = sorted(candidates, key=lambda i, r=row: -float(full[r, i]))
        assert items[row].tolist() == wanted + [0] * (12 - len(wanted))
        torch.testing.assert_close(scores[row, : len(wanted)], full[row, wanted])
        assert (scores[row, len(wanted) :] == -torch.inf).all()


def test_padding_and_batch_mates_change_nothing() -> None:
    liger = model()
    alone = HISTORY[:1, 2:]
    torch.testing.assert_close(liger.dense_scores(HISTORY)[:1], liger.dense_scores(alone))
    candidates = torch.tensor([[1, 17, 30]])
    torch.testing.assert_close(
        liger.log_likelihood(HISTORY, candidates.expand(3, -1))[:1], liger.log_likelihood(alone, candidates)
    )


def test_only_the_newest_items_are_read() -> None:
    liger = model()
    longer = torch.cat([torch.full((3, 4), 11), HISTORY], 1)
    torch.testing.assert_close(liger.query(longer), liger.query(longer[:, 4:]))


def test_the_same_seed_gives_the_same_loss() -> None:
    losses = []
    for _ in range(2):
        liger = model().train()
        torch.manual_seed(3)
        losses.append(liger.loss(HISTORY, torch.tensor([1, 2, 4]))["loss"].item())
    assert losses[0] == losses[1]


def test_both_heads_learn_that_each_item_is_followed_by_the_next() -> None:
    config = LigerConfig(
        T5Config(dim=32, feed_forward=64, heads=2, head_dim=16, encoder_layers=1, decoder_layers=1, dropout=0.0),
        projection=(32,), projection_dropout=0.0, input_dropout=0.0, max_length=3,
    )  # fmt: skip
    torch.manual_seed(0)
    items, text = features(), torch.randn(ITEMS + 1, 16)
    text[17] = text[10] + 0.1 * torch.randn(16)  # never seen, and described nearly as item 10 is
    liger = Liger(ItemFeatures(items.tokens, items.num_tokens, text, items.seen), config)
    optimizer = torch.optim.AdamW(liger.parameters(), lr=3e-3)
    allowed = torch.tensor([i for i in range(1, ITEMS - 1) if not {i, i + 1, i + 2} & {3, 17, 40}])
    for _ in range(120):
        start = allowed[torch.randint(0, len(allowed), (64,))]
        optimizer.zero_grad()
        liger.loss(torch.stack([start, start + 1], 1), start + 2)["loss"].backward()
        optimizer.step()
    liger.eval()
    history = torch.stack([allowed, allowed + 1], 1)
    found = beam_search(ItemTrie.of(liger.item_tokens), liger.decoding(history), 5).items[:, 0]
    assert (found == allowed + 2).float().mean() > 0.9
    assert (liger.dense_scores(history).argmax(1) == allowed + 2).float().mean() > 0.9
    searcher = Searcher(liger, beams=5)
    for method in ("dense", "hybrid"):  # the cold item stands where its text says: beside item 10, in no other list
        best = searcher.search(history, 2, method).items  # type: ignore[arg-type]
        assert {10, 17} == set(best[history[:, 1] == 9][0].tolist())
        assert (best == 17).any(1).float().mean() < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": False}, "scores items by their text"),
        ({"temperature": 0.0}, "temperature"),
        ({"neighbours": 4, "dense_weight": 0.0}, "neighbours must be at least 0, and belong to the dense head"),
        ({"dense_weight": 0.0, "generative_weight": 0.0}, "one of them above 0"),
        ({"constrained_softmax": True, "generative_weight": 0.0}, "constrained_softmax belongs to the generative head"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LigerConfig(T5, **changes)
