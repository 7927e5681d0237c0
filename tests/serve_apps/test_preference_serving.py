"""What a client who says what they want in plain words sees, without Ray."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from rayrec.bundle import BundleError, write_bundle
from rayrec.families.retriever.bundle import RetrieverModules, SavedIds, SavedRetriever, load_retriever, retriever_parts
from rayrec.families.retriever.preferences import PreferenceReader, SavedPreferences, prompts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.models.mender import MenderEmbConfig, MenderTokConfig
from rayrec.models.t5 import T5Config
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.retriever import Steered
from rayrec.retrieval.searching import Searcher
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from rayrec.text.encoder import EncoderError, TextEncoder, TextEncoderConfig
from rayrec.text.prompt_tokens import read_encoder_texts
from tests.serve_apps.retriever_bundle import TEXTS, small_encoder, small_retriever
from tests.serve_apps.test_retrieval_api import client_for, served

T5 = T5Config(dim=16, feed_forward=16, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1)
HISTORY = ["red shoe", "blue lamp"]


def small_mender(folder: Path, encoder: str, model: str) -> Path:
    """Random weights over the 56 items, large enough that a preference changes the answer."""
    config = RetrievalConfig(
        model=model,  # type: ignore[arg-type]
        mender_emb=MenderEmbConfig(T5, max_length=6),
        mender_tok=MenderTokConfig(T5, max_length=6, encoder=encoder, longest=32),
    )
    items = fit_tokenizer(
        TextEncoder(TextEncoderConfig(encoder))(TEXTS), TokenizerConfig(kmeans=ResidualKMeansConfig(2, 8))
    )
    seen = torch.ones(57, dtype=torch.bool)
    seen[0] = False
    text = torch.nn.functional.pad(items.embeddings, (0, 0, 1, 0))
    features = ItemFeatures(items.ids.item_tokens(), items.ids.num_tokens, text, seen)
    texts = read_encoder_texts(encoder) if model == "mender_tok" else None
    read = None if texts is None else prompts(texts, TEXTS, config)
    torch.manual_seed(0)
    catalogue = Catalogue(56, seen, seen.long(), features, 8, read)
    built = config.architecture.build(catalogue)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "map" in name:
                parameter.mul_(20)
    width = 0 if read is None else read.tokens.titles.shape[1]
    return write_bundle(
        folder,
        retriever_parts(
            RetrieverModules(built, items.tokenizer),
            SavedRetriever(
                config,
                56,
                SavedIds(items.ids.level_sizes, 8, encoder, items.tokenizer.config),
                None,
                SavedPreferences(encoder, 8, texts, width),
            ),
            tuple(TEXTS),
        ),
        metrics={},
        run_config={},
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module", params=["mender_emb", "mender_tok"])
def bundle(request: pytest.FixtureRequest, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mender(tmp_path_factory.mktemp("bundle") / request.param, encoder, request.param)


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_for(bundle, tmp_path_factory.mktemp("items"))


def ask(client: TestClient, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/retrieve", json={"history": HISTORY, "k": 5, **changes})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_preference_changes_the_answer_as_the_model_has_it_and_the_reply_says_so(
    client: TestClient, bundle: Path
) -> None:
    plain, wished = ask(client), ask(client, preference="green tea")
    assert (plain["preference"], wished["preference"]) == (False, True)
    assert plain["method"] == wished["method"] == "generative"
    assert wished["scores"] != plain["scores"]
    loaded = load_retriever(bundle)
    assert loaded.saved.preferences is not None
    reader = PreferenceReader(loaded.saved.preferences, loaded.saved.retrieval)
    history = torch.tensor([[TEXTS.index(item) + 1 for item in HISTORY]])
    for wish, answer in (("", plain), ("green tea", wished)):
        found = Searcher(loaded.model).search(Steered(history, reader.read([wish])), 5, "generative", beams=20)
        assert answer["items"] == [TEXTS[i - 1] for i in found.items[0].tolist()]
        assert answer["scores"] == pytest.approx(found.scores[0].tolist(), abs=1e-4)


@pytest.mark.parametrize("nothing", ["", "  \n\t ", [], ["", " "], None])
def test_an_empty_preference_is_the_same_as_none(client: TestClient, nothing: Any) -> None:
    assert ask(client, preference=nothing) == ask(client)


def test_several_preferences_are_joined_and_blanks_do_not_count(client: TestClient) -> None:
    together = ask(client, preference=["green tea.", "", "red  book"])
    assert together == ask(client, preference=" green tea. red book ")
    assert together != ask(client, preference="green tea")


@pytest.mark.parametrize("wish", ["зелёный чай", "緑茶 🍵", "tea\u0000pan", "‮tea", "\ud83d"])
def test_any_unicode_is_read(client: TestClient, wish: str) -> None:
    body = (
        '{"history": ["red shoe"], "preference": "' + "".join(f"\\u{ord(c):04x}" for c in wish if ord(c) < 65536) + '"}'
    )
    answer = client.post("/v1/retrieve", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 200:
        assert all(math.isfinite(score) for score in answer.json()["scores"])


def test_a_wish_needs_no_history_and_nothing_at_all_is_refused(client: TestClient) -> None:
    alone = ask(client, history=[], preference="green tea")
    assert alone["items"]
    unknown = ask(client, history=["nobody's item"], preference="green tea")
    assert unknown["items"] == alone["items"]
    assert unknown["ignored"] == ["nobody's item"]
    for history in ([], ["nobody's item"]):
        refused = client.post("/v1/retrieve", json={"history": history, "preference": " "})
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", "history"]


@pytest.mark.parametrize("wish", ["x" * 2_001, ["a b"] * 21, ["x" * 2_001], 3, [3], {"a": "b"}])
def test_a_preference_beyond_the_limits_is_refused_by_name(client: TestClient, wish: Any) -> None:
    refused = client.post("/v1/retrieve", json={"history": HISTORY, "preference": wish})
    assert refused.status_code == 422
    assert "preference" in refused.json()["detail"][0]["loc"]


def test_what_others_ask_changes_no_answer(bundle: Path) -> None:
    from serve_apps.retriever.served import Retrieved, RetrieveRequest

    retriever = served(bundle)
    requests = [
        RetrieveRequest(history=HISTORY, k=5, preference=wish)
        for wish in (None, "green tea", "red book and blue pan and green lamp", "")
    ]
    together, alone = retriever.retrieve(requests), [retriever.retrieve([request])[0] for request in requests]
    for a, b in zip(together, alone, strict=True):
        assert isinstance(a, Retrieved)
        assert isinstance(b, Retrieved)
        assert a.items == b.items
        assert a.scores == pytest.approx(b.scores, abs=1e-4)


def test_a_model_that_is_blind_to_preferences_says_so_unless_it_may_ignore_them(encoder: str, tmp_path: Path) -> None:
    client = client_for(small_retriever(tmp_path / "liger", encoder), tmp_path / "items")
    refused = client.post("/v1/retrieve", json={"history": HISTORY, "preference": "green tea"})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "preference"]
    assert "cannot read preferences" in refused.json()["detail"][0]["msg"]
    plain = ask(client)
    assert plain["preference"] is False
    assert ask(client, preference="green tea", ignore_preference=True) == plain
    assert ask(client, preference="  ") == plain


def test_a_new_item_is_found_by_mender_emb(encoder: str, tmp_path: Path) -> None:
    client = client_for(small_mender(tmp_path / "emb", encoder, "mender_emb"), tmp_path / "items")
    added = client.post("/v1/items", json={"item": "new", "text": "green tea"})
    assert added.status_code == 201
    assert "new" in ask(client, k=57, preference="green tea")["items"]


def test_read_preferences_are_kept_and_only_so_many(encoder: str) -> None:
    config = RetrievalConfig(model="mender_emb")
    reader, calls = PreferenceReader(SavedPreferences(encoder, 8), config, kept=2), []
    inner = reader._encoder
    assert inner is not None
    reader._encoder = lambda texts: calls.append(list(texts)) or inner(texts)  # type: ignore[assignment, func-returns-value, return-value]
    first = reader.read(["red shoe", "", "red shoe", "blue lamp"])
    assert calls == [["red shoe", "blue lamp"]]
    assert not first[1].any()
    torch.testing.assert_close(reader.read(["red shoe"]), first[:1])
    reader.read(["tea pan"])  # drops "blue lamp", the one that was not asked for longest
    reader.read(["red shoe"])
    assert calls == [["red shoe", "blue lamp"], ["tea pan"]]
    reader.read(["blue lamp"])
    assert calls[-1] == ["blue lamp"]
    with pytest.raises(EncoderError, match="embeds in 8 dimensions, the model reads 9"):
        PreferenceReader(SavedPreferences(encoder, 9), config)


def test_a_bundle_without_what_reads_its_preferences_is_refused(encoder: str, tmp_path: Path) -> None:
    path = small_mender(tmp_path / "emb", encoder, "mender_emb")
    loaded = load_retriever(path)
    write_bundle(
        tmp_path / "bare",
        retriever_parts(
            RetrieverModules(loaded.model, loaded.tokenizer), replace(loaded.saved, preferences=None), loaded.names
        ),
        metrics={},
        run_config={},
    )
    with pytest.raises(BundleError, match="without what reads its preferences"):
        load_retriever(tmp_path / "bare")
