"""The cascade without Ray: its answers beside those of its three stages asked one after the other, as a client would."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayrec.retrieval.index import IndexConfig
from rayrec.traffic.earlier import Earlier
from rayrec.traffic.feedback import Feedback
from rayrec.traffic.ledger import Judged
from serve_apps.cascade.api import build_cascade_app
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.served import NothingInTime, Recommended, ServedCascade
from serve_apps.cascade.stages import RankAsk, RankingStage, RetrieveAsk, StageError
from serve_apps.items.changes import ItemChanges
from serve_apps.items.journal import Availability, KeeperAway
from serve_apps.ranker.served import load_ranker
from serve_apps.retriever.served import NewItem, RetrieveRequest, load_served_retriever
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.model_reference import ModelReference
from tests.serve_apps.cascade_parts import (
    KINDS,
    NAMES,
    WITHOUT_FEATURES,
    Parts,
    PlainStages,
    served_cascade,
    small_table,
)

CONTEXT = {"age": 0.3, "user": "u1", "history": ["item-3", "item-9"]}
ASK: dict[str, Any] = {"history": ["item-3", "item-9"], "context": CONTEXT, "retrieve": 40, "early": 12, "k": 5}


@pytest.fixture(scope="module")
def cascade(parts: Parts, stages: PlainStages) -> ServedCascade:
    return served_cascade(parts.references(), stages)


def ask(cascade: ServedCascade, stages: PlainStages, **changed: Any) -> Recommended:
    request = RecommendRequest.model_validate({**ASK, **changed})
    return asyncio.run(cascade.recommend(request, stages, stages.items.changes, 10_000))


def asked_one_by_one(parts: Parts, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates as three services would give them to a client that joins the features itself; see ``cascade.api._trace``."""
    features = {row["item"]: row for row in map(dict, _rows(small_table()))}
    retriever = load_served_retriever(ModelReference(str(parts.retriever[0])), ItemChanges(), IndexConfig())
    (found,) = retriever.retrieve([RetrieveRequest(history=body["history"], k=body["retrieve"])])
    told = {
        item: {
            "item": item,
            "title": features[item]["kind"] if item in features else "",
            "reached": "retrieved",
            "position": None,
            "scores": {"retrieve": score},
        }
        for item, score in zip(found.items, found.scores, strict=True)
    }
    kept = []
    for item in found.items:
        if item in features:
            kept.append(item)
        else:
            told[item]["reached"] = "without_features"
    for stage, folders, names, most in (
        ("early", parts.early, ("item",), body["early"]),
        ("late", parts.late, ("item", "price"), body["k"]),
    ):
        ranker = load_ranker(ModelReference(str(folders[0])), 100)
        candidates = [{name: features[item][name] for name in names} for item in kept]
        request = {"context": body["context"], "candidates": candidates}
        (ranked,) = ranker.rank([ranker.requests.parse(json.dumps(request).encode())])
        for item, score in zip(kept, ranked.scores.tolist(), strict=True):
            told[item]["scores"][stage] = score
            told[item]["reached"] = stage
        kept = [kept[i] for i in ranked.order[:most]]
    for position, item in enumerate(kept):
        told[item] |= {"reached": "shown", "position": position}
    return list(told.values())


def _rows(columns: dict[str, list[Any]]) -> list[Any]:
    return [list(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class InProcess:
    """A cascade service without Ray."""

    def __init__(self, cascade: ServedCascade, stages: Any) -> None:
        self.current, self._stages = cascade, stages

    async def ask(self, served: ServedCascade, request: RecommendRequest) -> Recommended:
        return await served.recommend(request, self._stages, self._stages.items.changes, 10_000)

    async def stages(self) -> dict[str, dict[str, int]]:
        return {"early": {"early/1": 1}}

    async def add(self, item: NewItem) -> dict[str, Any]:
        retriever = self._stages.retriever
        await self._stages.items.add(retriever.entry(item, retriever.embed(item)), 10)
        return dict(retriever.taken_in(item.item))

    async def set_available(self, change: Availability) -> bool:
        return bool(await self._stages.items.set_available(change))

    async def feedback(self, event: Feedback) -> Judged:
        raise AssertionError("this service takes none")

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        raise AssertionError("this service keeps none")


def post(app: FastAPI, body: Any, path: str = "/v1/recommend", method: str = "POST") -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await (client.get(path) if body is None else client.request(method, path, json=body))

    return asyncio.run(send())


@pytest.fixture
def app(cascade: ServedCascade, stages: PlainStages) -> FastAPI:
    return build_cascade_app(InProcess(cascade, stages), ServingMetrics(), ServiceLimits())


def test_the_answer_and_its_trace_are_those_of_the_three_stages_asked_one_by_one(app: FastAPI, parts: Parts) -> None:
    reply = post(app, {**ASK, "trace": True})
    assert reply.status_code == 200, reply.text
    given, expected = reply.json(), asked_one_by_one(parts, ASK)
    assert {row["reached"] for row in expected} == {"without_features", "early", "late", "shown"}
    assert len(given["trace"]) == len(expected) == 40
    for ours, theirs in zip(given["trace"], expected, strict=True):
        assert {**ours, "scores": None} == {**theirs, "scores": None}
        assert ours["scores"] == pytest.approx(theirs["scores"], rel=1e-6)
    shown = sorted((row for row in expected if row["position"] is not None), key=lambda row: row["position"])
    assert [item["item"] for item in given["items"]] == [row["item"] for row in shown]
    assert [item["score"] for item in given["items"]] == pytest.approx([row["scores"]["late"] for row in shown])
    assert given["models"] == {
        "retrieve": "retriever/1",
        "features": "features/1",
        "early": "early/1",
        "late": "late/1",
    }
    assert given["late"] == []
    assert given["timings_ms"].keys() == {"retrieve", "features", "early", "late", "total"}
    assert reply.headers["x-rayrec-model"] == "retriever/1 features/1 early/1 late/1"


def test_each_ranker_orders_by_what_the_request_says(cascade: ServedCascade, stages: PlainStages) -> None:
    plain = ask(cascade, stages, early=40).decision
    other = ask(cascade, stages, early=40, order_by={"early": "buy", "late": {"click": 1, "buy": 0.5}}).decision
    assert other.scores["early"] == pytest.approx(plain.probabilities["early"]["buy"], nan_ok=True)
    late = plain.probabilities["late"]
    assert other.scores["late"] == pytest.approx(late["click"] * late["buy"] ** 0.5, nan_ok=True)
    shown = [other.scores["late"][i] for i in np.argsort(other.position) if other.position[i] >= 0]
    assert shown == sorted(other.scores["late"][np.isfinite(other.scores["late"])], reverse=True)[:5]


def test_a_decision_holds_what_the_rankers_read_and_where_each_candidate_came(
    cascade: ServedCascade, stages: PlainStages
) -> None:
    decision = ask(cascade, stages).decision
    table = {row["item"]: row for row in map(dict, _rows(small_table()))}
    assert decision.columns["price"] == [table[i]["price"] if i in table else None for i in decision.items]
    assert decision.context == CONTEXT
    shown = [i for i, reached in enumerate(decision.reached) if reached == "shown"]
    assert sorted(decision.position[shown].tolist()) == list(range(5))
    assert (decision.position >= 0).sum() == 5
    assert np.isfinite(decision.scores["late"]).sum() == 12
    assert np.isfinite(decision.probabilities["early"]["buy"]).sum() == 39


def test_a_filter_leaves_only_items_with_the_value(cascade: ServedCascade, stages: PlainStages) -> None:
    kind = {name: KINDS[int(name.split("-")[1]) % 3] for name in NAMES}
    for where, fits in (
        ({"kind": "red"}, lambda item: kind[item] == "red"),
        ({"kind": ["red", "blue"], "tags": "new"}, lambda item: kind[item] != "green" and item[-1] in "05"),
        ({"item": "item-4"}, lambda item: item == "item-4"),
    ):
        decision = ask(cascade, stages, where=where, k=50, early=50, retrieve=56).decision
        shown = [item for item, reached in zip(decision.items, decision.reached, strict=True) if reached == "shown"]
        assert sorted(shown) == sorted(item for item in NAMES if item != WITHOUT_FEATURES and fits(item))
    assert len(ask(cascade, stages, where={"kind": 1.5}).shown) == 0


def test_a_filter_takes_the_best_of_what_fits_and_not_what_fits_of_the_best(
    cascade: ServedCascade, stages: PlainStages
) -> None:
    kind = {name: KINDS[int(name.split("-")[1]) % 3] for name in NAMES}
    everything = ask(cascade, stages, retrieve=56, method="dense").decision.items
    found = ask(cascade, stages, retrieve=8, method="dense", where={"kind": "blue"}).decision.items
    assert found == [item for item in everything if kind[item] == "blue" and item != WITHOUT_FEATURES][:8]
    both = asyncio.run(
        _together(cascade, stages, [{"where": {"kind": k}, "retrieve": 8, "method": "dense"} for k in KINDS])
    )
    assert [{kind[item] for item in one.decision.items} for one in both] == [{k} for k in KINDS]


async def _together(cascade: ServedCascade, stages: PlainStages, asks: list[dict[str, Any]]) -> list[Recommended]:
    requests = [RecommendRequest.model_validate({**ASK, **changed}) for changed in asks]
    return list(await asyncio.gather(*(cascade.recommend(r, stages, stages.items.changes, 10_000) for r in requests)))


def test_requests_of_different_filters_in_one_batch_get_each_their_own(stages: PlainStages) -> None:
    asks = [
        RetrieveAsk(RetrieveRequest(history=["item-3"], k=6, method="dense"), where)
        for where in ({"kind": "red"}, {}, {"kind": "blue"}, {"kind": "red"}, {"tags": "new"}, {"a column of later": 1})
    ]
    together = stages.staged.retrieve(asks)
    alone = [stages.staged.retrieve([one])[0] for one in asks]
    assert [one.items for one in together] == [one.items for one in alone]  # type: ignore[union-attr]
    assert together[1].items == together[5].items  # type: ignore[union-attr]
    assert together[0].items == together[3].items != together[2].items  # type: ignore[union-attr]


class Slowed:
    """Stages of which one does not answer."""

    def __init__(self, stages: PlainStages, slow: str) -> None:
        self._stages, self._slow, self.items = stages, slow, stages.items

    async def retrieve(self, ask: RetrieveAsk) -> Any:
        if self._slow == "retrieve":
            await asyncio.sleep(60)
        return await self._stages.retrieve(ask)

    async def rank(self, stage: RankingStage, ask: RankAsk) -> Any:
        if self._slow == stage:
            await asyncio.sleep(60)
        return await self._stages.rank(stage, ask)


@pytest.mark.parametrize(("slow", "last"), [("early", "retrieve"), ("late", "early")])
def test_a_stage_that_is_late_is_told_and_the_one_before_it_answers(
    cascade: ServedCascade, stages: PlainStages, slow: str, last: str
) -> None:
    whole = ask(cascade, stages).decision
    app = build_cascade_app(InProcess(cascade, Slowed(stages, slow)), ServingMetrics(), ServiceLimits())
    reply = post(app, {**ASK, "deadline_ms": 300})
    assert reply.status_code == 200, reply.text
    assert reply.json()["late"] == [slow]
    assert slow not in reply.json()["models"]
    scores = np.where(np.isnan(whole.scores["early"]), -np.inf, whole.scores[last])
    best = np.argsort(-scores, kind="stable")[:5]
    assert [item["item"] for item in reply.json()["items"]] == [whole.items[i] for i in best]
    assert [item["score"] for item in reply.json()["items"]] == pytest.approx(scores[best].tolist())
    assert f'rayrec_stage_late_total{{stage="{slow}"}} 1.0' in post(app, None, "/metrics").text


def test_a_retriever_that_is_late_leaves_nothing_to_answer(cascade: ServedCascade, stages: PlainStages) -> None:
    app = build_cascade_app(InProcess(cascade, Slowed(stages, "retrieve")), ServingMetrics(), ServiceLimits())
    reply = post(app, {**ASK, "deadline_ms": 100})
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    with pytest.raises(NothingInTime):
        asyncio.run(
            cascade.recommend(
                RecommendRequest.model_validate({**ASK, "deadline_ms": 50}),
                Slowed(stages, "retrieve"),
                ItemChanges(),
                1,
            )
        )


def test_a_stage_that_fails_is_a_503_by_kind(cascade: ServedCascade, stages: PlainStages) -> None:
    class Failing(Slowed):
        async def rank(self, stage: RankingStage, ask: RankAsk) -> Any:
            raise StageError(stage, "full")

    app = build_cascade_app(InProcess(cascade, Failing(stages, "")), ServingMetrics(), ServiceLimits())
    reply = post(app, ASK)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    metrics = post(app, None, "/metrics").text
    assert 'rayrec_stage_errors_total{kind="full",stage="early"} 1.0' in metrics
    assert 'rayrec_errors_total{kind="early full",path="/v1/recommend"} 1.0' in metrics


def test_a_retriever_that_is_late_and_an_owner_that_is_away_are_errors_of_their_own_kind(
    cascade: ServedCascade, stages: PlainStages
) -> None:
    class Away(InProcess):
        async def set_available(self, change: Availability) -> bool:
            raise KeeperAway("its disk is full")

    app = build_cascade_app(Away(cascade, Slowed(stages, "retrieve")), ServingMetrics(), ServiceLimits())
    assert post(app, {**ASK, "deadline_ms": 20}).status_code == 503
    reply = post(app, {"available": False}, "/v1/items/item-3", "PUT")
    assert (reply.status_code, reply.json()["detail"], reply.headers["retry-after"]) == (503, "its disk is full", "1")
    metrics = post(app, None, "/metrics").text
    assert 'rayrec_errors_total{kind="retrieve late",path="/v1/recommend"} 1.0' in metrics
    assert 'rayrec_errors_total{kind="items away",path="/v1/items/{item}"} 1.0' in metrics


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"context": {**CONTEXT, "aeg": 1.0}}, ["body", "context", "aeg"]),
        ({"context": {"age": 0.3, "user": "u1"}}, ["body", "context", "history"]),
        ({"context": {**CONTEXT, "age": "old"}}, ["body", "context", "age"]),
        ({"context": {**CONTEXT, "price": 2.0}}, ["body", "context", "price"]),
        ({"context": {**CONTEXT, "user": "x" * 2_000}}, ["body", "context", "user"]),
        ({"where": {"colour": "red"}}, ["body", "where", "colour"]),
        ({"where": {"kind": ["red"] * 101}}, ["body", "where", "kind"]),
        ({"history": ["nothing known"]}, ["body", "history"]),
        ({"history": ["x" * 501]}, ["body", "history", 0]),
        ({"k": 0}, ["body", "k"]),
        ({"retrieve": 1_001}, ["body", "retrieve"]),
        ({"deadline_ms": 0}, ["body", "deadline_ms"]),
        ({"order_by": {"late": "sell"}}, ["body", "order_by"]),
        ({"order_by": {"late": {"click": 11}}}, ["body", "order_by"]),
        ({"order_by": {"middle": "click"}}, ["body", "order_by", "middle"]),
        ({"retreive": 10}, ["body", "retreive"]),
    ],
    ids=lambda value: ".".join(map(str, value[1:])) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_by_its_name(app: FastAPI, changed: dict[str, Any], place: list[Any]) -> None:
    reply = post(app, {**ASK, **changed})
    assert reply.status_code == 422, reply.text
    assert reply.json()["detail"][0]["loc"][: len(place)] == place


def test_values_that_no_vocabulary_has_are_counted(app: FastAPI) -> None:
    reply = post(app, ASK).json()
    assert reply["unknown"]["early"]["item"] > 0  # the rankers know 20 of the 56 items
    counted = sum(counts["item"] for counts in reply["unknown"].values())
    metrics = post(app, None, "/metrics").text
    assert f'rayrec_unknown_values_total{{feature="item"}} {counted}.0' in metrics
    assert "rayrec_candidates_without_features_total 1.0" in metrics
    assert 'rayrec_predictions_total{task="click"} 12.0' in metrics


def test_the_document_names_the_features_of_a_request(app: FastAPI) -> None:
    document = post(app, None, "/openapi.json").json()
    context = document["components"]["schemas"]["RecommendRequest"]["properties"]["context"]
    assert context["properties"].keys() == {"age", "user", "history"}
    assert post(app, None, "/v1/model").json()["context"] == ["age", "history", "user"]
    assert post(app, None, "/docs").status_code == 200


def test_a_ranker_that_has_other_items_or_reads_more_of_them_than_its_asker_knew_is_asked_again_by_values(
    parts: Parts, cascade: ServedCascade, stages: PlainStages, tmp_path: Path
) -> None:
    asked: list[str] = []

    class Noted(Slowed):
        async def rank(self, stage: RankingStage, ask: RankAsk) -> Any:
            asked.append(f"{stage} by {'rows' if ask.table else 'values'}")
            return await self._stages.rank(stage, ask)

    of_all = [staged for arms in stages.rankers.values() for staged in arms.arms.values()]
    plain = ask(cascade, Noted(stages, "")).decision  # type: ignore[arg-type]
    assert asked == ["early by rows", "late by rows"]
    old = served_cascade(parts.references(), stages)
    object.__setattr__(old, "read", {"": {"early": ("item",), "late": ("item",)}})  # as of a late ranker without prices
    assert ask(old, stages).decision.scores["late"] == pytest.approx(plain.scores["late"], nan_ok=True)
    for staged in of_all:
        object.__setattr__(staged, "table", "of another version")
    try:
        asked.clear()
        by_values = ask(cascade, Noted(stages, "")).decision  # type: ignore[arg-type]
    finally:
        for staged in of_all:
            object.__setattr__(staged, "table", stages.features.digest)
    assert asked == ["early by rows", "early by values", "late by rows", "late by values"]
    assert by_values.reached == plain.reached
    for stage in ("early", "late"):
        assert by_values.scores[stage] == pytest.approx(plain.scores[stage], rel=1e-6, nan_ok=True)


def test_an_item_that_is_taken_out_is_in_no_answer_and_the_next_one_moves_up(parts: Parts, tmp_path: Path) -> None:
    stages = PlainStages(parts.references(), tmp_path)
    app = build_cascade_app(
        InProcess(served_cascade(parts.references(), stages), stages), ServingMetrics(), ServiceLimits()
    )
    six = [item["item"] for item in post(app, {**ASK, "k": 6}).json()["items"]]
    out = post(app, {"available": False}, f"/v1/items/{six[2]}", "PUT")
    assert (out.status_code, out.json()["everywhere"]) == (200, True)
    found = post(app, {**ASK, "retrieve": 56, "trace": True}).json()
    assert six[2] not in [row["item"] for row in found["trace"]]
    assert post(app, {"available": True}, f"/v1/items/{six[2]}", "PUT").status_code == 200
    assert [item["item"] for item in post(app, {**ASK, "k": 6}).json()["items"]] == six


@pytest.mark.parametrize("when", ["retrieve", "late"])
def test_an_item_that_is_taken_out_while_a_request_is_on_its_way_is_not_in_its_answer(
    parts: Parts, tmp_path: Path, when: str
) -> None:
    stages = PlainStages(parts.references(), tmp_path)
    cascade = served_cascade(parts.references(), stages)
    six = ask(cascade, stages, k=6).decision
    best = [six.items[i] for i in np.argsort(six.position) if six.position[i] >= 0]

    class Meanwhile(Slowed):
        async def retrieve(self, ask: RetrieveAsk) -> Any:
            found = await self._stages.retrieve(ask)
            if when == "retrieve":
                await stages.items.set_available(Availability(best[0], False))
            return found

        async def rank(self, stage: RankingStage, ask: RankAsk) -> Any:
            found = await self._stages.rank(stage, ask)
            if when == stage:
                await stages.items.set_available(Availability(best[0], False))
            return found

    decision = ask(cascade, Meanwhile(stages, "")).decision  # type: ignore[arg-type]
    assert [decision.items[i] for i in np.argsort(decision.position) if decision.position[i] >= 0] == best[1:6]
    assert decision.reached[decision.items.index(best[0])] == ("unavailable" if when == "retrieve" else "late")


def test_an_added_item_is_retrieved_and_left_out_until_it_has_features(parts: Parts, tmp_path: Path) -> None:
    stages = PlainStages(parts.references(), tmp_path)
    app = build_cascade_app(
        InProcess(served_cascade(parts.references(), stages), stages), ServingMetrics(), ServiceLimits()
    )
    added = post(app, {"item": "new", "text": "red tea"}, "/v1/items")
    assert added.status_code == 201, added.text
    trace = post(app, {**ASK, "retrieve": 57, "trace": True, "method": "dense"}).json()["trace"]
    assert {row["item"]: row["reached"] for row in trace}["new"] == "without_features"
    assert post(app, {"item": "new", "text": "red tea"}, "/v1/items").status_code == 422


def test_items_are_found_by_a_part_of_their_name_or_title(app: FastAPI) -> None:
    found = post(app, None, "/v1/items?find=ITEM-5&limit=3").json()["items"]
    assert len(found) == 3
    kinds = {f"item-{i}": KINDS[i % 3] for i in (5, *range(50, 56))}
    assert all(kinds[one["item"]] == one["title"] for one in found)
    for wrong in ("", "?find=", f"?find={'x' * 101}", "?find=x&limit=101"):
        assert post(app, None, f"/v1/items{wrong}").status_code == 422
    assert post(app, None, "/v1/items?find=%25(").json() == {"items": []}


def test_the_playground_is_a_page_of_its_own_files_without_anything_foreign(app: FastAPI) -> None:
    async def get(path: str, host: str = "127.0.0.1") -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
            return await client.get(path)

    page = asyncio.run(get("/play"))
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert asyncio.run(get("/play", "evil.example")).status_code == 403
    for name, kind in re.findall(r'(?:href|src)="(/[^"]*)"()', page.text):
        assert asyncio.run(get(name)).status_code == 200, kind
    script = asyncio.run(get("/play/play.js")).text
    for text in (page.text, script, asyncio.run(get("/play/style.css")).text):
        assert "http" not in text.replace("httpEquiv", "")
    assert "innerHTML" not in script
    labelled = set(re.findall(r'<label for="([^"]+)"', page.text))
    controls = set(re.findall(r'<(?:input|textarea) id="([^"]+)"', page.text))
    assert controls == labelled  # every control has a label
    assert 'aria-live="polite"' in page.text


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=5)
            | st.sampled_from([CONTEXT, ["item-3"]]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5) | st.sampled_from(["kind", "age", "user"]), inner, max_size=3)
            ),
            max_leaves=5,
        )
        for name in [*RecommendRequest.model_fields, "item", "text", "available"]
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FIELDS, st.booleans(), st.sampled_from(["/v1/recommend", "/v1/items", "/v1/items/item-3"]))
def test_generated_bad_requests_never_end_in_a_server_error(app: FastAPI, body: Any, whole: bool, path: str) -> None:
    given_body = {**ASK, **body} if whole else body
    try:
        text = json.dumps(given_body, allow_nan=False)
    except ValueError:
        text = json.dumps(given_body)  # NaN, which no JSON has

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            headers = {"Content-Type": "application/json"}
            return await client.request("PUT" if path.endswith("-3") else "POST", path, content=text, headers=headers)

    assert asyncio.run(send()).status_code < 500
    assert asyncio.run(send()).status_code in (200, 201, 422)
