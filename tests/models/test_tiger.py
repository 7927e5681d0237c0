"""TIGER is a T5 over semantic-ID tokens and nothing else: against transformers' with the same weights; options by name."""

import pytest
import torch

from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import ItemFeatures
from rayrec.models.liger import Liger, LigerConfig
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.typed_json import from_plain, to_plain
from tests.models import test_t5

TOKENS = torch.tensor([[0, 0], [1, 5], [1, 6], [2, 5], [3, 8], [4, 7]])
HISTORY, TARGET = torch.tensor([[0, 1, 4, 2], [5, 3, 3, 1]]), torch.tensor([3, 5])


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


@pytest.mark.parametrize(
    ("option", "parameters"),
    [
        ({}, set()),
        ({"absolute_positions": True}, {"position_embedding.weight", "level_embedding.weight"}),
        ({"input_norm": True}, {"input_norm.weight", "input_norm.bias"}),
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
