"""What a client of a content ranker sees: stored and given users and items, refusals, embeddings swapped under load."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.embed_content_items import EmbedContentItems
from jobs.embed_content_items import run as embed_items
from jobs.embed_users import EmbedUsers
from jobs.embed_users import run as embed_users
from jobs.serve import Serve
from jobs.serve import run as run_service
from rayrec.data.content import write_content
from rayrec.data.content.embeddings import pointer_to
from rayrec.data.content.tokens import tokenize, write_tokens
from rayrec.families.content.bundle import ContentBundle
from rayrec.families.content.experiment import ContentExperiment
from rayrec.text.content_tokenizer import ContentTokenizer
from rayrec.typed_json import ConfigError
from serve_apps.content.api import RANK, build_content_app
from serve_apps.content.application import ContentService, example
from serve_apps.content.request import ContentRequest, RankedContent
from serve_apps.content.served import ServedContent, load_served_content
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError
from tests.families.content.conftest import small_experiment, small_log
from tests.families.content.test_embedding import untrained
from tests.serve_apps.test_retriever_serving import free_port


class InProcess:
    """A service that answers each request by itself."""

    def __init__(self, served: ServedContent) -> None:
        self.current = served

    async def ask(self, served: ServedContent, request: ContentRequest) -> RankedContent:
        (answer,) = served.rank([request])
        if isinstance(answer, RequestError):
            raise answer
        return answer


def stored(experiment: ContentExperiment, folder: Path, model: str = "spar") -> tuple[ContentBundle, Path]:
    bundle, out = untrained(experiment, folder / "bundle", model), folder / "embeddings"
    common = (str(bundle.path), experiment.content, experiment.tokens, out)
    embed_items(EmbedContentItems(*common, shard=10, encoders=0))
    embed_users(EmbedUsers(*common, shard=5, encoders=0))
    return bundle, out


def served_by(bundle: ContentBundle, root: Path | None, refused: Callable[[], None] = lambda: None) -> ServedContent:
    return load_served_content(ModelReference(str(bundle.path), "spar", "1"), root, refused)


def client_of(served: ServedContent) -> TestClient:
    limits = ContentService(max_body_bytes=50_000)
    app = build_content_app(InProcess(served), ServingMetrics(), limits, max_candidates=40, max_encoded=20)
    return TestClient(app, base_url="http://127.0.0.1")


def texts_of(experiment: ContentExperiment, item: str) -> dict[str, Any]:
    items = experiment.inputs().log.items
    row = items.names.to_pylist().index(item)
    return {"item": item, "texts": {name: column[row].as_py() for name, column in items.texts.items()}}


@pytest.mark.parametrize("model", ["spar", "embsum", "two_tower"])
def test_stored_and_given_texts_get_the_same_scores_as_the_model_end_to_end(
    experiment: ContentExperiment, tmp_path: Path, model: str
) -> None:
    bundle, out = stored(experiment, tmp_path, model)
    client, inputs = client_of(served_by(bundle, out)), experiment.inputs()
    names = ["n3", "n31", "n10"]
    numbers = [1 + int(name[1:]) for name in names]
    batch = inputs.batch(
        np.asarray([inputs.log.current[4]]), np.zeros(1, dtype=np.int64), np.asarray([numbers]), np.ones((1, 3))
    )
    with torch.inference_mode():
        wanted = dict(zip(names, bundle.model.scores(batch)[0].tolist(), strict=True))
    best = sorted(names, key=lambda name: -wanted[name])
    history = [f"n{item - 1}" for item in inputs.log.histories[inputs.log.current[4]]]
    words = {"interest": "Likes football."} if model == "spar" else {}
    given = [texts_of(experiment, name) for name in history]
    for body in (
        {"user": "u4", "candidates": names},
        {"user": "u4", "candidates": ["n3", texts_of(experiment, "n31"), "n10"]},
        {"history": history, "candidates": names, **words},
        {"history": given, "candidates": [texts_of(experiment, name) for name in names], **words},
    ):
        reply = client.post(RANK, json=body).json()
        assert reply["items"] == best
        assert [names[place] for place in reply["order"]] == best
        assert reply["scores"] == pytest.approx([wanted[name] for name in best], abs=1e-5)
    everything = client.post(RANK, json={"user": "u4", "k": 32}).json()
    assert sorted(everything["items"]) == sorted(f"n{i}" for i in range(32))
    assert everything["scores"] == sorted(everything["scores"], reverse=True)
    assert len(client.post(RANK, json={"user": "u4"}).json()["items"]) == 10
    told = client.post(
        RANK, json={"user": "u4", "with_interest": True, "with_summary": True, "candidates": names}
    ).json()
    assert told["interest"] == ("Likes football." if model == "spar" else told["interest"])
    assert (told["summary"] is not None) == (model == "embsum")


def test_requests_of_all_kinds_are_answered_together_as_alone(experiment: ContentExperiment, tmp_path: Path) -> None:
    bundle, out = stored(experiment, tmp_path)
    served, new = served_by(bundle, out), {"texts": {"title": "beach team"}}
    requests = [
        ContentRequest.model_validate(body)
        for body in (
            {"user": "u1", "candidates": ["n1", "n2"]}, {"user": "u2", "candidates": ["n9", new]},
            {"history": ["n4", "nowhere"], "candidates": ["n1", "n2", "n3"]}, {"user": "nobody", "candidates": ["n1"]},
            {"history": [new], "interest": "Likes travel."}, {"user": "u3"},
        )
    ]  # fmt: skip
    together = served.rank(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = served.rank([request])
        assert type(alone) is type(answer)
        if isinstance(answer, RankedContent) and isinstance(alone, RankedContent):
            assert answer.items == alone.items
            assert answer.scores == pytest.approx(alone.scores, abs=1e-5)
    assert isinstance(together[2], RankedContent)
    assert together[2].ignored == ["nowhere"]
    assert isinstance(together[3], RequestError)


@pytest.fixture(scope="module")
def client(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(served_by(*stored(small_experiment(folders), tmp_path_factory.mktemp("client"))))


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, []),
        ({"user": "u1", "history": ["n1"]}, []),
        ({"user": "u1", "interest": "Likes travel."}, []),
        ({"user": "nobody"}, ["user"]),
        ({"history": []}, ["history"]),
        ({"history": ["nowhere"]}, ["history"]),
        ({"user": "u1", "candidates": []}, ["candidates"]),
        ({"user": "u1", "candidates": ["n1", "nowhere"]}, ["candidates", 1]),
        ({"user": "u1", "candidates": ["n1"] * 41}, ["candidates"]),
        ({"user": "u1", "candidates": [{"texts": {"title": "a"}}] * 21}, ["candidates"]),
        ({"user": "u1", "candidates": [{"texts": {"colour": "red"}}]}, ["candidates", 0, "texts", "colour"]),
        ({"user": "u1", "k": 0}, ["k"]),
        ({"user": "u1", "colour": 1}, ["colour"]),
    ],
)
def test_a_wrong_request_names_its_place(client: TestClient, body: dict[str, Any], place: list[str | int]) -> None:
    reply = client.post(RANK, json=body)
    assert reply.status_code == 422, reply.text
    assert ["body", *place] in [problem["loc"][: 1 + len(place)] for problem in reply.json()["detail"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["u1", "n1", "title"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["texts", "item", "title"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ["user", "history", "interest", "candidates", "k", "with_interest", "with_summary"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4) | JSON)
def test_generated_bad_requests_never_end_in_a_server_error(client: TestClient, body: Any) -> None:
    assert client.post(RANK, json=body).status_code < 500


def test_without_embeddings_everything_comes_as_text(experiment: ContentExperiment, tmp_path: Path) -> None:
    bundle = untrained(experiment, tmp_path / "bundle", "spar")
    client = client_of(served_by(bundle, None))
    found = example(bundle)
    assert found is not None
    path, body = found
    reply = client.post(path, json=body)
    assert (reply.status_code, len(reply.json()["items"])) == (200, 3), reply.text
    assert client.post(RANK, json={"history": body["history"]}).json()["detail"][0]["loc"] == ["body", "candidates"]
    assert client.post(RANK, json={"user": "u1", **body}).status_code == 422
    assert client.get("/v1/model").json()["fields"] == ["title", "category"]
    with pytest.raises(ConfigError, match=r"jobs\.embed_content_items"):
        served_by(bundle, tmp_path / "nothing")


def waits_for(served: ServedContent, request: ContentRequest, source: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        (answer,) = served.rank([request])
        assert isinstance(answer, RankedContent)
        if answer.stored == source:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_new_embeddings_answer_once_they_are_in_force_and_broken_ones_never(
    experiment: ContentExperiment, tmp_path: Path, small_tokenizer: ContentTokenizer
) -> None:
    bundle, out = stored(experiment, tmp_path)
    refusals: list[int] = []
    served = served_by(bundle, out, lambda: refusals.append(1))
    request = ContentRequest(user="u1", candidates=["n0", "n5"])
    (today,) = served.rank([request])
    other = small_log(seed=1)
    log = write_content(tmp_path / "log", other)
    tokens = write_tokens(tmp_path / "tokens", tokenize(other, small_tokenizer, "small", 16))
    command = EmbedContentItems(str(bundle.path), log, tokens, out, encoders=0)
    record = embed_items(command)
    waits_for(served, request, record.source)
    (tomorrow,) = served.rank([request])
    assert isinstance(today, RankedContent)
    assert isinstance(tomorrow, RankedContent)
    assert today.scores != tomorrow.scores
    pointer = pointer_to(out, bundle.weights, "items")
    pointer.write_text(pointer.read_text().replace(record.source, "0" * 16))
    deadline = time.monotonic() + 20
    while not refusals:
        assert served.rank([request]) == [tomorrow]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
    assert served.rank([request]) == [tomorrow]
    assert len(refusals) == 1


def test_jobs_serve_swaps_embeddings_under_load_without_a_dropped_request(
    ray_session: None, experiment: ContentExperiment, tmp_path: Path, small_tokenizer: ContentTokenizer
) -> None:
    bundle, out = stored(experiment, tmp_path)
    stop, port, replies = threading.Event(), free_port(), []
    service = ContentService(embeddings=str(out), replicas=1)
    server = threading.Thread(target=run_service, args=(Serve(service, str(bundle.path), port=port), stop))
    server.start()
    try:
        with httpx.Client(timeout=60, base_url=f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + 240
            while True:
                assert server.is_alive()
                assert time.monotonic() < deadline
                try:
                    if client.post(RANK, json={"user": "u1"}).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            log = write_content(tmp_path / "log", small_log(seed=1))
            tokens = write_tokens(tmp_path / "tokens", tokenize(small_log(seed=1), small_tokenizer, "small", 16))
            command = EmbedContentItems(str(bundle.path), log, tokens, out, encoders=0)
            writer = threading.Thread(target=embed_items, args=(command,))
            writer.start()
            sources: list[str] = []
            while len(set(sources)) < 2 or len(sources) < 50:
                assert time.monotonic() < deadline
                reply = client.post(RANK, json={"user": "u1", "candidates": ["n1", "n2"]})
                replies.append(reply.status_code)
                sources.append(reply.json()["stored"])
            writer.join()
            assert set(replies) == {200}
            assert sources == sorted(sources, key=lambda source: source == sources[-1])  # one swap, and none back
            counted = client.get("/metrics").text
            assert f'rayrec_requests_total{{path="{RANK}",status="200"}}' in counted
    finally:
        stop.set()
        server.join(60)
    assert not server.is_alive()


def test_the_limits_of_a_service_are_checked() -> None:
    with pytest.raises(ValueError, match="max_encoded must be at least 1"):
        replace(ContentService(), max_encoded=0)
