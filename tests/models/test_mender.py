"""Mender's models: what they read, what their loss is, and that the prompt keeps the preference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from rayrec.models.catalogue import ItemFeatures
from rayrec.models.extended_lm import ExtendedLM, ExtendedLMConfig
from rayrec.models.layers.lora import LoraLinear, adapt
from rayrec.models.mender import MenderEmb, MenderEmbConfig, MenderTok, MenderTokConfig
from rayrec.models.prompt import NONE, Prompt, PromptTokens
from rayrec.models.t5 import T5Config
from rayrec.retrieval.beam_search import beam_search
from rayrec.retrieval.retriever import Steered
from rayrec.retrieval.searching import Searcher
from rayrec.retrieval.trie import ItemTrie

ITEMS, DIM = 12, 6
T5 = T5Config(dim=16, feed_forward=32, heads=2, head_dim=8, encoder_layers=1, decoder_layers=2, dropout=0.0)
EMB = MenderEmbConfig(T5, max_length=5, input_dropout=0.0, preference_dropout=0.0)
TOK = MenderTokConfig(T5, max_length=5, input_dropout=0.0, preference_dropout=0.0, longest=32)

EXTENDED = ExtendedLMConfig(T5, max_length=5, input_dropout=0.0, preference_dropout=0.0, longest=32)


def features() -> ItemFeatures:
    torch.manual_seed(1)
    codes = torch.tensor([(i // 4, i % 4, i % 2) for i in range(ITEMS)])
    tokens = torch.cat([torch.zeros(1, 3, dtype=torch.int64), codes + torch.tensor([1, 4, 8])])
    text = torch.cat([torch.zeros(1, DIM), torch.randn(ITEMS, DIM)])
    return ItemFeatures(tokens, 11, text, torch.ones(ITEMS + 1, dtype=torch.bool))


def prompt_tokens(longest: int = 32) -> PromptTokens:
    """Title of item i: i, i, ... (1 + i % 3 tokens of number 20 + i)."""
    titles = torch.full((ITEMS + 1, 3), NONE)
    for i in range(1, ITEMS + 1):
        titles[i, : 1 + i % 3] = 20 + i
    return PromptTokens(torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4]), titles, 0, longest)


def bert() -> BertModel:
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    return BertModel(config, add_pooling_layer=False)


def emb(config: MenderEmbConfig = EMB) -> MenderEmb:
    torch.manual_seed(3)
    return MenderEmb(features(), DIM, config)


def tok(config: MenderTokConfig = TOK) -> MenderTok:
    torch.manual_seed(3)
    return MenderTok(features(), bert(), Prompt(prompt_tokens(config.longest)), config)


def extended(config: ExtendedLMConfig = EXTENDED) -> ExtendedLM:
    torch.manual_seed(3)
    return ExtendedLM(features(), bert(), prompt_tokens(config.longest), config)


def asked(model: nn.Module, history: list[list[int]]) -> Steered:
    torch.manual_seed(4)
    rows = len(history)
    wish = torch.randn(rows, DIM) if isinstance(model, MenderEmb) else torch.randint(5, 20, (rows, 4))
    return Steered(torch.tensor(history), wish)


def by_hand(before: list[int], wish: list[int], items: list[int], longest: int) -> list[int]:
    titles = [[20 + i] * (1 + i % 3) for i in items]
    while titles and len(before) + len(wish) + 2 + sum(map(len, titles)) > longest:
        titles.pop(0)
    return [*before, *wish, 3, *(t for title in titles for t in title), 4]


@pytest.mark.parametrize("longest", [32, 14, 9])
def test_a_prompt_that_is_too_long_loses_its_oldest_titles_and_keeps_the_preference(longest: int) -> None:
    rows = [([7, 8, 9], [1, 2, 3, 4]), ([7], [5]), ([], [6, 7]), ([9, 9, 9, 9], []), ([], [])]
    history = torch.tensor([[0] * (5 - len(items)) + items for _, items in rows])
    wish = torch.tensor([w + [NONE] * (4 - len(w)) for w, _ in rows])
    ids, real = Prompt(prompt_tokens(longest))(history, wish)
    for i, (words, items) in enumerate(rows):
        expected = by_hand([1, 2], words, items, longest)
        assert ids[i, real[i]].tolist() == expected
        assert real[i, : len(expected)].all()  # no gaps
        assert (ids[i, ~real[i]] == 0).all()


def test_a_preference_longer_than_the_prompt_is_cut_at_its_end() -> None:
    ids, real = Prompt(prompt_tokens(8))(torch.tensor([[1, 2]]), torch.arange(30, 40).unsqueeze(0))
    assert ids[0, real[0]].tolist() == [1, 2, 30, 31, 32, 33, 3, 4]


@pytest.mark.parametrize("build", [emb, tok, extended])
def test_padding_and_the_other_rows_change_nothing(build: Any) -> None:
    model = build().eval()
    items = torch.arange(1, ITEMS + 1)
    with torch.no_grad():
        both = asked(model, [[0, 0, 3, 4], [1, 2, 3, 4]])
        together = model.log_likelihood(both, items.expand(2, -1))
        alone = model.log_likelihood(Steered(torch.tensor([[3, 4]]), both.preference[:1]), items.unsqueeze(0))
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("build", [emb, tok, extended])
def test_the_beam_search_finds_what_scoring_every_item_finds(build: Any) -> None:
    model = build().eval()
    question = asked(model, [[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        found = beam_search(ItemTrie.of(model.item_tokens), model.decoding(question), ITEMS)
        scores = model.log_likelihood(question, torch.arange(1, ITEMS + 1).expand(2, -1))
    best, order = scores.sort(dim=1, descending=True)
    assert torch.equal(found.items, order + 1)
    torch.testing.assert_close(found.scores, best)
    assert Searcher(model).methods == ("generative",)


@pytest.mark.parametrize("build", [emb, tok, extended])
def test_the_loss_is_the_batch_mean_of_signed_cross_entropies_and_so_is_its_gradient(build: Any) -> None:
    model = build()
    question, target = asked(model, [[1, 2], [3, 4], [5, 6]]), torch.tensor([7, 8, 9])
    sign = torch.tensor([1.0, -1.0, 1.0])
    parts = model.loss(replace(question, sign=sign), target)
    levels = model.item_tokens.shape[1]
    each = -model.log_likelihood(question, target.unsqueeze(1)).squeeze(1) / levels
    weights = {"wanted": 2 / 3, "unwanted": 1 / 3}  # batch fractions
    expected = weights["wanted"] * each[[0, 2]].mean() - weights["unwanted"] * each[1]
    torch.testing.assert_close(parts["loss"], expected)
    torch.testing.assert_close(parts["wanted"] - parts["unwanted"], expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(parts["loss"], parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(model.loss(question, target)["loss"], each.mean())


def test_rows_that_are_pushed_far_enough_push_no_more() -> None:
    model = emb(replace(EMB, ascent_limit=1e-3))
    question = replace(asked(model, [[1, 2], [3, 4]]), sign=torch.tensor([-1.0, -1.0]))
    loss = model.loss(question, torch.tensor([5, 6]))["loss"]
    assert loss.item() == pytest.approx(-1e-3)
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("build", [emb, tok, extended])
def test_preferences_are_dropped_in_training_alone_and_never_a_wish_without_history(build: Any) -> None:
    model = build()
    model.config = replace(model.config, preference_dropout=1.0)
    question, target = asked(model, [[1, 2], [3, 4]]), torch.tensor([5, 6])
    without = replace(question, preference=torch.full_like(question.preference, model.no_preference))
    with torch.no_grad():
        torch.testing.assert_close(model.train().loss(question, target), model.loss(without, target))
        wish = replace(question, history=torch.zeros_like(question.history), sign=torch.ones(2))
        kept = model.loss(wish, target)["loss"]
        model.config = replace(model.config, preference_dropout=0.0)
        torch.testing.assert_close(kept, model.loss(wish, target)["loss"])
        assert not torch.equal(model.eval().loss(question, target)["loss"], model.loss(without, target)["loss"])


def test_an_empty_request_has_finite_scores() -> None:
    for model in (emb().eval(), tok().eval()):
        question = asked(model, [[0, 0]])
        nothing = replace(question, preference=torch.full_like(question.preference, model.no_preference))
        assert model.log_likelihood(nothing, torch.tensor([[1, 2, 3]])).isfinite().all()


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("text_encoder")}


def test_what_is_tuned_of_the_encoder_is_nothing_low_rank_or_everything() -> None:
    assert trained_names(tok(replace(TOK, tune="frozen"))) == set()
    low = trained_names(tok(replace(TOK, tune="lora", lora_rank=3)))
    assert low
    assert all(name.rsplit(".", 1)[1] in ("up", "down") for name in low)
    assert len(low) == 2 * 2 * 4  # two layers; q, k, v, o
    full = trained_names(tok(replace(TOK, tune="full")))
    assert len(full) == len(list(bert().parameters()))
    frozen = tok(replace(TOK, tune="frozen")).train()
    assert not frozen.text_encoder.training
    question = asked(frozen, [[1, 2]])
    frozen.loss(question, torch.tensor([3]))["loss"].backward()
    assert all(p.grad is None for p in frozen.text_encoder.parameters())


def test_a_frozen_encoder_that_remembers_reads_each_prompt_once_and_says_the_same() -> None:
    plain, keeping = tok(replace(TOK, tune="frozen")).eval(), tok(replace(TOK, tune="frozen", remembered=3)).eval()
    seen: list[int] = []
    keeping.text_encoder.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    items = torch.arange(1, ITEMS + 1).expand(4, -1)
    question = asked(plain, [[0, 0, 1], [3, 4, 5], [0, 0, 1], [2, 3, 9]])
    question = replace(question, preference=question.preference[[0, 1, 0, 3]])
    expected = plain.log_likelihood(question, items)
    for _ in range(2):
        assert torch.allclose(keeping.log_likelihood(question, items), expected, atol=2e-2)
    assert seen == [3]  # the first and the third are the same prompt
    more = replace(question, history=question.history.flip(0), preference=question.preference.flip(0) + 1)
    assert torch.allclose(keeping.log_likelihood(more, items), plain.log_likelihood(more, items), atol=2e-2)
    keeping.log_likelihood(more, items)
    assert seen == [3, 3, 3]  # no more than three are kept, and the first stay
    assert keeping.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="tune frozen"):
        replace(TOK, tune="lora", remembered=3)


def test_an_extended_language_model_reads_words_and_the_tokens_of_items_in_one_prompt() -> None:
    model = extended().eval()
    assert model.words == 50
    read: list[torch.Tensor] = []
    model.text_encoder.register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds"]), with_kwargs=True
    )
    question = asked(model, [[0, 2], [0, 0]])
    model.encode(question)
    words = model.text_encoder.get_input_embeddings()
    expected = torch.cat(
        [
            words(torch.cat([torch.tensor([1, 2]), question.preference[0], torch.tensor([3])])),
            model.item_words(model.item_tokens[2]),
            words(torch.tensor([4])),
        ]
    )
    torch.testing.assert_close(read[0][0], expected)
    loss = model.train().loss(question, torch.tensor([3, 4]))["loss"]
    loss.backward()
    learned = model.item_words.weight.grad
    assert learned is not None
    assert sorted(learned.abs().sum(1).nonzero().flatten().tolist()) == sorted(model.item_tokens[2].tolist())
    assert words.weight.grad is not None


def test_an_extended_language_model_learns_its_new_words() -> None:
    with pytest.raises(ValueError, match="lora or full"):
        replace(EXTENDED, tune="frozen")
    with pytest.raises(ValueError, match="needs tune full"):
        replace(EXTENDED, tune="lora", pretrained=False)
    assert "item_words.weight" in {
        name for name, p in extended(replace(EXTENDED, tune="lora")).named_parameters() if p.requires_grad
    }


def test_lora_starts_as_the_layer_and_adds_scaled_products() -> None:
    torch.manual_seed(0)
    base = nn.Linear(5, 4)
    x, weight, bias = torch.randn(3, 5), base.weight.detach().clone(), base.bias.detach().clone()
    layer = LoraLinear(base, rank=2, alpha=3.0)
    torch.testing.assert_close(layer(x), x @ weight.T + bias)
    with torch.no_grad():
        layer.up.normal_()
    merged = weight + 3.0 / 2 * layer.up @ layer.down
    torch.testing.assert_close(layer(x), x @ merged.T + bias)
    grad_up = torch.autograd.grad(layer(x).sum(), layer.up)[0]
    torch.testing.assert_close(grad_up, 1.5 * torch.ones(4, 3) @ (x @ layer.down.T))
    assert not layer.base.weight.requires_grad
    with pytest.raises(ValueError, match="nothing to adapt"):
        adapt(nn.Sequential(nn.Linear(2, 2)), ("query",), 2, 1.0)


def test_new_items_are_found_by_their_text_without_training() -> None:
    model = emb().eval()
    searcher: Searcher[Steered] = Searcher(model)
    assert model.add_items(torch.tensor([[1, 4, 9]]), torch.randn(1, DIM)) == ITEMS + 1
    found = searcher.search(asked(model, [[1, 2, ITEMS + 1]]), ITEMS + 1, "generative", beams=ITEMS + 1)
    assert sorted(found.items[0].tolist()) == list(range(1, ITEMS + 2))


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"max_length": 0}, {"input_dropout": 1.0}, {"preference_dropout": 1.5}, {"ascent_limit": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(EMB, **wrong)
    with pytest.raises(ValueError, match="longest must be at least 32"):
        replace(TOK, longest=8)


def test_new_words_begin_as_spread_as_the_encoders_own() -> None:
    torch.manual_seed(3)
    encoder = bert()
    table = encoder.get_input_embeddings()
    table.weight.data.mul_(7.0)
    model = ExtendedLM(features(), encoder, prompt_tokens(EXTENDED.longest), EXTENDED)
    assert float(model.item_words.weight.detach().std()) == pytest.approx(float(table.weight.detach().std()), rel=0.2)


def test_items_are_counted_without_the_padding() -> None:
    assert emb().num_items == tok().num_items == ITEMS
