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
from serve_apps.items.changes import ItemChanges
from serve_apps.items.journal import Availability
from serve_apps.ranker.request import RequestError
from serve_apps.retriever.api import build_retrieval_app
from serve_apps.retriever.application import RetrieverService
from serve_apps.retriever.served import (
    NewItem,
    Retrieved,
    RetrieveRequest,
    ServedRetriever,
    load_served_retriever,
)
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.model_reference import ModelReference
from tests.serve_apps.local_items import LocalItems
from tests.serve_apps.retriever_bundle import TEXTS, small_encoder, small_retriever


class InProcess:
    """A RetrievalService that answers each request by itself."""

    def __init__(self, retriever: ServedRetriever, items: LocalItems) -> None:
        self.current, self._items = retriever, items

    async def ask(self, retriever: ServedRetriever, request: RetrieveRequest) -> Retrieved:
        (answer,) = retriever.retrieve([request])
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def add(self, retriever: ServedRetriever, item: NewItem) -> Mapping[str, Any]:
        entry = retriever.entry(item, retriever.embed(item))
        await self._items.add(entry, retriever.max_added)
        return retriever.taken_in(item.item)

    async def set_available(self, change: Availability) -> bool:
        return await self._items.set_available(change)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LIGER with random weights over 56 items with text; the last three are cold."""
    folder = tmp_path_factory.mktemp("bundle")
    return small_retriever(folder / "liger", small_encoder(folder / "encoder"))


def served(bundle: Path, items: LocalItems | None = None, index: IndexConfig | None = None) -> ServedRetriever:
    changes = ItemChanges() if items is None else items.changes
    return load_served_retriever(ModelReference(str(bundle), "liger", "1"), changes, index or IndexConfig())


def client_of(retriever: ServedRetriever, items: LocalItems | None = None) -> TestClient:
    service: Any = InProcess(retriever, items)  # type: ignore[arg-type]  # one without items is asked for none
    app = build_retrieval_app(service, ServingMetrics(), RetrieverService(max_body_bytes=20_000))
    return TestClient(app, base_url="http://127.0.0.1")


def client_for(bundle: Path, folder: Path) -> TestClient:
    """Of a service that keeps its items in ``folder``."""
    items = LocalItems(folder)
    return client_of(served(bundle, items), items)


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_for(bundle, tmp_path_factory.mktemp("items"))


HISTORY = ["red shoe", "blue lamp"]


@torch.no_grad()
@pytest.mark.parametrize("repeat", [None, -1.0, 1.0])
def test_each_method_answers_with_the_models_own_ranking(bundle: Path, tmp_path: Path, repeat: float | None) -> None:
    if repeat is not None:
        encoder = json.loads((bundle / "config.json").read_text())["model_config"]["ids"]["encoder"]
        bundle = small_retriever(tmp_path / "biased", encoder, repeat)
    retriever = served(bundle)
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
        load_served_retriever(ModelReference(str(spoiled)), ItemChanges(), IndexConfig())


def test_the_default_method_is_the_one_that_validation_chose(bundle: Path, tmp_path: Path) -> None:
    chosen = served(bundle).bundle
    validated: dict[Any, float] = {"dense": 0.3, "generative": 0.1, "hybrid": 0.2}
    retriever = ServedRetriever(
        replace(chosen, saved=replace(chosen.saved, validated=validated)), "liger", "1", ItemChanges(), IndexConfig()
    )
    client = client_of(retriever)
    assert client.post("/v1/retrieve", json={"history": HISTORY}).json()["method"] == "dense"
    assert client.get("/v1/model").json()["methods"] == ["dense", "hybrid", "generative"]


def test_a_request_gets_the_same_answer_alone_and_in_a_batch(bundle: Path, tmp_path: Path) -> None:
    retriever = served(bundle)
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
    items = LocalItems(tmp_path)
    clients = [client_of(served(bundle, items, IndexConfig(method)), items) for _ in range(2)]
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
    retriever = served(bundle)
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
    reference, items = ModelReference(str(bundle), "liger", "1"), LocalItems(tmp_path)
    retriever = load_served_retriever(reference, items.changes, IndexConfig(), max_added=3)
    client = client_of(retriever, items)
    for number in range(3):
        body = {"item": f"new-{number}", "text": f"{TEXTS[number]} pan tea tea"}
        assert client.post("/v1/items", json=body).status_code == 201
    with monkeypatch.context() as patched:
        patched.setattr(retriever, "_encoder", None)  # refused without reading a text
        patched.setattr("serve_apps.retriever.served.TextEncoder", None)
        for name, problem in (("new-0", "is known already"), ("new-3", "3 items were added already")):
            refused = client.post("/v1/items", json={"item": name, "text": "red tea"})
            assert refused.status_code == 422
            assert problem in refused.json()["detail"][0]["msg"]
    again = load_served_retriever(reference, LocalItems(tmp_path).changes, IndexConfig(), max_added=3)
    assert again.describe()["items_added"] == 3
    (expected, found) = (r.retrieve([RetrieveRequest(history=["new-1"], k=59)])[0] for r in (retriever, again))
    assert isinstance(expected, Retrieved)
    assert isinstance(found, Retrieved)
    assert expected.items == found.items


def test_a_line_that_a_killed_owner_did_not_finish_harms_no_other_item(bundle: Path, tmp_path: Path) -> None:
    assert client_for(bundle, tmp_path).post("/v1/items", json={"item": "first", "text": "red tea"}).status_code == 201
    with (tmp_path / "items.jsonl").open("a") as file:
        file.write('{"item": "torn", "text": "blue te')
    client = client_for(bundle, tmp_path)
    assert client.post("/v1/retrieve", json={"history": ["first"]}).status_code == 200
    assert client.post("/v1/items", json={"item": "second", "text": "blue pan"}).status_code == 201
    for one in (client, client_for(bundle, tmp_path)):
        items = one.post("/v1/retrieve", json={"history": HISTORY, "k": 60, "method": "dense"}).json()["items"]
        assert {"first", "second"} <= set(items)
        assert "torn" not in items


@pytest.mark.parametrize("index", ["exact", "hnsw"])
@pytest.mark.parametrize("method", ["dense", "hybrid", "generative"])
def test_an_item_that_is_taken_out_is_in_no_answer_and_leaves_its_place_to_the_next_until_it_is_brought_back(
    bundle: Path, tmp_path: Path, method: str, index: Any
) -> None:
    items = LocalItems(tmp_path)
    client = client_of(served(bundle, items, IndexConfig(index)), items)
    ask = {"history": HISTORY, "k": 4, "method": method}
    before = client.post("/v1/retrieve", json={**ask, "k": 8}).json()["items"]
    assert client.put(f"/v1/items/{before[1]}", json={"available": False}).json() == {
        "item": before[1], "available": False, "everywhere": True
    }  # fmt: skip
    assert client.put("/v1/items/never heard of/it", json={"available": False}).status_code == 200
    without = client.post("/v1/retrieve", json=ask).json()["items"]
    assert without == [item for item in before if item != before[1]][:4]
    assert (
        client_for(bundle, tmp_path).post("/v1/retrieve", json={**ask, "k": 56}).json()["items"].count(before[1]) == 0
    )
    assert client.post("/v1/items", json={"item": "new", "text": "red red shoe"}).status_code == 201
    assert client.put("/v1/items/new", json={"available": False}).status_code == 200
    assert "new" not in client.post("/v1/retrieve", json={**ask, "k": 60}).json()["items"]
    for item in (before[1], "new"):
        assert client.put(f"/v1/items/{item}", json={"available": True}).status_code == 200
    again = client.post("/v1/retrieve", json={**ask, "k": 8}).json()["items"]
    assert [item for item in again if item != "new"][:4] == before[:4]
    assert "new" in client.post("/v1/retrieve", json={**ask, "k": 60}).json()["items"]
    for body in ({}, {"available": "no"}, {"available": True, "because": "x"}):
        assert client.put("/v1/items/new", json=body).status_code == 422
    assert client.put(f"/v1/items/{'x' * 501}", json={"available": True}).status_code == 422
    assert 'path="/v1/items/{item}",status="200"' in client.get("/metrics").text


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
@given(FIELDS | JSON, st.sampled_from(["/v1/retrieve", "/v1/items", "/v1/items/red shoe"]))
def test_generated_bad_requests_never_end_in_a_server_error(client: TestClient, body: Any, path: str) -> None:
    assert (client.put if "shoe" in path else client.post)(path, json=body).status_code < 500


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
    retriever = served(folder)
    client = client_of(retriever)
    with torch.no_grad():
        wanted = retriever.bundle.model.scores(torch.tensor([[3, 4]]))[0].topk(3).indices.tolist()  # type: ignore[union-attr]
    assert client.post("/v1/retrieve", json={"history": ["3", "4"], "k": 3}).json()["items"] == [str(i) for i in wanted]
    refused = client.post("/v1/items", json={"item": "new", "text": "words"})
    assert refused.status_code == 422
    assert "cannot take new ones" in refused.json()["detail"][0]["msg"]
    assert client.post("/v1/retrieve", json={"history": ["3"], "method": "hybrid"}).status_code == 422
