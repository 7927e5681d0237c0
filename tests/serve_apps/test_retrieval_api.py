"""What a client of the retrieval service sees, without Ray: answers of each method, new items, refusals."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rayrec.bundle import BundleError, write_bundle
from rayrec.families.retriever.bundle import RetrieverModules, SavedRetriever, retriever_parts
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.models.liger import Liger
from rayrec.models.sasrec import SASRec, SASRecConfig
from rayrec.retrieval.beam_search import Beams, beam_search
from rayrec.retrieval.index import IndexConfig
from rayrec.retrieval.trie import ItemTrie
from serve_apps.model_reference import ModelReference
from serve_apps.ranking_request import RequestError
from serve_apps.retrieval_api import build_retrieval_app
from serve_apps.retriever import RetrieverService
from serve_apps.served_retriever import (
    NewItem,
    Retrieved,
    RetrieveRequest,
    ServedRetriever,
    load_served_retriever,
)
from serve_apps.serving_metrics import ServingMetrics
from tests.serve_apps.retriever_bundle import TEXTS, small_encoder, small_retriever


class InProcess:
    """A RetrievalService that answers each request by itself."""

    def __init__(self, retriever: ServedRetriever) -> None:
        self.current = retriever

    async def ask(self, retriever: ServedRetriever, request: RetrieveRequest) -> Retrieved:
        (answer,) = retriever.retrieve([request])
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def add(self, retriever: ServedRetriever, item: NewItem) -> Mapping[str, Any]:
        return retriever.add(item, retriever.embed(item))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LIGER with random weights over 56 items with text; the last three are cold."""
    folder = tmp_path_factory.mktemp("bundle")
    return small_retriever(folder / "liger", small_encoder(folder / "encoder"))


def served(bundle: Path, journal: Path, index: IndexConfig | None = None) -> ServedRetriever:
    return load_served_retriever(ModelReference(str(bundle), "liger", "1"), journal, index or IndexConfig())


def client_of(retriever: ServedRetriever) -> TestClient:
    app = build_retrieval_app(InProcess(retriever), ServingMetrics(), RetrieverService(max_body_bytes=20_000))
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(served(bundle, tmp_path_factory.mktemp("journal")))


HISTORY = ["red shoe", "blue lamp"]


@torch.no_grad()
@pytest.mark.parametrize("repeat", [None, -1.0, 1.0])
def test_each_method_answers_with_the_models_own_ranking(bundle: Path, tmp_path: Path, repeat: float | None) -> None:
    if repeat is not None:
        encoder = json.loads((bundle / "config.json").read_text())["model_config"]["ids"]["encoder"]
        bundle = small_retriever(tmp_path / "biased", encoder, repeat)
    retriever = served(bundle, tmp_path)
    client = client_of(retriever)
    model = retriever.bundle.model
    assert isinstance(model, Liger)
    history = torch.tensor([[TEXTS.index(item) + 1 for item in HISTORY]])
    dense = model.dense_scores(history)[0]
    generated = beam_search(ItemTrie.of(model.item_tokens), model.decoding(history), 20).items[0].tolist()
    wanted = {
        "dense": dense.topk(5).indices.tolist(),
        "generative": generated[:5],
        "hybrid": sorted({*generated, 54, 55, 56}, key=lambda i: -float(dense[i]))[:5],
    }
    for method, numbers in wanted.items():
        reply = client.post("/v1/retrieve", json={"history": HISTORY, "k": 5, "method": method}).json()
        assert reply["items"] == [TEXTS[i - 1] for i in numbers]
        assert reply["scores"] == sorted(reply["scores"], reverse=True)
        assert reply["model"] == "liger/1"
    assert client.post("/v1/retrieve", json={"history": HISTORY}).json()["method"] == "hybrid"


def test_items_text_that_is_not_finite_is_not_served(bundle: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(bundle, tmp_path / "spoiled")
    weights = load_file(spoiled / "model.safetensors")
    name = next(name for name, values in weights.items() if name.endswith("text") and values.dim() == 2)
    weights[name][3, 1] = torch.nan  # a buffer: no training moves it
    save_file(weights, spoiled / "model.safetensors")
    config = json.loads((spoiled / "config.json").read_text())
    config["sha256"]["model.safetensors"] = hashlib.sha256((spoiled / "model.safetensors").read_bytes()).hexdigest()
    (spoiled / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=f"{name.removeprefix('model.')} has values that are not finite"):
        load_served_retriever(ModelReference(str(spoiled)), tmp_path / "items", IndexConfig())


def test_the_default_method_is_the_one_that_validation_chose(bundle: Path, tmp_path: Path) -> None:
    chosen = served(bundle, tmp_path).bundle
    validated: dict[Any, float] = {"dense": 0.3, "generative": 0.1, "hybrid": 0.2}
    retriever = ServedRetriever(
        replace(chosen, saved=replace(chosen.saved, validated=validated)), "liger", "1", tmp_path / "j", IndexConfig()
    )
    client = client_of(retriever)
    assert client.post("/v1/retrieve", json={"history": HISTORY}).json()["method"] == "dense"
    assert client.get("/v1/model").json()["methods"] == ["dense", "hybrid", "generative"]


def test_a_request_gets_the_same_answer_alone_and_in_a_batch(bundle: Path, tmp_path: Path) -> None:
    retriever = served(bundle, tmp_path)
    requests = [
        RetrieveRequest(history=HISTORY, k=4, method=method) for method in ("dense", "generative", "hybrid")
    ] + [RetrieveRequest(history=TEXTS[:9], k=7)]
    together = retriever.retrieve(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = retriever.retrieve([request])
        assert isinstance(answer, Retrieved)
        assert isinstance(alone, Retrieved)
        assert answer.items == alone.items
        assert answer.scores == pytest.approx(alone.scores, abs=1e-5)


def test_filters_leave_out_items_and_still_give_k(client: TestClient) -> None:
    plain = client.post("/v1/retrieve", json={"history": HISTORY, "k": 6, "method": "dense"}).json()["items"]
    body = {
        "history": [*HISTORY, "unheard of"],
        "k": 6,
        "method": "dense",
        "exclude": plain[:3],
        "exclude_history": True,
    }
    reply = client.post("/v1/retrieve", json=body).json()
    assert len(reply["items"]) == 6
    assert not set(reply["items"]) & {*plain[:3], *HISTORY}
    assert reply["ignored"] == ["unheard of"]


@pytest.mark.parametrize("method", ["exact", "hnsw"])
def test_a_cold_item_added_by_text_is_retrieved_by_the_next_request_on_every_replica(
    bundle: Path, tmp_path: Path, method: Any
) -> None:
    replicas = [served(bundle, tmp_path, IndexConfig(method)) for _ in range(2)]
    clients = [client_of(replica) for replica in replicas]
    reply = clients[0].post("/v1/items", json={"item": "new", "text": "red red shoe"})
    assert reply.status_code == 201
    assert reply.json()["number"] == 57
    assert len(reply.json()["semantic_id"]) == 3
    for client in clients:
        for way in ("dense", "hybrid"):
            body = {"history": HISTORY, "k": 60, "method": way}
            assert "new" in client.post("/v1/retrieve", json=body).json()["items"]
        assert client.post("/v1/retrieve", json={"history": ["new"], "k": 3}).status_code == 200
        assert client.get("/v1/model").json()["items_added"] == 1
    assert clients[1].post("/v1/items", json={"item": "new", "text": "again"}).status_code == 422


def test_what_a_request_excludes_never_widens_the_search_of_its_company(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = served(bundle, tmp_path)
    searched: list[tuple[int, int]] = []

    def noted(trie: ItemTrie, decoding: Any, beams: int) -> Beams:
        found = beam_search(trie, decoding, beams)
        searched.append((len(found.items), beams))
        return found

    monkeypatch.setattr("rayrec.retrieval.searching.beam_search", noted)
    plain = RetrieveRequest(history=HISTORY, method="generative")
    greedy = RetrieveRequest(
        history=HISTORY * 500, k=200, method="generative", exclude=["nothing"] * 1000, exclude_history=True
    )
    answers = retriever.retrieve([plain, *[greedy] * 20, plain])
    assert sorted(searched) == [(2, 20), (4, 256), (16, 256)]
    assert answers[0] == answers[-1]
    (alone,) = retriever.retrieve([plain])
    assert isinstance(alone, Retrieved)
    assert isinstance(answers[0], Retrieved)
    assert answers[0].items == alone.items
    assert all(isinstance(a, Retrieved) and not set(a.items) & set(HISTORY) for a in answers[1:-1])


def test_a_version_takes_so_many_new_items_and_starts_with_those_it_has(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = ModelReference(str(bundle), "liger", "1")
    retriever = load_served_retriever(reference, tmp_path, IndexConfig(), max_added=3)
    client = client_of(retriever)
    for number in range(3):
        body = {"item": f"new-{number}", "text": f"{TEXTS[number]} pan tea tea"}
        assert client.post("/v1/items", json=body).status_code == 201
    with monkeypatch.context() as patched:
        patched.setattr(retriever, "_encoder", None)  # refused without reading a text
        patched.setattr("serve_apps.served_retriever.TextEncoder", None)
        for name, problem in (("new-0", "is known already"), ("new-3", "3 items were added already")):
            refused = client.post("/v1/items", json={"item": name, "text": "red tea"})
            assert refused.status_code == 422
            assert problem in refused.json()["detail"][0]["msg"]
    again = load_served_retriever(reference, tmp_path, IndexConfig(), max_added=3)
    assert again.describe()["items_added"] == 3
    (expected, found) = (r.retrieve([RetrieveRequest(history=["new-1"], k=59)])[0] for r in (retriever, again))
    assert isinstance(expected, Retrieved)
    assert isinstance(found, Retrieved)
    assert expected.items == found.items


def test_a_line_that_a_killed_replica_did_not_finish_harms_no_other_item(bundle: Path, tmp_path: Path) -> None:
    client = client_of(served(bundle, tmp_path))
    assert client.post("/v1/items", json={"item": "first", "text": "red tea"}).status_code == 201
    (journal,) = tmp_path.glob("items-*.jsonl")
    with journal.open("a") as file:
        file.write('{"item": "torn", "text": "blue te')
    assert client.post("/v1/retrieve", json={"history": ["first"]}).status_code == 200
    assert client.post("/v1/items", json={"item": "second", "text": "blue pan"}).status_code == 201
    fresh = client_of(served(bundle, tmp_path))
    for one in (client, fresh):
        items = one.post("/v1/retrieve", json={"history": HISTORY, "k": 60, "method": "dense"}).json()["items"]
        assert {"first", "second"} <= set(items)
        assert "torn" not in items


def test_a_body_of_thousands_of_mistakes_gets_a_short_answer(client: TestClient) -> None:
    reply = client.post("/v1/retrieve", json={"history": HISTORY, **{f"x{i}": 1 for i in range(1500)}})
    assert reply.status_code == 422
    assert len(reply.json()["detail"]) == 20


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"k": 3}, "history"),
        ({"history": []}, "history"),
        ({"history": ["nobody knows"]}, "history"),
        ({"history": HISTORY, "k": 0}, "k"),
        ({"history": HISTORY, "k": 201}, "k"),
        ({"history": HISTORY, "method": "magic"}, "method"),
        ({"history": HISTORY, "colour": "red"}, "colour"),
        ({"history": [1]}, "history"),
    ],
)
def test_a_wrong_request_names_its_field(client: TestClient, body: dict[str, Any], field: str) -> None:
    reply = client.post("/v1/retrieve", json=body)
    assert reply.status_code == 422
    assert field in [problem["loc"][1] for problem in reply.json()["detail"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(["history", "k", "method", "exclude", "exclude_history", "item", "text", "other"]),
    JSON | st.just(HISTORY),
    max_size=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FIELDS | JSON, st.sampled_from(["/v1/retrieve", "/v1/items"]))
def test_generated_bad_requests_never_end_in_a_server_error(client: TestClient, body: Any, path: str) -> None:
    assert client.post(path, json=body).status_code < 500


@pytest.mark.parametrize("repeat", [None, -3.0, 3.0])
def test_a_model_that_knows_items_by_number_retrieves_and_refuses_new_ones(
    tmp_path: Path, repeat: float | None
) -> None:
    config = SASRecConfig(dim=8, layers=1, max_length=4, repeat_bias=repeat is not None)
    model = SASRec(20, config)
    if repeat is not None:
        model.repeat.data.fill_(repeat)
    folder = write_bundle(
        tmp_path / "sasrec",
        retriever_parts(
            RetrieverModules(model, None),
            SavedRetriever(RetrievalConfig(sasrec=config), 20, None),
            tuple(map(str, range(1, 21))),
        ),
        metrics={},
        run_config={},
    )
    retriever = served(folder, tmp_path)
    client = client_of(retriever)
    with torch.no_grad():
        wanted = retriever.bundle.model.scores(torch.tensor([[3, 4]]))[0].topk(3).indices.tolist()  # type: ignore[union-attr]
    assert client.post("/v1/retrieve", json={"history": ["3", "4"], "k": 3}).json()["items"] == [str(i) for i in wanted]
    refused = client.post("/v1/items", json={"item": "new", "text": "words"})
    assert refused.status_code == 422
    assert "cannot take new ones" in refused.json()["detail"][0]["msg"]
    assert client.post("/v1/retrieve", json={"history": ["3"], "method": "hybrid"}).status_code == 422
