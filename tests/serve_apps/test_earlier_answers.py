"""``POST /v1/earlier`` of a cascade without Ray: what it was answered before, and that it is guarded as the rest."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serve_apps.cascade.api import build_cascade_app
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from tests.serve_apps.cascade_parts import Parts, PlainStages, served_cascade
from tests.serve_apps.local_traffic import LocalTraffic, WithTraffic
from tests.serve_apps.test_cascade import ASK, CONTEXT, InProcess, post
from tests.serve_apps.test_traffic import NeverKept

EARLIER = "/v1/earlier"


@pytest.fixture
def service(parts: Parts, stages: PlainStages, tmp_path: Path) -> Iterator[WithTraffic]:
    owner = LocalTraffic(tmp_path / "traffic")
    yield WithTraffic(served_cascade(parts.references(), stages, "late"), stages, owner)
    owner.ledger.close()


def app_of(service: Any, limits: ServiceLimits | None = None, *, feedback: bool = True) -> FastAPI:
    return build_cascade_app(service, ServingMetrics(), limits or ServiceLimits(), feedback=feedback)


def test_what_a_user_was_answered_before_is_told_newest_first_as_it_was_replied(service: WithTraffic) -> None:
    app = app_of(service)
    one = post(app, {**ASK, "user": "ann"}).json()
    two = post(app, {**ASK, "user": "ann", "k": 3, "context": {**CONTEXT, "age": 0.9}}).json()
    post(app, {**ASK, "user": "bob"})
    told = post(app, {**ASK, "user": "ann"}, EARLIER).json()
    assert (told["by"], told["whole"]) == ("user", True)
    assert [answer["request"] for answer in told["answers"]] == [two["request"], one["request"]]
    assert [answer["same_question"] for answer in told["answers"]] == [False, True]
    for answer, reply in zip(told["answers"], (two, one), strict=True):
        assert [(i["item"], i["score"]) for i in answer["items"]] == [(i["item"], i["score"]) for i in reply["items"]]
        assert (answer["models"], answer["arm"]) == (reply["models"], "all")
        assert answer["time_ms"] > 1.6e12
    titles = {row["item"]: row["title"] for row in post(app, {**ASK, "trace": True}).json()["trace"]}
    assert all(i["title"] == titles[i["item"]] for i in told["answers"][0]["items"])
    assert [a["request"] for a in post(app, {**ASK, "user": "ann", "limit": 1}, EARLIER).json()["answers"]] == [
        two["request"]
    ]


def test_a_request_without_a_user_is_known_by_its_question_alone(service: WithTraffic) -> None:
    app = app_of(service)
    same = post(app, {**ASK, "k": 2}).json()["request"]
    for other in ({"history": ["item-9"]}, {"context": {**CONTEXT, "age": 0.4}}, {"user": "ann"}):
        post(app, {**ASK, **other})
    told = post(app, ASK, EARLIER).json()
    assert told["by"] == "question"
    assert [(a["request"], a["same_question"]) for a in told["answers"]] == [(same, True)]


def test_asking_what_was_before_changes_nothing_and_counts_as_no_answer(service: WithTraffic) -> None:
    app = app_of(service)
    post(app, {**ASK, "user": "ann"})
    first = post(app, {**ASK, "user": "ann"}, EARLIER).json()
    assert post(app, {**ASK, "user": "ann"}, EARLIER).json() == first
    assert len(first["answers"]) == 1
    assert 'rayrec_decisions_total{outcome="kept"} 1.0' in post(app, None, "/metrics").text


@pytest.mark.parametrize(
    ("body", "place"),
    [({"limit": 0}, "limit"), ({"limit": 21}, "limit"), ({"user": "x" * 501}, "user"), ({"who": "ann"}, "who")],
)
def test_what_does_not_fit_is_refused_by_its_name(service: WithTraffic, body: dict[str, Any], place: str) -> None:
    reply = post(app_of(service), {**ASK, **body}, EARLIER)
    assert (reply.status_code, reply.json()["detail"][0]["loc"]) == (422, ["body", place])


def test_it_is_guarded_and_limited_as_the_other_routes(service: WithTraffic) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    assert post(app_of(service, ServiceLimits(token_sha256=digest)), ASK, EARLIER).status_code == 401
    assert post(app_of(service, ServiceLimits(max_body_bytes=20)), ASK, EARLIER).status_code == 413
    with_host = app_of(service)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(with_host)
        async with httpx.AsyncClient(transport=transport, base_url="http://rebound.example") as client:
            return await client.post(EARLIER, json=ASK)

    assert asyncio.run(send()).status_code == 403


def test_a_log_that_cannot_be_read_is_a_503_and_without_a_log_there_is_no_such_route(
    parts: Parts, stages: PlainStages
) -> None:
    cascade = served_cascade(parts.references(), stages, "late")
    stuck = post(app_of(WithTraffic(cascade, stages, NeverKept())), ASK, EARLIER)
    assert (stuck.status_code, stuck.headers["retry-after"]) == (503, "1")
    assert stuck.json()["detail"] == "The log of decisions cannot be read now: it is stuck"
    assert post(app_of(InProcess(cascade, stages), feedback=False), ASK, EARLIER).status_code == 404
