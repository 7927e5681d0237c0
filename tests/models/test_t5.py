"""Our T5 blocks against transformers' with the same weights; caches against decoding anew."""

from collections.abc import Iterator

import pytest
import torch
from transformers import T5Config as PeerConfig
from transformers import T5ForConditionalGeneration

from rayrec.models.t5 import T5Config, T5Decoder, T5Encoder, distance_buckets

CONFIG = T5Config(dim=12, feed_forward=20, heads=3, head_dim=8, encoder_layers=2, decoder_layers=2, dropout=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def peer() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = PeerConfig(
        vocab_size=9, d_model=12, d_ff=20, num_heads=3, d_kv=8, num_layers=2, num_decoder_layers=2, dropout_rate=0.0,
        feed_forward_proj="relu", tie_word_embeddings=False,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def copy_attention(ours: torch.nn.Module, theirs: torch.nn.Module, norm: torch.nn.Module) -> None:
    ours.query_key_value.weight.copy_(torch.cat([theirs.q.weight, theirs.k.weight, theirs.v.weight]))
    ours.output.weight.copy_(theirs.o.weight)
    ours.norm.weight.copy_(norm.weight)


@torch.no_grad()
def copies(model: T5ForConditionalGeneration) -> tuple[T5Encoder, T5Decoder]:
    encoder, decoder = T5Encoder(CONFIG).eval(), T5Decoder(CONFIG).eval()
    for ours, theirs in ((encoder, model.encoder), (decoder, model.decoder)):
        ours.distances.weight.copy_(theirs.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
        ours.norm.weight.copy_(theirs.final_layer_norm.weight)
        for layer, block in zip(ours.layers, theirs.block, strict=True):
            copy_attention(layer.attention, block.layer[0].SelfAttention, block.layer[0].layer_norm)
            if len(block.layer) == 3:
                copy_attention(layer.cross, block.layer[1].EncDecAttention, block.layer[1].layer_norm)
            last = block.layer[-1]
            layer.feed_forward.norm.weight.copy_(last.layer_norm.weight)
            layer.feed_forward.expand.weight.copy_(last.DenseReluDense.wi.weight)
            layer.feed_forward.contract.weight.copy_(last.DenseReluDense.wo.weight)
    return encoder, decoder


@torch.no_grad()
def test_encoder_and_decoder_equal_transformers_t5() -> None:
    model = peer()
    encoder, decoder = copies(model)
    x, y = torch.randn(4, 150, 12), torch.randn(4, 40, 12)  # far enough for the last bucket
    real = torch.ones(4, 150, dtype=torch.bool)
    real[1, :70], real[2, :149] = False, False
    states = encoder(x, real)
    wanted = model.encoder(inputs_embeds=x, attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(states[real], wanted[real], atol=1e-5, rtol=1e-5)
    decoded = model.decoder(inputs_embeds=y, encoder_hidden_states=wanted, encoder_attention_mask=real.long())
    found = decoder(y, decoder.cache(states, real))
    torch.testing.assert_close(found, decoded.last_hidden_state, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_beams_with_caches_equal_decoding_each_row_anew() -> None:
    _, decoder = copies(peer())
    states, real = torch.randn(2, 5, 12), torch.tensor([[True] * 5, [False, False, True, True, True]])
    x = torch.randn(2, 3, 3, 12)  # three beams a user
    cache = decoder.cache(states, real)
    cache.follow(torch.zeros(2, 3, dtype=torch.int64))
    steps = [decoder.step(x[:, :, i], cache) for i in range(2)]
    parents = torch.tensor([[1, 1, 0], [2, 0, 1]])
    cache.follow(parents)
    steps.append(decoder.step(x[:, :, 2], cache))
    past = x[torch.arange(2).unsqueeze(1), parents, :2]
    histories = torch.cat([past, x[:, :, 2:]], 2).flatten(0, 1)
    anew = decoder(histories, decoder.cache(states, real)).view(2, 3, 3, 12)
    torch.testing.assert_close(steps[2], anew[:, :, 2], atol=1e-5, rtol=1e-5)
    before = torch.stack(steps[:2], 2)[torch.arange(2).unsqueeze(1), parents]
    torch.testing.assert_close(before, anew[:, :, :2], atol=1e-5, rtol=1e-5)
    again = decoder(histories, decoder.cache(states.repeat_interleave(3, 0), real.repeat_interleave(3, 0)))
    torch.testing.assert_close(again.view(2, 3, 3, 12), anew, atol=1e-5, rtol=1e-5)


def test_attention_without_gradients_equals_that_with_them() -> None:
    encoder, decoder = copies(peer())
    x, y, real = torch.randn(3, 7, 12), torch.randn(6, 4, 12), torch.rand(3, 7) < 0.7
    learned = decoder(y, decoder.cache(encoder(x, real), real))
    with torch.no_grad():
        torch.testing.assert_close(decoder(y, decoder.cache(encoder(x, real), real)), learned, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_and_rows_of_padding_stay_finite() -> None:
    encoder, _ = copies(peer())
    x = torch.randn(1, 4, 12)
    padded = torch.cat([torch.randn(1, 6, 12), x], 1)
    real = torch.tensor([[False] * 6 + [True] * 4])
    torch.testing.assert_close(encoder(padded, real)[:, 6:], encoder(x, real[:, 6:]), atol=1e-5, rtol=1e-5)
    assert encoder(x, torch.zeros(1, 4, dtype=torch.bool)).isfinite().all()


def test_distance_buckets_equal_transformers() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301).unsqueeze(0)
    for bidirectional in (True, False):
        wanted = T5Attention._relative_position_bucket(distance, bidirectional=bidirectional)
        assert torch.equal(distance_buckets(distance, T5Config(), bidirectional=bidirectional), wanted)


@pytest.mark.parametrize("part", [T5Encoder, T5Decoder])
def test_weights_begin_as_wide_as_t5s(part: type[T5Encoder] | type[T5Decoder]) -> None:
    """Raffel et al., as transformers has it: by fan-in, the queries by a head's width too."""
    torch.manual_seed(0)
    inner = 4 * 32
    model = part(T5Config(dim=64, feed_forward=256, heads=4, head_dim=32, encoder_layers=2, decoder_layers=2))
    checked = set()
    for name, weight in model.named_parameters():
        for own, rows, std in (
            ("query_key_value", slice(None, inner), (64 * 32) ** -0.5),
            ("query_key_value", slice(inner, None), 64**-0.5),
            ("output", slice(None), inner**-0.5),
            ("expand", slice(None), 64**-0.5),
            ("contract", slice(None), 256**-0.5),
            ("distances", slice(None), 64**-0.5),
        ):
            if f"{own}." in name:
                assert float(weight[rows].detach().std()) == pytest.approx(std, rel=0.15), name
                checked.add((own, rows.start))
    assert len(checked) == 6
