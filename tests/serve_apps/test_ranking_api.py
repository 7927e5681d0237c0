"""What a client of the ranking service sees, without Ray: answers, refusals, limits, token, documents."""

import hashlib
import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayrec.bundle import BundleError, write_bundle
from rayrec.data.log import Log
from rayrec.data.log.collate import collate
from rayrec.data.log.schema import DenseFeature, LogSchema, TaskLabel, TextFeature
from rayrec.families.ranker.bundle import load_bundle, ranker_parts
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.models.ranker import Ranker
from serve_apps.example_request import curl_command, example_request
from serve_apps.ranker.api import build_app
from serve_apps.ranker.application import RankerService
from serve_apps.ranker.request import RankRequest, RankRequests, RequestError
from serve_apps.ranker.served import Ranked, ServedRanker, load_ranker
from serve_apps.service.access import is_loopback
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.model_reference import ModelReference
from tests.serve_apps.conftest import InProcess

TOKEN = "correct horse battery staple"
FEATURES = ("age", "price", "user", "item", "history")


def client_of(ranker: ServedRanker, *, token: str | None = None, host: str = "127.0.0.1") -> TestClient:
    digest = hashlib.sha256(token.encode()).hexdigest() if token else None
    app = build_app(InProcess(ranker), ServingMetrics(), RankerService(max_body_bytes=20_000, token_sha256=digest))
    return TestClient(app, base_url=f"http://{host}")


@pytest.fixture(scope="module")
def client(ranker: ServedRanker) -> TestClient:
    return client_of(ranker)


@pytest.fixture
def body(small_log: Path) -> dict[str, Any]:
    return example_request(Log.open(small_log), candidates=4)


def wrong_fields(reply: Any) -> set[tuple[str | int, ...]]:
    assert reply.status_code == 422, reply.text
    return {tuple(problem["loc"]) for problem in reply.json()["detail"]}


def test_raw_values_get_the_probabilities_of_the_logged_rows(
    client: TestClient, ranker: ServedRanker, small_log: Path, body: dict[str, Any]
) -> None:
    # hashed ids cannot be turned back into values: the request's made-up users have other ids, so they are left missing here
    log = Log.open(small_log)
    batch = collate(pq.read_table(log.files("test")[0]).slice(0, 4), log.schema)
    batch.categorical[:, 0] = 0
    with torch.no_grad():
        expected = ranker.bundle.model(batch).sigmoid()
    for candidate in body["candidates"]:
        candidate["user"] = None
    reply = client.post("/v1/rank", json=body).json()
    got = torch.tensor([reply["probabilities"]["click"], reply["probabilities"]["buy"]]).T
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert reply["model"] == "small/1"


def test_order_is_by_the_first_task_then_by_what_is_asked_for(client: TestClient, body: dict[str, Any]) -> None:
    by_click = client.post("/v1/rank", json=body).json()
    click, buy = (by_click["probabilities"][task] for task in ("click", "buy"))
    assert by_click["scores"] == pytest.approx(click)
    assert by_click["order"] == sorted(range(4), key=lambda i: -click[i])
    by_buy = client.post("/v1/rank", json={**body, "order_by": "buy"}).json()
    assert by_buy["order"] == sorted(range(4), key=lambda i: -buy[i])
    by_both = client.post("/v1/rank", json={**body, "order_by": {"click": 1, "buy": -2.5}}).json()
    assert by_both["scores"] == pytest.approx([c * b**-2.5 for c, b in zip(click, buy, strict=True)])


def test_a_context_value_holds_for_all_candidates_unless_they_have_their_own(
    client: TestClient, body: dict[str, Any]
) -> None:
    spread = deepcopy(body)
    for candidate in spread["candidates"]:
        candidate["age"] = 0.25
    spread["candidates"][2]["age"] = -1.0
    shared = deepcopy(spread)
    shared["context"]["age"] = 0.25
    for candidate in shared["candidates"]:
        if candidate["age"] == 0.25:
            del candidate["age"]
    assert client.post("/v1/rank", json=shared).json() == client.post("/v1/rank", json=spread).json()


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("age", "old"), ("age", True), ("age", [1.0]), ("age", 1e39), ("user", 1.5), ("user", {"id": 3}), ("item", []),
        ("history", "item-1|item-2"), ("history", [["item-1"]]), ("history", 7),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named(client: TestClient, body: dict[str, Any], feature: str, value: Any) -> None:
    body["candidates"][3][feature] = value
    fields = wrong_fields(client.post("/v1/rank", json=body))
    assert all(field[:4] == ("body", "candidates", 3, feature) for field in fields)


def test_a_feature_given_nowhere_is_named(client: TestClient, body: dict[str, Any]) -> None:
    del body["candidates"][1]["item"]
    assert wrong_fields(client.post("/v1/rank", json=body)) == {("body", "candidates", 1, "item")}


def test_unknown_names_are_named(client: TestClient, body: dict[str, Any]) -> None:
    body["candidates"][0]["colour"] = "red"
    body["context"]["agee"] = 3
    body["order_by"] = "like"
    assert wrong_fields(client.post("/v1/rank", json=body)) == {
        ("body", "candidates", 0, "colour"), ("body", "context", "agee"), ("body", "order_by"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b'{"candidates": NaN}', b"\xff\xfe", b"[" * 9000, b'{"candidates": [{"age": NaN}]}'],
)
def test_broken_json_is_a_422(client: TestClient, text: bytes) -> None:
    wrong_fields(client.post("/v1/rank", content=text, headers={"content-type": "application/json"}))


def test_another_content_type_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    for headers in ({"content-type": "text/plain"}, {}):
        assert client.post("/v1/rank", content=json.dumps(body), headers=headers).status_code == 415


def test_too_many_candidates_and_too_many_bytes_are_refused(client: TestClient, body: dict[str, Any]) -> None:
    many = {**body, "candidates": body["candidates"][:1] * 51}
    assert wrong_fields(client.post("/v1/rank", json=many)) == {("body", "candidates")}
    assert client.post("/v1/rank", json={**many, "candidates": many["candidates"][:50]}).status_code == 200
    large = json.dumps({**body, "padding": "x" * 20_000}).encode()
    json_type = {"content-type": "application/json"}
    assert client.post("/v1/rank", content=large, headers=json_type).status_code == 413
    in_chunks = client.post("/v1/rank", content=iter([large[:9000], large[9000:]]), headers=json_type)
    assert in_chunks.status_code == 413


@pytest.mark.parametrize(
    ("feature", "value"), [("history", ["item-1"] * 1_001), ("item", "x" * 1_025), ("history", ["x" * 1_025])]
)
def test_a_value_that_would_be_large_once_for_each_candidate_is_refused(
    client: TestClient, body: dict[str, Any], feature: str, value: Any
) -> None:
    candidates = [{name: v for name, v in c.items() if name != feature} for c in body["candidates"]]
    reply = client.post(
        "/v1/rank", json={**body, "context": {**body["context"], feature: value}, "candidates": candidates}
    )
    assert reply.status_code == 422
    assert feature in reply.json()["detail"][0]["loc"]
    assert "at most 1,0" in reply.json()["detail"][0]["msg"]


@pytest.mark.parametrize(("feature", "value"), [("item", 2**64), ("history", [10**4_000]), ("history", [1e300])])
def test_a_number_that_no_log_can_hold_is_refused(
    client: TestClient, body: dict[str, Any], feature: str, value: Any
) -> None:
    body["candidates"][1][feature] = value
    reply = client.post("/v1/rank", json=body)
    assert reply.status_code == 422
    assert feature in reply.json()["detail"][0]["loc"]


def test_what_a_context_repeats_is_cut_to_what_is_read(ranker: ServedRanker, body: dict[str, Any]) -> None:
    length = ranker.bundle.schema.sequences[0].max_length
    read = [f"item-{i}" for i in range(length)]
    for candidate in body["candidates"]:
        candidate.pop("history", None)
    long, short = (
        ranker.requests.parse(json.dumps({**body, "context": {**body["context"], "history": history}}).encode())
        for history in (["unread"] * 500 + read, read)
    )
    assert [len(codes) for codes in long.column("history")] == [length] * 4
    (first, second) = ranker.rank([long, short])
    assert isinstance(first, Ranked)
    assert isinstance(second, Ranked)
    assert np.array_equal(first.scores, second.scores)


def test_a_request_may_leave_out_the_text_that_rankers_do_not_read() -> None:
    schema = LogSchema("docs", (TextFeature("title"), DenseFeature("price", transform="none")), (TaskLabel("click"),))
    requests = RankRequests(schema, max_candidates=10)
    assert requests.parse(b'{"candidates": [{"price": 1}, {"price": 2}]}').column("title") == [None, None]
    mixed = requests.parse(b'{"candidates": [{"price": 1, "title": "a"}, {"price": 2}]}')
    assert mixed.columns == {"price": [1, 2], "title": ["a", None]}
    with pytest.raises(RequestError, match="price"):
        requests.parse(b'{"candidates": [{"title": "a"}]}')


def test_requests_that_share_other_features_are_answered_together_as_they_are_alone(
    ranker: ServedRanker, body: dict[str, Any]
) -> None:
    names = list(body["context"])
    texts = []
    for moved in ([], names[:1], names):  # from the context to the candidates
        context = {name: value for name, value in body["context"].items() if name not in moved}
        own = {name: body["context"][name] for name in moved}
        texts.append(
            {**body, "context": context, "candidates": [{**own, **c} for c in body["candidates"][len(moved) :]]}
        )
    asked = [ranker.requests.parse(json.dumps(text).encode()) for text in texts]
    for request, together in zip(asked, ranker.rank(asked), strict=True):
        (alone,) = ranker.rank([request])
        assert isinstance(alone, Ranked)
        assert isinstance(together, Ranked)
        assert together.probabilities == pytest.approx(alone.probabilities, rel=1e-5)
        assert together.unknown == alone.unknown


def test_a_context_text_too_large_for_that_many_candidates_is_refused() -> None:
    schema = LogSchema(
        "docs",
        (TextFeature("title", max_characters=10), TextFeature("page", max_characters=20_000)),
        (TaskLabel("click"),),
    )
    requests = RankRequests(schema, max_candidates=4_000)
    context = {"title": "t" * 40, "page": "p" * 20_000}

    def parse(candidates: int, **own: str) -> RankRequest:
        body = {"context": context, "candidates": [own] * candidates}
        return requests.parse(json.dumps(body).encode())

    assert parse(3).column("title") == ["t" * 10] * 3
    with pytest.raises(RequestError) as refused:
        parse(2_000)
    (problem,) = refused.value.problems
    assert problem.loc == ("body", "context", "page")
    assert problem.msg == "20,000 characters for each of 2,000 candidates are too many; send fewer candidates"
    with pytest.raises(RequestError, match="title"):
        parse(1, title="t" * 41)


def test_the_largest_numbers_still_get_finite_answers(client: TestClient, body: dict[str, Any]) -> None:
    for candidate, value in zip(body["candidates"], (3e38, -3e38, 1e-45, 0), strict=True):
        candidate["age"] = candidate["price"] = value
    reply = client.post("/v1/rank", json={**body, "order_by": {"click": 10, "buy": -10}}).json()
    assert all(0 <= p <= 1 for values in reply["probabilities"].values() for p in values)
    assert all(score > 0 for score in reply["scores"])


def test_one_wrong_request_of_a_batch_fails_alone(ranker: ServedRanker, body: dict[str, Any]) -> None:
    good = ranker.requests.parse(json.dumps(body).encode())
    assert "age" in good.columns
    bad = replace(good, columns={**good.columns, "age": ["old"] * 4})
    (alone,) = ranker.rank([good])
    first, failed, last = ranker.rank([good, bad, good])
    assert isinstance(failed, RequestError)
    assert "age" in str(failed)
    assert isinstance(alone, Ranked)
    for answer in (first, last):
        assert isinstance(answer, Ranked)
        assert answer.probabilities == pytest.approx(alone.probabilities, rel=1e-5)


def test_a_diverged_model_is_not_served(bundles: tuple[Path, Path], small_log: Path, tmp_path: Path) -> None:
    bundle = load_bundle(bundles[0])
    task = RankingTask(bundle.schema, RankingConfig())
    with torch.no_grad():
        next(bundle.model.parameters())[1] = float("nan")
    assert isinstance(bundle.model, Ranker)
    folder = write_bundle(
        tmp_path / "diverged",
        ranker_parts(bundle.model, task.model_config, bundle.schema),
        metrics={},
        run_config={},
    )
    with pytest.raises(BundleError, match="not finite"):
        load_ranker(ModelReference(str(folder)), max_candidates=50)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
BAD_VALUES = {
    "age": st.text(max_size=8) | st.booleans() | st.lists(JSON_VALUES, max_size=2) | st.sampled_from([float("nan"), 1e300]),
    "price": st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=2) | st.sampled_from(["", "1.5", float("-inf")]),
    "user": st.lists(JSON_VALUES, max_size=2) | st.floats(0.1, 0.9) | st.just(float("inf")),
    "item": st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=2) | st.floats(2.01, 2.99),
    "history": st.text(max_size=8) | st.integers() | st.lists(st.lists(JSON_VALUES, max_size=2), min_size=1, max_size=2),
}  # fmt: skip


@st.composite
def bad_bodies(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """A good request with one thing broken, or any other JSON or bytes."""
    body = deepcopy(good)
    candidate = draw(st.integers(0, 3))
    match draw(
        st.sampled_from(["value", "absent", "unknown", "order_by", "candidates", "context", "cut", "json", "bytes"])
    ):
        case "value":
            feature = draw(st.sampled_from(FEATURES))
            place = draw(st.sampled_from([body["context"], body["candidates"][candidate]]))
            place[feature] = draw(BAD_VALUES[feature])
        case "absent":
            del body["candidates"][candidate][draw(st.sampled_from(FEATURES))]
        case "unknown":
            name = draw(st.text(max_size=8).filter(lambda n: n not in FEATURES))
            draw(st.sampled_from([body["context"], body["candidates"][candidate]]))[name] = draw(JSON_VALUES)
        case "order_by":
            body["order_by"] = draw(JSON_VALUES.filter(lambda v: v not in ("click", "buy")))
        case "candidates":
            body["candidates"] = draw(JSON_VALUES)
        case "context":
            body["context"] = draw(JSON_VALUES.filter(lambda v: v != {}))
        case "cut":
            text = json.dumps(body).encode()
            return text[: draw(st.integers(0, len(text) - 1))]
        case "json":
            return json.dumps(draw(JSON_VALUES)).encode()
        case "bytes":
            return draw(st.binary(max_size=64))
    return json.dumps(body).encode()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_200_generated_bad_requests_are_4xx(client: TestClient, small_log: Path, data: st.DataObject) -> None:
    text = data.draw(bad_bodies(example_request(Log.open(small_log), candidates=4)))
    reply = client.post("/v1/rank", content=text, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500, (reply.status_code, text)
    assert reply.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/model", "/metrics", "/openapi.json", "/docs"])
def test_with_a_token_everything_but_health_needs_it(ranker: ServedRanker, body: dict[str, Any], path: str) -> None:
    client = client_of(ranker, token=TOKEN, host="10.0.0.7")

    def ask(headers: dict[str, str]) -> Any:
        return (
            client.post(path, json=body, headers=headers) if path == "/v1/rank" else client.get(path, headers=headers)
        )

    for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"authorization": TOKEN}):
        refused = ask(wrong)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
    assert ask({"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/healthz").json() == {"status": "ok", "model": "small/1"}


def test_without_a_token_only_loopback_is_answered(ranker: ServedRanker, body: dict[str, Any]) -> None:
    for host, status in (("10.0.0.7", 403), ("[::1]", 200), ("127.0.0.1", 200), ("example.org", 403)):
        assert client_of(ranker, host=host).post("/v1/rank", json=body).status_code == status


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("", False)],
)  # fmt: skip
def test_loopback_is_told_from_open_addresses(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_model_page_has_version_features_tasks_and_metrics_but_no_vocabulary(client: TestClient) -> None:
    page = client.get("/v1/model").json()
    assert (page["name"], page["version"], page["kind"]) == ("small", "1", "ranker")
    assert [feature["name"] for feature in page["features"]] == list(FEATURES)
    assert page["features"][3]["ids"] == 21
    assert "vocabulary" not in page["features"][3]
    assert [task["name"] for task in page["tasks"]] == ["click", "buy"]
    assert page["metrics"]["test"]["click"]["auc"] == 0.7


def test_openapi_describes_the_features_of_the_schema(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert set(schemas["Candidate"]["properties"]) == set(FEATURES)
    assert schemas["Candidate"]["additionalProperties"] is False
    assert schemas["RankRequest"]["properties"]["candidates"]["maxItems"] == 50
    reference = document["paths"]["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/RankRequest"
    assert {"200", "401", "413", "415", "422", "503"} <= set(document["paths"]["/v1/rank"]["post"]["responses"])


def test_metrics_count_requests_candidates_and_probabilities(ranker: ServedRanker, body: dict[str, Any]) -> None:
    client = client_of(ranker)
    clicks = sum(client.post("/v1/rank", json=body).json()["probabilities"]["click"])
    client.post("/v1/rank", json={})
    client.get("/no/such/page")
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines['rayrec_requests_total{path="/v1/rank",status="200"}']) == 1
    assert float(lines['rayrec_requests_total{path="/v1/rank",status="422"}']) == 1
    assert float(lines['rayrec_requests_total{path="other",status="404"}']) == 1
    assert float(lines['rayrec_predictions_total{task="buy"}']) == 4
    assert float(lines['rayrec_predicted_probability_total{task="click"}']) == pytest.approx(clicks)


def test_values_that_training_never_saw_are_counted_in_the_reply_and_in_the_metrics(
    ranker: ServedRanker, body: dict[str, Any]
) -> None:
    client = client_of(ranker)
    assert client.post("/v1/rank", json=body).json()["unknown"] == {}
    body["candidates"][0] |= {"item": "new", "history": ["new", "item-1", "newer", None]}
    body["candidates"][2]["item"] = "newer"
    assert client.post("/v1/rank", json=body).json()["unknown"] == {"item": 2, "history": 2}
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines['rayrec_unknown_values_total{feature="item"}']) == 2


def test_each_request_of_a_batch_has_its_own_unknown_values(ranker: ServedRanker, body: dict[str, Any]) -> None:
    other = {**body, "candidates": [{**candidate, "item": "new"} for candidate in body["candidates"][:3]]}
    requests = [ranker.requests.parse(json.dumps(given).encode()) for given in (body, other, body)]
    assert [answer.unknown for answer in ranker.rank(requests) if isinstance(answer, Ranked)] == [{}, {"item": 3}, {}]


def test_every_reply_names_the_model(client: TestClient, body: dict[str, Any]) -> None:
    replies = [
        client.post("/v1/rank", json=body),
        client.post("/v1/rank", json={}),
        client.get("/healthz"),
        client.get("/x"),
    ]
    assert {reply.headers["x-rayrec-model"] for reply in replies} == {"small/1"}


def test_the_printed_curl_line_never_holds_the_token(body: dict[str, Any]) -> None:
    line = curl_command("http://127.0.0.1:8000/v1/rank", body, token=True)
    assert '-H "Authorization: Bearer $RAYREC_TOKEN"' in line


def test_the_page_about_the_service_is_whole_without_the_internet_and_without_a_script(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert not re.search(r"<script|src=|https?:|//", page.text)
    for text in ("POST /v1/rank", "GET /metrics", "history", "No valid bearer token"):
        assert text in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_metrics_are_documented_as_text(client: TestClient) -> None:
    answer = client.get("/openapi.json").json()["paths"]["/metrics"]["get"]["responses"]["200"]
    assert list(answer["content"]) == [client.get("/metrics").headers["content-type"]]


def test_a_reply_names_the_version_that_answered_though_another_came_meanwhile(
    bundles: tuple[Path, Path], ranker: ServedRanker, body: dict[str, Any]
) -> None:
    second = load_ranker(ModelReference(str(bundles[1]), "small", "2"), max_candidates=50)

    class Changing(InProcess):
        async def ask(self, ranker: ServedRanker, request: RankRequest) -> Ranked:
            answer = await super().ask(ranker, request)
            self.current = second
            return answer

    service = TestClient(build_app(Changing(ranker), ServingMetrics(), RankerService()), base_url="http://127.0.0.1")
    for label in ("small/1", "small/2"):
        reply = service.post("/v1/rank", json=body)
        assert (reply.json()["model"], reply.headers["x-rayrec-model"]) == (label, label)
