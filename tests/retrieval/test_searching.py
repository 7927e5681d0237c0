"""The searcher against scoring every item, whatever the model and the method; items that come later; what is barred."""

import pytest
import torch
from torch import Tensor

from rayrec.metrics.ranking import target_ranks
from rayrec.models.catalogue import ItemFeatures
from rayrec.models.liger import Liger, LigerConfig
from rayrec.models.sasrec import SASRec, SASRecConfig
from rayrec.models.t5 import T5Config
from rayrec.retrieval import searching
from rayrec.retrieval.index import IndexConfig
from rayrec.retrieval.retriever import Retriever
from rayrec.retrieval.searching import HEADS, Method, Searcher
from rayrec.retrieval.semantic_ids import resolve_collisions
from rayrec.typed_json import ConfigError

T5 = T5Config(dim=16, feed_forward=16, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1, dropout=0.0)
ITEMS, COLD = 40, [3, 17, 40]
HISTORY = torch.tensor([[0, 0, 5, 9, 4], [1, 2, 6, 7, 8], [0, 0, 0, 0, 3]])


def sasrec(repeat: float | None = None) -> SASRec:
    torch.manual_seed(0)
    model = SASRec(ITEMS, SASRecConfig(dim=8, layers=1, max_length=5, repeat_bias=repeat is not None)).eval()
    if repeat is not None:
        model.repeat.data.fill_(repeat)
    return model


def liger(repeat: float | None = None, *, dense: float = 1.0, generative: float = 1.0) -> Liger:
    torch.manual_seed(0)
    ids = resolve_collisions(torch.randint(0, 4, (ITEMS, 2)), 4, smallest_last_level=16)
    seen = torch.ones(ITEMS + 1, dtype=torch.bool)
    seen[[0, *COLD]] = False
    items = ItemFeatures(ids.item_tokens(), ids.num_tokens, torch.randn(ITEMS + 1, 6), seen)
    config = LigerConfig(
        T5,
        projection=(8,),
        max_length=5,
        repeat_bias=repeat is not None,
        dense_weight=dense,
        generative_weight=generative,
    )
    model = Liger(items, config).eval()
    if repeat is not None:
        model.repeat.data.fill_(repeat)
    return model


@torch.no_grad()
def test_the_hybrid_method_encodes_a_history_once() -> None:
    model = liger(0.3)
    query, decoding = model.query_and_decoding(HISTORY)
    assert torch.equal(query, model.query(HISTORY))
    assert torch.equal(decoding.first(), model.decoding(HISTORY).first())
    encoded: list[int] = []
    model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    found = Searcher(model, beams=8).search(HISTORY, 5, "hybrid")
    assert encoded == [1]
    assert (found.items > 0).all()


@torch.no_grad()
def all_scores(model: SASRec | Liger, method: Method) -> Tensor:
    """(3, N + 1) by the models' own formulas."""
    if method == "generative":
        assert isinstance(model, Liger)
        scores = model.log_likelihood(HISTORY, torch.arange(1, ITEMS + 1).expand(3, -1))
        return torch.cat([scores.new_full((3, 1), -torch.inf), scores], 1)
    return model.scores(HISTORY) if isinstance(model, SASRec) else model.dense_scores(HISTORY)


CASES = [
    (sasrec(), "dense"), (sasrec(-2.0), "dense"), (liger(), "dense"), (liger(0.7), "dense"), (liger(), "generative"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "method"), CASES)
def test_a_search_finds_what_scoring_every_item_finds(model: SASRec | Liger, method: Method) -> None:
    scores = all_scores(model, method)
    found = Searcher(model, beams=ITEMS).search(HISTORY, 7, method)
    best = scores.topk(7)
    assert torch.equal(found.items, best.indices)
    torch.testing.assert_close(found.scores, best.values, rtol=1e-5, atol=1e-5)


def test_hybrid_with_all_items_as_candidates_is_dense() -> None:
    searcher = Searcher(liger(0.7), beams=ITEMS)
    hybrid, dense = searcher.search(HISTORY, 12, "hybrid"), searcher.search(HISTORY, 12, "dense")
    assert torch.equal(hybrid.items, dense.items)
    torch.testing.assert_close(hybrid.scores, dense.scores)


@pytest.mark.parametrize(("model", "method"), [*CASES, (liger(0.7), "hybrid")])
def test_barred_items_are_left_out_and_the_others_move_up(model: SASRec | Liger, method: Method) -> None:
    searcher = Searcher(model, beams=ITEMS)
    plain = searcher.search(HISTORY, ITEMS, method)
    barred = torch.stack([plain.items[0, [0, 2]], torch.tensor([0, 0]), torch.tensor([0, int(plain.items[2, 1])])])
    found = searcher.search(HISTORY, 6, method, barred=barred)
    for row in range(3):
        kept = [i for i in plain.items[row].tolist() if i not in barred[row].tolist()]
        assert found.items[row].tolist() == kept[:6]
    beyond = searcher.search(HISTORY, ITEMS + 2, method, barred=barred)
    assert beyond.items.shape == (3, ITEMS + 2)
    assert (beyond.items == 0).sum(1).tolist() == [4, 2, 3]
    assert torch.equal(beyond.scores == -torch.inf, beyond.items == 0)


@pytest.mark.parametrize(("model", "method"), [*CASES, (liger(0.7), "hybrid")])
def test_items_that_are_out_are_nobodys_and_the_others_move_up(model: SASRec | Liger, method: Method) -> None:
    searcher = Searcher(model, beams=ITEMS)
    plain = searcher.search(HISTORY, ITEMS, method).items
    out = torch.zeros(ITEMS + 1, dtype=torch.bool)
    out[[int(plain[0, 0]), int(plain[0, 2]), int(plain[1, 1]), 4, 8, 3]] = True  # of histories too
    barred = torch.stack([plain[0, [1, 3]], torch.tensor([0, 0]), plain[2, [5, 0]]])
    for bars in (None, barred):
        found = searcher.search(HISTORY, 6, method, barred=bars, out=out)
        for row in range(3):
            gone = out.nonzero().squeeze(1).tolist() + ([] if bars is None else bars[row].tolist())
            assert found.items[row].tolist() == [i for i in plain[row].tolist() if i not in gone][:6]
    everything = torch.ones(ITEMS + 1, dtype=torch.bool)
    assert (searcher.search(HISTORY, 6, method, out=everything).items == 0).all()


@pytest.mark.parametrize("index", ["exact", "hnsw"])
@pytest.mark.parametrize("method", list(HEADS))
def test_items_taken_in_later_are_found_as_if_they_had_been_there(method: Method, index: str) -> None:
    model = liger()
    searcher = Searcher(model, IndexConfig(index), beams=60)  # type: ignore[arg-type]
    searcher.prepare()
    torch.manual_seed(1)
    tokens = model.item_tokens[[5, 9]].clone()
    tokens[:, 2] = model.num_tokens - 1  # a last code that no item has
    assert not (model.item_tokens[:, 2] == model.num_tokens - 1).any()
    first = model.add_items(tokens, 3 * torch.randn(2, 6))
    assert first == ITEMS + 1
    searcher.take_in(torch.arange(first, first + 2))
    grown, fresh = (s.search(HISTORY, ITEMS + 2, method) for s in (searcher, Searcher(model, beams=60)))
    assert torch.equal(grown.items, fresh.items)
    assert all({41, 42} <= set(row) for row in grown.items.tolist())


def test_a_trained_model_is_searched_by_its_new_weights_once_that_is_told() -> None:
    model = sasrec()
    searcher = Searcher(model)
    searcher.search(HISTORY, 5, "dense")
    torch.nn.init.normal_(model.items.weight)
    searcher.weights_changed()
    assert torch.equal(searcher.search(HISTORY, 5, "dense").items, all_scores(model, "dense").topk(5).indices)


def test_a_search_under_bf16_ranks_by_full_products() -> None:
    """In bf16 some of 40 scores tie; the searcher's products stay in float32."""
    model = sasrec()
    query, vectors = torch.randn(3, 8), model.item_vectors().detach()
    model.query = lambda history: query  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        found = Searcher(model).search(HISTORY, ITEMS, "dense")
    scores = query @ vectors[1:].T
    assert torch.equal(found.items, scores.argsort(1, descending=True) + 1)
    targets = torch.tensor([1, 2, 3])
    places = (found.items == targets.unsqueeze(1)).int().argmax(1) + 1
    assert torch.equal(places, target_ranks(scores, targets - 1))


@pytest.mark.parametrize(
    ("model", "methods", "missing"),
    [
        (sasrec(), ("dense",), "a generative head"),
        (liger(generative=0.0), ("dense",), "a generative head"),
        (liger(dense=0.0), ("generative",), "a dense head"),
        (liger(), ("dense", "generative", "hybrid"), None),
    ],
)
def test_methods_follow_from_the_heads_and_others_are_refused(
    model: Retriever[Tensor], methods: tuple[Method, ...], missing: str | None
) -> None:
    searcher = Searcher(model)
    assert searcher.methods == methods
    for method in set(HEADS) - set(methods):
        with pytest.raises(ConfigError, match=missing):
            searcher.search(HISTORY, 5, method)


def test_what_must_be_stored_is_vectors_or_codes_or_both() -> None:
    searcher = Searcher(liger())
    assert [searcher.stored_bytes(m) for m in HEADS] == [4 * 16 * ITEMS, 2 * 3 * ITEMS, 4 * 16 * ITEMS + 2 * 3 * ITEMS]


def test_a_prepared_searcher_makes_nothing_at_its_first_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = Searcher(liger(), beams=8)
    searcher.prepare()
    for made in (searching.ItemTrie, searching.DenseIndex):
        monkeypatch.delattr(made, "of" if made is searching.ItemTrie else "build")
    for method in HEADS:
        assert searcher.search(HISTORY, 5, method).items.shape == (3, 5)


def test_a_part_of_the_loss_that_no_worker_has_a_term_of_is_nothing_and_not_nan() -> None:
    model = liger()
    cold = torch.tensor([3, 17, 40])  # takes no part in the dense loss
    joint = {name: size.float() for name, size in model.loss_sizes(HISTORY, cold).items()}
    assert (float(joint["dense"]), float(joint["generative"])) == (0.0, 3.0)
    parts, alone = model.loss(HISTORY, cold, joint), model.loss(HISTORY, cold)
    assert parts["dense"].tolist() == 0.0
    torch.testing.assert_close(parts["loss"], parts["generative"])
    torch.testing.assert_close(parts["generative"], alone["generative"])
    parts["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
