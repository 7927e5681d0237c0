"""The cascade on a real Ray Serve: its answers, and each of its parts refreshed under load."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import ray

from jobs.compare_arms import CompareArms, compared
from rayrec.traffic.assignment import Assignment
from rayrec.traffic.decisions import number_of
from rayrec.traffic.joining import JoinConfig, join
from rayrec.typed_json import to_json
from serve_apps.cascade.api import reply
from serve_apps.cascade.application import CascadeService
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.traffic import TrafficOptions
from serve_apps.cascade.traffic_keeper import traffic_keeper_of
from serve_apps.cascade.versions import Arm, CascadeReferences, Experiment
from serve_apps.deploying import DeployedService, DeploymentError, serving
from serve_apps.service.model_reference import ModelReference
from tests.serve_apps.cascade_parts import Parts, PlainStages, served_cascade
from tests.serve_apps.test_cascade import ASK


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traffic")


@pytest.fixture(scope="module")
def deployed(ray_session: None, parts: Parts, traffic: Path) -> Iterator[DeployedService]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    kept = CascadeService(
        replicas=2, traffic=TrafficOptions(str(traffic), window_s=60, wait_ms=5_000, shadow_replicas=1)
    )
    with serving(kept, "127.0.0.1", port) as service:
        service.deploy(parts.references(), timeout_s=300)
        yield service


def expected(references: CascadeReferences, folder: Path, body: dict[str, Any]) -> dict[str, Any]:
    """The reply as plain calls in this process give it."""
    stages = PlainStages(references, folder)
    request = RecommendRequest.model_validate(body)
    found = asyncio.run(served_cascade(references, stages).recommend(request, stages, stages.items.changes, 10_000))
    return reply(found, trace=request.trace)


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Of two replies, but for request id and times."""
    if (ours["models"], ours["late"]) != (theirs["models"], theirs["late"]):
        return False
    pairs = zip(ours["items"], theirs["items"], strict=True)
    return all(a["item"] == b["item"] and a["scores"] == pytest.approx(b["scores"], rel=1e-5) for a, b in pairs)


def test_a_served_answer_is_that_of_plain_calls(deployed: DeployedService, parts: Parts, tmp_path: Path) -> None:
    body = {**ASK, "trace": True}
    answer = httpx.post(f"{deployed.url}/v1/recommend", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    plain = expected(parts.references(), tmp_path, body)
    assert same(answer.json(), plain)
    assert len(answer.json()["trace"]) == 40
    for ours, theirs in zip(answer.json()["trace"], plain["trace"], strict=True):
        assert ours == {**theirs, "scores": pytest.approx(theirs["scores"], rel=1e-5)}
    assert httpx.post(f"{deployed.url}/v1/recommend", json={**ASK, "k": 0}).status_code == 422
    wrong = httpx.post(f"{deployed.url}/v1/recommend", json={**ASK, "context": {}})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "context", "age"])
    assert httpx.get(f"{deployed.url}/v1/stages").json() == {
        "retrieve": {"retriever/1": 1}, "early": {"early/1": 1}, "late": {"late/1": 1},
        "shadow": {"late/1": 1},
    }  # fmt: skip
    metrics = httpx.get(f"{deployed.url}/metrics").text
    for stage in ("retrieve", "early", "late"):  # counted by the stages' own processes
        assert f'rayrec_stage_batch_requests_count{{stage="{stage}"}}' in metrics
        assert f'rayrec_stage_queue_seconds_count{{stage="{stage}"}}' in metrics


def test_a_deadline_that_nobody_can_keep_is_a_503_and_harms_no_later_request(deployed: DeployedService) -> None:
    with httpx.Client(base_url=deployed.url, timeout=30) as client:
        for _ in range(10):
            hurried = client.post("/v1/recommend", json={**ASK, "deadline_ms": 1})
            assert (hurried.status_code, hurried.headers["retry-after"]) == (503, "1"), hurried.text
            assert client.post("/v1/recommend", json=ASK).status_code == 200
        metrics = client.get("/metrics").text
    assert 'rayrec_stage_late_total{stage="retrieve"} 10.0' in metrics


def test_an_item_that_is_taken_out_is_in_no_answer_from_its_reply_on(deployed: DeployedService) -> None:
    with httpx.Client(base_url=deployed.url, timeout=30) as client:
        six = [item["item"] for item in client.post("/v1/recommend", json={**ASK, "k": 6}).json()["items"]]
        for item in six[:3]:
            out = client.put(f"/v1/items/{item}", json={"available": False})
            assert (out.status_code, out.json()["everywhere"]) == (200, True), out.text
            found = client.post("/v1/recommend", json={**ASK, "retrieve": 56, "k": 56, "trace": True}).json()
            assert item not in [row["item"] for row in found["trace"]]
        added = client.post("/v1/items", json={"item": "new", "text": "red tea"})
        assert added.status_code == 201, added.text
        found = client.post("/v1/recommend", json={**ASK, "retrieve": 60, "trace": True, "method": "dense"}).json()
        assert {row["item"]: row["reached"] for row in found["trace"]}["new"] == "without_features"
        for item in six[:3]:
            assert client.put(f"/v1/items/{item}", json={"available": True}).status_code == 200
        assert client.put("/v1/items/new", json={"available": False}).status_code == 200
        again = client.post("/v1/recommend", json={**ASK, "k": 6}).json()["items"]
        assert [item["item"] for item in again] == six
        assert client.put("/v1/items/new", json={"available": 1}).status_code == 422


def test_feedback_on_served_answers_becomes_labels_and_outlives_the_owner_of_the_log(
    deployed: DeployedService, traffic: Path, tmp_path: Path
) -> None:
    with httpx.Client(base_url=deployed.url, timeout=30) as client:

        def say(reply: dict[str, Any], place: int) -> httpx.Response:
            event = {"request": reply["request"], "item": reply["items"][place]["item"], "labels": {"click": 1}}
            return client.post("/v1/feedback", json=event)

        replies = [client.post("/v1/recommend", json={**ASK, "user": f"user-{i}"}).json() for i in range(12)]
        assert all(reply["logged"] for reply in replies)
        for i, reply in enumerate(replies):
            told = say(reply, i % 5)
            assert (told.status_code, told.json()["outcome"]) == (200, "accepted"), told.text
        assert say(replies[0] | {"request": "0" * 32}, 0).status_code == 404

        keeper = traffic_keeper_of(str(traffic.resolve()), 60)
        os.kill(ray.get(keeper.process.remote()), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (again := say(replies[3], 3)).status_code == 503:  # Ray starts it again; it reads its files
            assert "Retry-After" in again.headers
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert again.json()["outcome"] == "duplicate"
        assert say(replies[4], 0).json()["outcome"] == "accepted"  # on what was decided before
        assert client.post("/v1/recommend", json=ASK).json()["logged"] is True
        (before,) = client.post("/v1/earlier", json={**ASK, "user": "user-3"}).json()["answers"]
        assert (before["request"], before["same_question"]) == (replies[3]["request"], True)
        assert [item["item"] for item in before["items"]] == [item["item"] for item in replies[3]["items"]]
        folder = client.get("/v1/model").json()["logged"]["folder"]
    book, now_ms = traffic / folder, time.time_ns() // 1_000_000
    done = join(book / "decisions", book / "feedback", tmp_path / "joined", JoinConfig(60), now_ms + 61_000)
    clicked = {(number_of(reply["request"]), i % 5) for i, reply in enumerate(replies)} | {
        (number_of(replies[4]["request"]), 0)
    }
    rows = [
        row for split in done.labeled.splits for f in done.labeled.files(split) for row in pq.read_table(f).to_pylist()
    ]
    assert {(row["request"], row["served_position"]) for row in rows if row["click"] == 1} == clicked


def test_an_experiment_is_deployed_without_a_restart_its_shadow_is_logged_and_its_arms_are_compared(
    deployed: DeployedService, parts: Parts, traffic: Path, tmp_path: Path
) -> None:
    late = ModelReference(str(parts.late[1]), "late", "2")
    arms = (Arm("old", 0.5), Arm("new", 0.5, late=late))
    experiment = Experiment("late-test", arms, late)
    deployed.deploy(parts.references(experiment))
    assignment = Assignment("late-test", {"old": 0.5, "new": 0.5})
    drawn = [assignment.arm(f"user-{i}") for i in range(8)]
    with httpx.Client(base_url=deployed.url, timeout=30) as client:
        for user in (f"user-{i}" for i in range(8)):
            reply = client.post("/v1/recommend", json={**ASK, "user": user}).json()
            assert reply["arm"] == assignment.arm(user)
            assert reply["models"]["late"] == ("late/2" if reply["arm"] == "new" else "late/1")
            assert reply["logged"] is True
        clicked = client.post("/v1/recommend", json={**ASK, "user": "user-0"}).json()
        event = {"request": clicked["request"], "item": clicked["items"][0]["item"], "labels": {"click": 1}}
        assert client.post("/v1/feedback", json=event).json()["outcome"] == "accepted"
        deadline = time.monotonic() + 60
        while 'rayrec_shadow_total{outcome="kept"} 9.0' not in (metrics := client.get("/metrics").text):
            assert time.monotonic() < deadline, [line for line in metrics.splitlines() if "shadow" in line]
            time.sleep(0.1)
        assert client.get("/v1/stages").json()["shadow"] == {"late/2": 1}
        for arm, version in (("old", "1"), ("new", "2"), ("all", "1"), ("shadow", "2")):
            reply = client.post("/v1/recommend", json={**ASK, "arm": arm}).json()
            assert (reply["arm"], reply["models"]["late"]) == (arm, f"late/{version}")
            assert "logged" not in reply
    file = tmp_path / "experiment.json"
    file.write_text(to_json(experiment))
    report = compared(CompareArms(traffic, file, window_seconds=60), time.time_ns() // 1_000_000 + 61_000)
    assert {arm: of.users for arm, of in report.arms.arms.items()} == {arm: drawn.count(arm) for arm in ("old", "new")}
    assert (report.arms.drawn_otherwise, report.arms.moved) == (0, 0)
    mine = report.arms.arms[drawn[0]]
    assert mine.decisions == drawn.count(drawn[0]) + 1
    assert mine.tasks["click"].value.value == pytest.approx(1 / mine.decisions)
    (shadow,) = report.shadows.values()
    assert shadow.keys() == {"old", "new"}
    assert shadow[drawn[0]].decisions == drawn.count(drawn[0]) + 1
    assert (shadow["new"].other.value, shadow["new"].overlap.value) == (0, 1)  # it is the same ranker
    deployed.deploy(parts.references())


def test_new_parts_come_into_force_and_after_a_refusal_the_old_ones_when_they_are_deployed_again(
    deployed: DeployedService, parts: Parts, tmp_path: Path
) -> None:
    second = parts.references(retriever=True, early=True, features=True)
    with httpx.Client(base_url=deployed.url, timeout=30) as client:
        before = client.post("/v1/recommend", json=ASK).json()
        try:
            deployed.deploy(second)
            assert same(client.post("/v1/recommend", json=ASK).json(), expected(second, tmp_path / "second", ASK))
            broken = replace(second, late=ModelReference(str(tmp_path / "nothing here"), "late", "3"))
            with pytest.raises(DeploymentError, match="refused retriever/2 early/2 late/3 features/2 and go on with"):
                deployed.deploy(broken)
        finally:
            deployed.deploy(parts.references())
        assert same(client.post("/v1/recommend", json=ASK).json(), before)


@pytest.mark.slow
def test_every_part_is_refreshed_under_load_and_no_answer_is_wrong(
    deployed: DeployedService, parts: Parts, tmp_path: Path
) -> None:
    order = [{}, {"late": True}, {"features": True}, {"early": True}, {"retriever": True}]
    steps = [parts.references(**{k: True for step in order[: i + 1] for k in step}) for i in range(len(order))]
    right = {
        tuple(sorted(plain["models"].items())): plain
        for i, references in enumerate(steps)
        for plain in [expected(references, tmp_path / str(i), ASK)]
    }
    stop, answers, failed = threading.Event(), [], []

    def load() -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                answer = client.post(f"{deployed.url}/v1/recommend", json=ASK)
                (answers if answer.status_code == 200 else failed).append(answer)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for references in steps:
            deployed.deploy(references)
            before = len(answers)
            while len(answers) < before + 12:
                time.sleep(0.02)
        with pytest.raises(DeploymentError, match="refused"):
            deployed.deploy(replace(steps[-1], late=ModelReference(str(tmp_path / "nothing here"), "late", "3")))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[0].text
    seen = set()
    for answer in answers:
        versions = tuple(sorted(answer.json()["models"].items()))
        assert versions in right, versions
        assert same(answer.json(), right[versions])
        seen.add(versions)
    assert seen == right.keys()


@pytest.mark.slow
def test_a_killed_replica_of_a_stage_costs_time_or_a_503_and_no_answer_is_wrong(
    deployed: DeployedService, parts: Parts, tmp_path: Path
) -> None:
    references = parts.references()
    deployed.deploy(references)
    right = expected(references, tmp_path, ASK)
    stop, answers = threading.Event(), []

    def load() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                answers.append(client.post(f"{deployed.url}/v1/recommend", json={**ASK, "deadline_ms": 30_000}))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for name in ("Early", "Retrieve"):
            kill_replica(name)
            before, deadline = len(answers), time.monotonic() + 120
            while sum(answer.status_code == 200 for answer in answers[before + 3 :]) < 6:
                assert time.monotonic() < deadline, [answer.text for answer in answers[before:]][:3]
                time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
        elif not answer.json()["late"]:
            assert same(answer.json(), right)


@pytest.mark.slow
def test_a_version_comes_into_force_while_a_stage_is_being_started_again(
    deployed: DeployedService, parts: Parts
) -> None:
    deployed.deploy(parts.references())
    kill_replica("Retrieve")
    deployed.deploy(parts.references(late=True))
    answer = httpx.post(f"{deployed.url}/v1/recommend", json={**ASK, "deadline_ms": 30_000}, timeout=60)
    assert answer.json()["models"]["late"] == "late/2"


def kill_replica(stage: str) -> None:
    """The only one."""
    (pid,) = [
        p.pid
        for p in psutil.Process().children(recursive=True)
        if f"ServeReplica:cascade:{stage}" in " ".join(p.cmdline())
    ]
    os.kill(pid, signal.SIGKILL)
