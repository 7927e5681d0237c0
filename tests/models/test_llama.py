"""The decoder is transformers' LlamaForCausalLM to the bit of its weights' names, and it is causal."""

import pytest
import torch
from transformers import LlamaConfig as ReferenceConfig
from transformers import LlamaForCausalLM

from rayrec.models.llama import SHAPES, LlamaConfig, LlamaLanguageModel, LlamaShape

SHAPE = LlamaShape(hidden=32, intermediate=48, layers=3, heads=4)


@pytest.fixture
def model() -> LlamaLanguageModel:
    torch.manual_seed(0)
    return LlamaLanguageModel(LlamaConfig(61, SHAPE)).eval()


def reference_of(config: LlamaConfig) -> LlamaForCausalLM:
    shape = config.shape
    reference = ReferenceConfig(
        vocab_size=config.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(reference).eval()


def test_logits_and_gradients_match_transformers_with_the_same_weights(model: LlamaLanguageModel) -> None:
    reference = reference_of(model.config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large enough that a wrong rotation or norm shows
    reference.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 61, (3, 40))
    ours, theirs = model(tokens), reference(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        scale = expected[name].grad.abs().max()
        torch.testing.assert_close(parameter.grad / scale, expected[name].grad / scale, rtol=1e-3, atol=1e-4, msg=name)


def test_a_later_token_does_not_change_earlier_logits(model: LlamaLanguageModel) -> None:
    tokens = torch.randint(0, 61, (2, 12))
    changed = tokens.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 61
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().amax() > 1e-4


def test_the_60m_shape_has_58_million_parameters() -> None:
    with torch.device("meta"):
        model = LlamaLanguageModel(LlamaConfig(32_000, SHAPES["60m"]))
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters == 58_073_600


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="30 with 4 heads"):
        LlamaShape(hidden=30, intermediate=8, layers=1, heads=4)
