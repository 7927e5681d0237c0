"""Decisions of a cascade and feedback on them, without Ray: on disk before they count, and what training reads of them."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI

from rayrec.data.log.collate import collate
from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.schema import CategoricalFeature, SequenceFeature
from rayrec.families.ranker.bundle import load_bundle
from rayrec.traffic import journal
from rayrec.traffic.decisions import decision_tables, number_of
from rayrec.traffic.earlier import Earlier
from rayrec.traffic.feedback import Feedback
from rayrec.traffic.joining import JoinConfig, join
from rayrec.traffic.ledger import Away, Book, Judged, Ledger, WrittenDecision
from serve_apps.cascade.api import build_cascade_app
from serve_apps.cascade.decision_log import DecisionWriter
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.served import ServedCascade
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from tests.serve_apps.cascade_parts import Parts, PlainStages, served_cascade, small_table
from tests.serve_apps.local_traffic import LocalTraffic, WithTraffic
from tests.serve_apps.test_cascade import ASK, CONTEXT, InProcess, Slowed, ask, post

USER = {**ASK, "user": "ann"}


@pytest.fixture(scope="module")
def cascade(parts: Parts, stages: PlainStages) -> ServedCascade:
    return served_cascade(parts.references(), stages, "late")


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[LocalTraffic]:
    made = LocalTraffic(tmp_path / "traffic")
    yield made
    made.ledger.close()


@pytest.fixture
def app(cascade: ServedCascade, stages: PlainStages, owner: LocalTraffic) -> FastAPI:
    return app_of(WithTraffic(cascade, stages, owner))


def app_of(service: WithTraffic) -> FastAPI:
    return build_cascade_app(service, ServingMetrics(), ServiceLimits(), feedback=True)


def say(app: FastAPI, request: str, item: str, **labels: int) -> tuple[int, Any]:
    told = post(app, {"request": request, "item": item, "labels": labels}, "/v1/feedback")
    return told.status_code, told.json().get("outcome", told.json().get("detail"))


def logged(folder: Path) -> pa.Table:
    (book,) = folder.glob("traffic/*/decisions")
    return pa.concat_tables(decision_tables(book))


def test_a_decision_is_logged_as_the_ranker_read_it(
    app: FastAPI, stages: PlainStages, cascade: ServedCascade, parts: Parts, tmp_path: Path
) -> None:
    reply = post(app, {**USER, "trace": True}).json()
    assert reply["logged"] is True
    table = logged(tmp_path)
    rows = {row["served_item"]: row for row in table.to_pylist()}
    scored = {row["item"]: row for row in reply["trace"] if row["reached"] != "without_features"}
    assert rows.keys() == scored.keys()
    assert len(rows) == table.num_rows == 39
    for item, row in rows.items():
        assert row["served_request"] == reply["request"]
        assert (row["served_user_name"], row["served_arm"]) == ("ann", "all")
        assert row["served_stage"] == scored[item]["reached"]
        assert row["served_position"] == (-1 if scored[item]["position"] is None else scored[item]["position"])
        for stage in ("retrieve", "early", "late"):
            assert row[f"served_score_{stage}"] == scored[item]["scores"].get(stage)
        assert row["click"] is None
        assert row["buy"] is None
    bundle = load_bundle(parts.late[0])  # scores again what was logged, as a training run would read it
    reached = table.filter(table["served_score_late"].is_valid())
    again = bundle.model(collate(reached, bundle.schema, labels=False)).double().sigmoid().detach().numpy()
    assert reached["served_score_late"].to_numpy() == pytest.approx(again[:, 0], rel=1e-5)
    for place, task in enumerate(bundle.schema.task_names):
        assert reached[f"served_predicted_{task}"].to_numpy() == pytest.approx(again[:, place], rel=1e-5)
    prices = {row["item"]: row["price"] for row in map(dict, _rows(small_table()))}
    assert {item: row["price"] for item, row in rows.items()} == pytest.approx({item: prices[item] for item in rows})


def test_features_taken_from_the_encoded_table_are_those_of_the_raw_values(
    cascade: ServedCascade, stages: PlainStages, parts: Parts
) -> None:
    request = RecommendRequest.model_validate({**ASK, "k": 40, "early": 40})
    decision = asyncio.run(cascade.recommend(request, stages, stages.items.changes, 30_000)).decision
    schema = load_bundle(parts.late[0]).schema
    kind = CategoricalFeature("kind", vocabulary=("red", "blue"))  # green is unknown
    tags = SequenceFeature("tags", max_length=1, encoding="hash", buckets=9)
    schema = schema.with_features((*schema.features, kind, tags))
    rows = [i for i, reached in enumerate(decision.reached) if reached != "without_features"]
    columns, context = decision.columns, decision.context
    given = {
        f.name: [columns[f.name][i] if f.name in columns else context.get(f.name) for i in rows]
        for f in schema.features
    }
    expected = LogEncoder(schema).encode_values(given)
    written = DecisionWriter(schema, stages.features, stages.folder / "mapped").written(decision)
    assert written is not None
    assert written.table.select(expected.column_names).to_pydict() == expected.to_pydict()
    assert expected["price"].null_count > 0
    assert set(expected["kind"].to_pylist()) == {0, 1, 2}
    assert len(decision.context["history"]) > 1


def _rows(columns: dict[str, list[Any]]) -> list[Any]:
    return [list(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_what_was_served_and_said_becomes_the_rows_and_labels_that_the_loop_trains_on(
    app: FastAPI, owner: LocalTraffic, tmp_path: Path
) -> None:
    clicked, bought = set(), set()
    for number in range(10):
        reply = post(app, {**USER, "user": f"user-{number}", "context": {**CONTEXT, "age": number / 10}}).json()
        items = [item["item"] for item in reply["items"]]
        clicked.add((number_of(reply["request"]), number % 5))
        assert say(app, reply["request"], items[number % 5], click=1) == (200, "accepted")
        if number % 3 == 0:
            bought.add((number_of(reply["request"]), number % 5))
            assert say(app, reply["request"], items[number % 5], buy=1) == (200, "accepted")
    (book,) = (tmp_path / "traffic").iterdir()
    done = join(book / "decisions", book / "feedback", tmp_path / "joined", JoinConfig(60.0), owner.now_ms + 61_000)
    assert (done.summary.impressions, done.summary.candidates, done.summary.unmatched) == (50, 340, 0)
    assert done.summary.positives == {"click": 10, "buy": 4}
    rows = [
        row for split in done.labeled.splits for f in done.labeled.files(split) for row in pq.read_table(f).to_pylist()
    ]
    for task, said in (("click", clicked), ("buy", bought)):
        assert {(r["request"], r["served_position"]) for r in rows if r[task] == 1} == said
    assert all(r["buy"] is None for r in rows if r["click"] == 0)


def test_feedback_counts_once_and_what_never_was_is_a_404(app: FastAPI) -> None:
    reply = post(app, {**USER, "trace": True}).json()
    request, item = reply["request"], reply["items"][0]["item"]
    cut = next(row["item"] for row in reply["trace"] if row["position"] is None)
    assert say(app, request, item, click=1) == (200, "accepted")
    assert say(app, request, item, click=1) == (200, "duplicate")
    assert say(app, request, item, click=0)[0] == 409
    assert say(app, request, item, buy=0, click=1) == (200, "accepted")  # more on the same item
    assert say(app, request, cut, click=1)[0] == 404  # a candidate that was not shown
    assert say(app, "0" * 32, item, click=1)[0] == 404
    status, detail = say(app, request, item, like=1)
    assert (status, detail[0]["loc"]) == (422, ["body", "labels"])
    assert "there is no task 'like'; there are buy, click" in detail[0]["msg"]
    metrics = post(app, None, "/metrics").text
    counted = {"accepted": 2, "duplicate": 1, "conflicting": 1, "unknown": 2, "wrong": 1}
    for outcome, count in counted.items():
        assert f'rayrec_feedback_total{{outcome="{outcome}"}} {count}.0' in metrics
    assert 'rayrec_decisions_total{outcome="kept"} 1.0' in metrics


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"labels": {}}, "labels"),
        ({"labels": {"click": 2}}, "labels"),
        ({"labels": {"click": True}}, "labels"),
        ({"labels": {"click": 0.5}}, "labels"),
        ({"labels": {f"task-{i}": 1 for i in range(65)}}, "labels"),
        ({"item": ""}, "item"),
        ({"item": "x" * 501}, "item"),
        ({"request": "x" * 101}, "request"),
        ({"request": None}, "request"),
        ({"id": ""}, "id"),
        ({"itme": "a"}, "itme"),
    ],
)
def test_feedback_that_does_not_fit_is_refused_by_the_name_of_its_field(
    app: FastAPI, body: dict[str, Any], place: str
) -> None:
    event = {"request": "r", "item": "item-3", "labels": {"click": 1}, **body}
    reply = post(app, event, "/v1/feedback")
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"][:2] == ["body", place]


def test_a_service_that_keeps_no_decisions_takes_no_feedback(cascade: ServedCascade, stages: PlainStages) -> None:
    app = build_cascade_app(InProcess(cascade, stages), ServingMetrics(), ServiceLimits())
    assert "logged" not in post(app, ASK).json()
    assert say(app, "r", "item-3", click=1)[0] == 404
    assert "/v1/feedback" not in post(app, None, "/openapi.json").json()["paths"]


def test_feedback_is_late_when_its_window_has_closed_and_unknown_much_later(app: FastAPI, owner: LocalTraffic) -> None:
    reply = post(app, USER).json()
    now, (first, second, *_) = owner.now_ms, [item["item"] for item in reply["items"]]
    owner.clock_ms = now + 59_000
    assert say(app, reply["request"], first, click=1) == (200, "accepted")
    owner.clock_ms = now + 61_000
    assert say(app, reply["request"], second, click=1)[0] == 410
    owner.clock_ms = now + 121_000
    assert say(app, reply["request"], second, click=1)[0] == 404


def test_a_full_disk_is_told_by_answers_and_feedback_and_nothing_is_half_kept(
    app: FastAPI, owner: LocalTraffic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = post(app, USER).json()
    item = kept["items"][0]["item"]

    def full(file: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "write", full)
    while_full = post(app, USER)
    assert (while_full.status_code, while_full.json()["logged"]) == (200, False)
    told = post(app, {"request": kept["request"], "item": item, "labels": {"click": 1}}, "/v1/feedback")
    assert (told.status_code, told.headers["retry-after"]) == (503, "1")
    assert told.json()["detail"].startswith("Not kept, send it again: ")
    assert "no space is left on its disk" in told.json()["detail"]
    monkeypatch.undo()
    owner.ledger._trouble.clear()  # a second later
    assert say(app, kept["request"], item, click=1) == (200, "accepted")
    assert say(app, while_full.json()["request"], while_full.json()["items"][0]["item"], click=1)[0] == 404
    assert post(app, USER).json()["logged"] is True
    assert len(logged(tmp_path)) == 2 * 39
    metrics = post(app, None, "/metrics").text
    assert 'rayrec_decisions_total{outcome="unkept"} 1.0' in metrics
    assert 'rayrec_feedback_total{outcome="unkept"} 1.0' in metrics


def test_a_folder_that_is_taken_away_is_noticed_and_made_anew(
    app: FastAPI, owner: LocalTraffic, tmp_path: Path
) -> None:
    assert post(app, USER).json()["logged"] is True
    shutil.rmtree(tmp_path / "traffic")
    assert post(app, USER).json()["logged"] is False
    owner.ledger._trouble.clear()
    reply = post(app, USER).json()
    assert reply["logged"] is True
    assert set(logged(tmp_path)["served_request"].to_pylist()) == {reply["request"]}


def test_a_restart_knows_what_was_shown_and_said(cascade: ServedCascade, stages: PlainStages, tmp_path: Path) -> None:
    before = LocalTraffic(tmp_path / "traffic")
    app = app_of(WithTraffic(cascade, stages, before))
    reply = post(app, USER).json()
    one, two = (item["item"] for item in reply["items"][:2])
    assert say(app, reply["request"], one, click=1) == (200, "accepted")
    before.ledger.close()
    after = LocalTraffic(tmp_path / "traffic")
    app = app_of(WithTraffic(cascade, stages, after))
    assert say(app, reply["request"], one, click=1) == (200, "duplicate")
    assert say(app, reply["request"], two, click=1) == (200, "accepted")
    assert post(app, USER).json()["logged"] is True
    after.ledger.close()


class NeverKept:
    """An owner that is stuck."""

    async def start(self) -> None:
        pass

    async def keep(self, book: Book, decision: WrittenDecision) -> None:
        await asyncio.sleep(60)

    async def accept(self, feedback: Feedback) -> Judged:
        raise NotImplementedError

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        raise Away("it is stuck")


def test_an_answer_does_not_wait_for_a_log_that_is_stuck(cascade: ServedCascade, stages: PlainStages) -> None:
    reply = post(app_of(WithTraffic(cascade, stages, NeverKept(), wait_ms=20)), USER)
    assert (reply.status_code, reply.json()["logged"]) == (200, False)
    assert len(reply.json()["items"]) == 5


@pytest.mark.parametrize(("slow", "scored"), [("early", ("retrieve",)), ("late", ("retrieve", "early"))])
def test_an_answer_of_a_cascade_cut_short_is_logged_with_the_scores_that_it_has(
    cascade: ServedCascade, stages: PlainStages, owner: LocalTraffic, tmp_path: Path, slow: str, scored: tuple[str, ...]
) -> None:
    app = app_of(WithTraffic(cascade, Slowed(stages, slow), owner))
    reply = post(app, {**USER, "deadline_ms": 300}).json()
    assert reply["logged"] is True
    table = logged(tmp_path)
    assert table["served_position"].to_numpy().max() == 4
    for stage in ("retrieve", "early", "late"):
        assert (table[f"served_score_{stage}"].null_count < len(table)) == (stage in scored)
    assert say(app, reply["request"], reply["items"][0]["item"], click=1) == (200, "accepted")


def test_decisions_of_rankers_of_two_schemas_lie_in_two_books_and_feedback_finds_its_own(
    parts: Parts, stages: PlainStages, owner: LocalTraffic, tmp_path: Path
) -> None:
    replies = []
    for stage in ("early", "late"):  # the early one does not read the price
        app = app_of(WithTraffic(served_cascade(parts.references(), stages, stage), stages, owner))  # type: ignore[arg-type]
        replies.append(post(app, USER).json())
    for reply in replies:
        assert say(app, reply["request"], reply["items"][0]["item"], click=1) == (200, "accepted")
    books = sorted((tmp_path / "traffic").iterdir())
    assert len(books) == 2
    for book in books:
        (request,) = {r for t in decision_tables(book / "decisions") for r in t["served_request"].to_pylist()}
        assert len(list((book / "feedback").glob("feedback-*"))) == 1
        summary = join(book / "decisions", book / "feedback", tmp_path / book.name, JoinConfig(0), owner.now_ms).summary
        assert request in {reply["request"] for reply in replies}
        assert summary.positives["click"] + summary.late == 1


def test_a_decision_that_comes_twice_is_kept_once(cascade: ServedCascade, stages: PlainStages, tmp_path: Path) -> None:
    assert cascade.writer is not None
    made = cascade.writer.written(ask(cascade, stages).decision)
    assert made is not None
    ledger = Ledger(tmp_path / "traffic", window_ms=1_000, now_ms=made.time_ms)
    ledger.open(cascade.writer.book)
    assert ledger.keep([made, made]) == [None, None]
    assert ledger.keep([made]) == [None]
    ledger.close()
    assert len(logged(tmp_path)) == np.count_nonzero(
        [r != "without_features" for r in ask(cascade, stages).decision.reached]
    )
