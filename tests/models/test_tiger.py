"""TIGER is a T5 over semantic-ID tokens and nothing else: against transformers' with the same weights; options by name."""

import pytest
import torch
from torch import Tensor

from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import ItemFeatures
from rayrec.models.liger import Liger, LigerConfig
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.retrieval.retriever import Personal
from rayrec.retrieval.searching import Searcher
from rayrec.typed_json import from_plain, to_plain
from tests.models import test_t5

TOKENS = torch.tensor([[0, 0], [1, 5], [1, 6], [2, 5], [3, 8], [4, 7]])
HISTORY, TARGET = torch.tensor([[0, 1, 4, 2], [5, 3, 3, 1]]), torch.tensor([3, 5])


USERS = torch.tensor([3, 1])


def tiger(config: TigerConfig) -> Liger:
    seen = torch.ones(6, dtype=torch.bool)
    return Liger(ItemFeatures(TOKENS, 9, torch.zeros(6, 1), seen), config.as_liger).train()


def test_tiger_is_transformers_t5_from_tokens_to_tokens_gradients_too() -> None:
    peer = test_t5.peer().train()  # its dropout is 0: nothing of ours may drop either
    peer.lm_head.weight = torch.nn.Parameter(torch.randn(9, 12))  # transformers ties it, whatever the config says
    model = tiger(TigerConfig(test_t5.CONFIG, max_length=4))
    encoder, decoder = test_t5.copies(peer)
    model.encoder.load_state_dict(encoder.state_dict())
    model.decoder.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        model.token_embedding.weight.copy_(peer.shared.weight)
        model.head.weight.copy_(peer.lm_head.weight)
    inputs = TOKENS[HISTORY].flatten(1)
    before = torch.cat([torch.zeros(2, 1, dtype=torch.int64), TOKENS[TARGET][:, :-1]], 1)
    mask = (inputs > 0).long()
    wanted = peer(input_ids=inputs, attention_mask=mask, decoder_input_ids=before, labels=TOKENS[TARGET]).loss
    loss = model.loss(HISTORY, TARGET)["loss"]
    torch.testing.assert_close(loss, wanted)
    wanted.backward()
    loss.backward()
    torch.testing.assert_close(model.token_embedding.weight.grad, peer.shared.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.head.weight.grad, peer.lm_head.weight.grad, rtol=1e-4, atol=1e-6)


def test_with_user_tokens_tiger_is_transformers_t5_that_reads_the_users_token_before_the_items() -> None:
    model = tiger(TigerConfig(test_t5.CONFIG, max_length=4, user_tokens=3))  # tokens 9, 10, 11, behind items' ones
    peer = test_t5.peer().train()
    peer.lm_head.weight = torch.nn.Parameter(torch.randn(9, 12))
    peer.set_input_embeddings(torch.nn.Embedding(12, 12))
    encoder, decoder = test_t5.copies(peer)
    model.encoder.load_state_dict(encoder.state_dict())
    model.decoder.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        model.token_embedding.weight.copy_(peer.shared.weight)
        model.head.weight.copy_(peer.lm_head.weight)
    inputs = torch.tensor([[11, 1, 5, 3, 8, 1, 6, 0, 0], [9, 4, 7, 2, 5, 2, 5, 1, 5]])  # padded at the other end
    before = torch.cat([torch.zeros(2, 1, dtype=torch.int64), TOKENS[TARGET][:, :-1]], 1)
    wanted = peer(
        input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=before, labels=TOKENS[TARGET]
    ).loss
    loss = model.loss(Personal(HISTORY, USERS), TARGET)["loss"]
    torch.testing.assert_close(loss, wanted)
    wanted.backward()
    loss.backward()
    gradient = model.token_embedding.weight.grad
    assert gradient is not None
    torch.testing.assert_close(gradient, peer.shared.weight.grad, rtol=1e-4, atol=1e-6)
    assert gradient[[9, 11]].any(1).all()
    assert not gradient[10].any()


def test_the_token_of_a_user_changes_the_answer_and_none_is_the_answer_without() -> None:
    model = tiger(TigerConfig(test_t5.CONFIG, max_length=4, user_tokens=3)).eval()
    blind = tiger(TigerConfig(test_t5.CONFIG, max_length=4)).eval()
    own = model.state_dict()
    blind.load_state_dict({**own, "token_embedding.weight": own["token_embedding.weight"][:9]})
    items = torch.arange(1, 6).expand(4, -1)
    history = torch.tensor([[0, 1, 4]]).expand(4, -1)
    found = model.log_likelihood(Personal(history, torch.tensor([0, 1, 2, 1])), items)
    torch.testing.assert_close(found[0], blind.log_likelihood(history, items)[0])
    torch.testing.assert_close(found[3], found[1], rtol=0, atol=0)
    assert (found[[0, 1]] - found[[1, 2]]).abs().min() > 1e-4
    torch.testing.assert_close(model.log_likelihood(history, items), found[:1].expand(4, -1))
    padded = torch.nn.functional.pad(history, (1, 0))
    torch.testing.assert_close(model.log_likelihood(Personal(padded, torch.tensor([0, 1, 2, 1])), items), found)


def test_a_beam_search_over_all_items_finds_the_likelihoods_under_each_users_token() -> None:
    model = tiger(TigerConfig(test_t5.CONFIG, max_length=4, user_tokens=3)).eval()
    searcher: Searcher[Tensor | Personal] = Searcher(model)
    asked = Personal(HISTORY[:1].expand(3, -1), torch.tensor([0, 1, 2]))
    found = searcher.search(asked, 5, "generative", beams=5)
    torch.testing.assert_close(found.scores, model.log_likelihood(asked, found.items))
    assert (found.items.sort(1).values == torch.arange(1, 6)).all()
    assert len({tuple(row) for row in found.scores.tolist()}) == 3
    alone = searcher.search(Personal(HISTORY[:1], torch.tensor([2])), 5, "generative", beams=5)
    torch.testing.assert_close(alone.scores[0], found.scores[2])


@torch.no_grad()
def test_with_a_constrained_softmax_tigers_likelihoods_of_its_items_sum_to_one() -> None:
    every = torch.arange(1, 6).expand(2, -1)
    sums = [
        tiger(TigerConfig(test_t5.CONFIG, max_length=4, constrained_softmax=constrained))
        .eval()
        .log_likelihood(HISTORY, every)
        .exp()
        .sum(1)
        for constrained in (True, False)
    ]
    torch.testing.assert_close(sums[0], torch.ones(2))
    assert (sums[1] < 0.9).all()


def test_settings_from_before_there_were_user_tokens_are_those_without() -> None:
    before = to_plain(RetrievalConfig("tiger"))
    for model in ("tiger", "liger"):
        del before[model]["user_tokens"]
    assert from_plain(RetrievalConfig, before) == RetrievalConfig("tiger")
    with pytest.raises(ValueError, match="user_tokens must be at least 0, not -1"):
        TigerConfig(user_tokens=-1)


@pytest.mark.parametrize(
    ("option", "parameters"),
    [
        ({}, set()),
        ({"absolute_positions": True}, {"position_embedding.weight", "level_embedding.weight"}),
        ({"input_norm": True}, {"input_norm.weight", "input_norm.bias"}),
        ({"constrained_softmax": True}, set()),
    ],
)
def test_what_ligers_code_adds_is_there_only_by_name(option: dict[str, bool], parameters: set[str]) -> None:
    names = {name for name, _ in tiger(TigerConfig(test_t5.CONFIG, max_length=4, **option)).named_parameters()}
    own = {n for n in names if not n.startswith(("encoder.", "decoder.", "token_embedding.", "head."))}
    assert own == parameters


def test_a_tiger_saved_before_it_had_its_own_settings_is_built_as_it_was() -> None:
    before = to_plain(RetrievalConfig(liger=LigerConfig(T5Config(dim=24), input_dropout=0.3, repeat_bias=True)))
    before |= {"model": "tiger"}
    del before["tiger"]
    found = from_plain(RetrievalConfig, before)
    wanted = LigerConfig(T5Config(dim=24), text=False, dense_weight=0.0, input_dropout=0.3)
    assert found.architecture == wanted
    assert from_plain(RetrievalConfig, to_plain(found)) == found
    assert from_plain(RetrievalConfig, {"model": "tiger"}).architecture == TigerConfig()
