"""Constrained decoding of semantic IDs beside transformers: python -m benchmarks.decoding.

The same T5 weights, the same users, the same item trie: our beam search against ``generate`` with ``prefix_allowed_tokens_fn``.
CPU time, which other programs on the machine disturb less, is reported beside wall time. Identical: the same items with the
same scores (1e-3 of a log-likelihood), up to items whose scores differ by less than that.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor
from transformers import T5Config as PeerConfig
from transformers import T5ForConditionalGeneration

from rayrec.models.catalogue import ItemFeatures
from rayrec.models.liger import Liger
from rayrec.models.t5 import T5Config
from rayrec.models.tiger import TigerConfig
from rayrec.retrieval.beam_search import Beams, beam_search
from rayrec.retrieval.semantic_ids import resolve_collisions
from rayrec.retrieval.trie import ItemTrie

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Decoding:
    """users: batch size. history: items of each user, 4 tokens each. repeats: interleaved, the medians count."""

    items: int = 12_000
    users: int = 64
    history: int = 20
    beams: int = 20
    layers: int = 4
    repeats: int = 5
    threads: int = 2


@torch.no_grad()
def main(config: Decoding) -> None:
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    codes = torch.randint(0, 256, (config.items, 3))
    ids = resolve_collisions(codes, 256)
    seen = torch.ones(config.items + 1, dtype=torch.bool)
    features = ItemFeatures(ids.item_tokens(), ids.num_tokens, torch.zeros(config.items + 1, 1), seen)
    t5 = T5Config(encoder_layers=config.layers, decoder_layers=config.layers)
    model = Liger(features, TigerConfig(t5, max_length=config.history).as_liger).eval()
    peer = peer_of(model)
    trie = ItemTrie.of(model.item_tokens)
    history = torch.randint(1, config.items + 1, (config.users, config.history))
    children = children_by_prefix(model.item_tokens)
    item_of = {tuple(row): item for item, row in enumerate(model.item_tokens.tolist()) if item}
    real = model.encode(history)[1]

    def ours() -> Beams:
        return beam_search(trie, model.decoding(history), config.beams)

    def theirs() -> Beams:
        found = peer.generate(
            inputs_embeds=inputs(model, history), attention_mask=real.long(), num_beams=config.beams,
            num_return_sequences=config.beams, max_new_tokens=4, length_penalty=0.0, do_sample=False, early_stopping=False,
            prefix_allowed_tokens_fn=lambda row, prefix: children[tuple(prefix.tolist()[1:])],
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        tokens = found.sequences[:, 1:5].view(config.users, config.beams, 4)
        items = torch.tensor([[item_of[tuple(t)] for t in user] for user in tokens.tolist()])
        return Beams(items, found.sequences_scores.view(config.users, config.beams))

    same = identical(ours(), theirs())
    times: dict[str, list[float]] = {"ours": [], "transformers": [], "encoder alone": []}
    cpu: dict[str, list[float]] = {name: [] for name in times}
    methods: dict[str, Callable[[], object]] = {
        "ours": ours, "transformers": theirs, "encoder alone": lambda: model.encode(history),
    }  # fmt: skip
    for _ in range(config.repeats):
        for name, method in methods.items():
            started, spent = time.perf_counter(), time.process_time()
            method()
            times[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - spent)
    print(f"{config.users} users, {config.history * 4} tokens, {config.beams} beams, {config.items:,} items, "
          f"T5 {config.layers}+{config.layers}, {config.threads} threads")  # fmt: skip
    for name, values in times.items():
        print(f"{name:<16}{statistics.median(values):>8.3f} s, {statistics.median(cpu[name]):.3f} s of CPU time")
    ratio, cpu_ratio = (
        statistics.median(theirs / ours for theirs, ours in zip(t["transformers"], t["ours"], strict=True))
        for t in (times, cpu)
    )
    seconds = {name: round(statistics.median(values), 4) for name, values in times.items()}
    print(
        json.dumps(
            {"speedup": round(ratio, 2), "cpu_speedup": round(cpu_ratio, 2), "identical": same, "seconds": seconds}
        )
    )


def inputs(model: Liger, history: Tensor) -> Tensor:
    """The encoder's input vectors (B, L * M, D), so that both sides read the same."""
    caught: list[Tensor] = []
    hook = model.encoder.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    model.encode(history)
    hook.remove()
    return caught[0]


def identical(ours: Beams, theirs: Beams) -> bool:
    """Equal scores place by place, and equal items, except where two neighbours' scores tie within the tolerance."""
    if not torch.allclose(ours.scores, theirs.scores, atol=TOLERANCE, rtol=0):
        return False
    apart = ours.scores[:, :-1] - ours.scores[:, 1:] > TOLERANCE
    edge = torch.ones_like(apart[:, :1])
    clear = torch.cat([edge, apart], 1) & torch.cat([apart, edge], 1)
    clear[:, -1] = False  # the item behind the last one is unknown
    return bool((ours.items[clear] == theirs.items[clear]).all())


def children_by_prefix(item_tokens: Tensor) -> dict[tuple[int, ...], list[int]]:
    """What ``prefix_allowed_tokens_fn`` looks up."""
    found: dict[tuple[int, ...], set[int]] = {}
    for row in item_tokens[1:].tolist():
        for depth in range(len(row)):
            found.setdefault(tuple(row[:depth]), set()).add(row[depth])
    return {prefix: sorted(tokens) for prefix, tokens in found.items()}


def peer_of(model: Liger) -> T5ForConditionalGeneration:
    """transformers' T5 with the same weights."""
    t5 = model.config.transformer
    peer = T5ForConditionalGeneration(
        PeerConfig(
            vocab_size=model.num_tokens, d_model=t5.dim, d_ff=t5.feed_forward, num_heads=t5.heads, d_kv=t5.head_dim,
            num_layers=t5.encoder_layers, num_decoder_layers=t5.decoder_layers, dropout_rate=t5.dropout,
            feed_forward_proj="relu", tie_word_embeddings=False, pad_token_id=0, eos_token_id=None, decoder_start_token_id=0,
        )
    ).eval()  # fmt: skip
    peer.generation_config.eos_token_id = None
    peer.decoder.embed_tokens.weight.copy_(model.token_embedding.weight)
    peer.lm_head.weight = torch.nn.Parameter(model.head.weight.clone())  # transformers 5 ties it to the embedding
    for ours, theirs in ((model.encoder, peer.encoder), (model.decoder, peer.decoder)):
        theirs.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(ours.distances.weight)
        theirs.final_layer_norm.weight.copy_(ours.norm.weight)
        for layer, block in zip(ours.layers, theirs.block, strict=True):
            _copy_attention(layer.attention, block.layer[0].SelfAttention, block.layer[0].layer_norm)
            if len(block.layer) == 3:
                _copy_attention(layer.cross, block.layer[1].EncDecAttention, block.layer[1].layer_norm)
            last = block.layer[-1]
            last.layer_norm.weight.copy_(layer.feed_forward.norm.weight)
            last.DenseReluDense.wi.weight.copy_(layer.feed_forward.expand.weight)
            last.DenseReluDense.wo.weight.copy_(layer.feed_forward.contract.weight)
    return peer


def _copy_attention(ours: torch.nn.Module, theirs: torch.nn.Module, norm: torch.nn.Module) -> None:
    for projection, weight in zip((theirs.q, theirs.k, theirs.v), ours.query_key_value.weight.chunk(3), strict=True):
        projection.weight.copy_(weight)
    theirs.o.weight.copy_(ours.output.weight)
    norm.weight.copy_(ours.norm.weight)


if __name__ == "__main__":
    main(tyro.cli(Decoding, description=__doc__))
