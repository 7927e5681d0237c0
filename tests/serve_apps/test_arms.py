"""Arms and a shadow ranker in a cascade without Ray: who is answered by whom, and that what is watched is not felt."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from fastapi import FastAPI

from jobs.serve_cascade import ExperimentFile, Running
from rayrec.traffic.assignment import Assignment
from rayrec.traffic.decisions import decision_tables
from rayrec.typed_json import ConfigError, from_plain, to_plain
from serve_apps.cascade.api import build_cascade_app
from serve_apps.cascade.application import CascadeService
from serve_apps.cascade.stages import RankAsk, RankingStage, Scored, StageError
from serve_apps.cascade.traffic import TrafficOptions
from serve_apps.cascade.versions import Arm, CascadeReferences, Experiment
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import VersionError
from tests.serve_apps.cascade_parts import Parts, PlainStages, served_cascade
from tests.serve_apps.local_traffic import LocalTraffic, WithTraffic
from tests.serve_apps.test_cascade import ASK, Slowed, post
from tests.serve_apps.test_serve_cascade import Deployed

USERS = [f"user-{i}" for i in range(12)]
SHARES = {"old": 0.5, "new": 0.5}


def second(parts: Parts, part: str) -> ModelReference:
    return ModelReference(str(getattr(parts, part)[1]), part, "2")


def experiment(parts: Parts, **changed: Any) -> Experiment:
    arms = (Arm("old", 0.5), Arm("new", 0.5, late=second(parts, "late")))
    return Experiment("late-test", **{"arms": arms, "shadow": second(parts, "late"), **changed})


class Service:
    """With stages of a references and an owner of its traffic."""

    def __init__(self, references: CascadeReferences, folder: Path, slow: Any = None) -> None:
        self.stages = PlainStages(references, folder / "state")
        self.owner = LocalTraffic(folder / "traffic")
        self.cascade = served_cascade(references, self.stages, "late")
        self.service = WithTraffic(self.cascade, self.stages if slow is None else slow(self.stages), self.owner)
        self.app: FastAPI = build_cascade_app(self.service, ServingMetrics(), ServiceLimits(), feedback=True)
        self.folder = folder

    def ask(self, body: dict[str, Any], wait_for: int = 0) -> dict[str, Any]:
        """wait_for: so many answers that the shadow has ended with."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                reply = await client.post("/v1/recommend", json=body)
            while len(self.service.shadow) < wait_for:
                await asyncio.sleep(0.01)
            return reply

        reply = asyncio.run(send())
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def logged(self, shadow: bool = False) -> pa.Table:
        folders = [f for f in self.folder.glob("traffic/*/decisions") if ("-shadow-" in f.parts[-2]) == shadow]
        return pa.concat_tables([table for folder in folders for table in decision_tables(folder)])


def test_each_user_is_answered_by_the_rankers_of_the_arm_that_its_name_draws(parts: Parts, tmp_path: Path) -> None:
    both = Service(parts.references(experiment(parts, shadow=None)), tmp_path / "both")
    alone = {
        "old": Service(parts.references(), tmp_path / "old"),
        "new": Service(parts.references(late=True), tmp_path / "new"),
    }
    assignment, seen = Assignment("late-test", SHARES), Counter[str]()
    for user in USERS:
        reply, arm = both.ask({**ASK, "user": user}), assignment.arm(user)
        expected = alone[arm].ask({**ASK, "user": user})
        assert reply["arm"] == arm
        assert [i["item"] for i in reply["items"]] == [i["item"] for i in expected["items"]]
        assert reply["items"][0]["scores"] == pytest.approx(expected["items"][0]["scores"])
        assert reply["models"] == expected["models"]
        assert "arm" not in expected
        seen[arm] += 1
    assert seen.keys() == SHARES.keys()
    nobody = both.ask(ASK)
    assert "arm" not in nobody
    assert nobody["models"]["late"] == "late/1"
    rows = both.logged().to_pylist()
    for row in rows:
        user = row["served_user_name"]
        assert row["served_arm"] == ("all" if user is None else assignment.arm(user))
        late = json.loads(row["served_models"])["late"]
        assert late == ("late/2" if row["served_arm"] == "new" else "late/1")
    assert post(both.app, None, "/v1/model").json()["arms"] == SHARES


def test_a_decision_of_rankers_that_are_not_the_arms_counts_for_no_arm(parts: Parts, tmp_path: Path) -> None:
    """As while an experiment is deployed: the stage has not heard of the arm yet."""

    class Behind(Slowed):
        async def rank(self, stage: RankingStage, ask: RankAsk) -> Any:
            return await self._stages.rank(stage, replace(ask, arm=""))

    service = Service(parts.references(experiment(parts, shadow=None)), tmp_path, lambda stages: Behind(stages, ""))
    arms = {user: service.ask({**ASK, "user": user})["arm"] for user in USERS}
    assignment = Assignment("late-test", SHARES)
    assert arms == {user: "old" if assignment.arm(user) == "old" else "mixed" for user in USERS}


def test_a_shadow_scores_what_the_late_ranker_scores_and_changes_no_answer(parts: Parts, tmp_path: Path) -> None:
    watched = Service(parts.references(experiment(parts, arms=())), tmp_path / "watched")
    plain = Service(parts.references(), tmp_path / "plain")
    new = Service(parts.references(late=True), tmp_path / "new")
    reply, expected = watched.ask({**ASK, "trace": True}, wait_for=1), plain.ask({**ASK, "trace": True})
    for name in ("items", "trace", "models", "late"):
        assert reply[name] == expected[name]
    assert watched.service.shadow == ["kept"]
    scores = {r["item"]: r["scores"]["late"] for r in new.ask({**ASK, "trace": True})["trace"] if "late" in r["scores"]}
    rows = watched.logged(shadow=True).to_pylist()
    assert {row["served_item"]: row["served_score_shadow"] for row in rows} == pytest.approx(scores)
    assert {row["served_item"]: row["served_predicted_click"] for row in rows} == pytest.approx(scores)
    assert {row["served_request"] for row in rows} == {reply["request"]}
    assert {row["served_position"] for row in rows} == {-1}
    assert {row["served_models"] for row in rows} == {'{"shadow": "late/2"}'}
    event = {"request": reply["request"], "item": reply["items"][0]["item"], "labels": {"click": 1}}
    assert post(watched.app, event, "/v1/feedback").json()["outcome"] == "accepted"  # in the book of what was shown


class Shadowed(Slowed):
    """Stages whose shadow does what it is told to."""

    async def rank(self, stage: RankingStage, ask: RankAsk) -> Any:
        if stage != "shadow":
            return await self._stages.rank(stage, ask)
        if self._slow == "stuck":
            await asyncio.sleep(60)
        if self._slow == "away":
            raise StageError("shadow", "died")
        if self._slow == "broken":
            raise RuntimeError("a model on trial")
        found = await self._stages.rank(stage, ask)
        assert isinstance(found, Scored)
        return replace(found, scores=found.scores[:1])  # a wrong shape


@pytest.mark.parametrize("trouble", ["stuck", "away", "broken", "wrong"])
def test_a_shadow_that_fails_or_does_not_answer_is_not_felt(parts: Parts, tmp_path: Path, trouble: str) -> None:
    references = parts.references(experiment(parts, arms=()))
    service = Service(references, tmp_path / "shadow", lambda stages: Shadowed(stages, trouble))
    plain = Service(parts.references(), tmp_path / "plain").ask(ASK)
    reply = service.ask(ASK, wait_for=0 if trouble == "stuck" else 1)
    assert reply["items"] == plain["items"]
    assert reply["logged"] is True
    assert service.service.shadow == ([] if trouble == "stuck" else ["failed"])
    assert len(service.logged()) == 39


def test_an_arm_that_is_asked_for_answers_whoever_asks_as_it_answers_its_own_users(
    parts: Parts, tmp_path: Path
) -> None:
    both = Service(parts.references(experiment(parts)), tmp_path / "both")
    alone = {
        False: Service(parts.references(), tmp_path / "1"),
        True: Service(parts.references(late=True), tmp_path / "2"),
    }
    for arm, second_late in (("old", False), ("all", False), ("new", True), ("shadow", True)):
        expected = alone[second_late].ask({**ASK, "trace": True})
        for user in (None, *USERS[:3]):
            reply = both.ask({**ASK, "user": user, "arm": arm, "trace": True})
            assert (reply["arm"], reply["models"]["late"]) == (arm, f"late/{1 + second_late}")
            assert [i["item"] for i in reply["items"]] == [i["item"] for i in expected["items"]]
            assert reply["trace"] == expected["trace"]
    assert alone[True].ask(ASK)["items"] != alone[False].ask(ASK)["items"]


def test_an_arm_that_was_asked_for_leaves_no_trace_in_log_shadow_and_calibration(parts: Parts, tmp_path: Path) -> None:
    service = Service(parts.references(experiment(parts)), tmp_path)
    for arm in ("old", "new", "all", "shadow"):
        reply = service.ask({**ASK, "user": USERS[0], "arm": arm})
        assert "logged" not in reply
        event = {"request": reply["request"], "item": reply["items"][0]["item"], "labels": {"click": 1}}
        assert post(service.app, event, "/v1/feedback").status_code == 404
    assert list(tmp_path.glob("traffic/*/decisions/*")) == []
    assert service.service.shadow == []
    metrics = post(service.app, None, "/metrics").text
    for name in ("rayrec_decisions_total", "rayrec_shown_items_total", "rayrec_predictions_total"):
        assert not [line for line in metrics.splitlines() if line.startswith(f"{name}{{")], name
    service.ask({**ASK, "user": USERS[0]}, wait_for=1)  # drawn, not asked for: it counts
    assert set(service.logged()["served_arm"].to_pylist()) == {Assignment("late-test", SHARES).arm(USERS[0])}


def test_an_arm_that_there_is_not_is_a_422_that_names_those_there_are(parts: Parts, tmp_path: Path) -> None:
    plain = Service(parts.references(), tmp_path / "plain")
    tried = Service(parts.references(experiment(parts)), tmp_path / "tried")
    for service, arm, have in (
        (plain, "shadow", "all"),
        (tried, "mixed", "all, old, new, shadow"),
        (tried, "x", "all, old, new, shadow"),
    ):
        reply = post(service.app, {**ASK, "arm": arm})
        assert reply.status_code == 422
        (problem,) = reply.json()["detail"]
        assert problem["loc"] == ["body", "arm"]
        assert problem["msg"] == f"There is no arm {arm!r} now; there are {have}"
    assert post(tried.app, None, "/v1/model").json()["shadow"] == "late/2"
    assert post(plain.app, None, "/v1/model").json()["shadow"] is None


def test_a_shadow_that_is_asked_for_and_late_is_told_as_the_late_stage(parts: Parts, tmp_path: Path) -> None:
    service = Service(parts.references(experiment(parts)), tmp_path, lambda stages: Shadowed(stages, "stuck"))
    reply = service.ask({**ASK, "arm": "shadow", "deadline_ms": 300})
    assert (reply["late"], reply["arm"]) == (["late"], "shadow")
    assert "late" not in reply["models"]
    away = Service(parts.references(experiment(parts)), tmp_path / "away", lambda stages: Shadowed(stages, "away"))
    assert post(away.app, {**ASK, "arm": "shadow"}).status_code == 503


@pytest.mark.parametrize(
    ("arms", "wrong"),
    [
        ([{"name": "a", "share": -1}], "must be 0 or more"),
        ([{"name": "a", "share": 0}], "no arm has a weight above 0"),
        ([{"name": "a", "share": 1}, {"name": "a", "share": 1}], "cannot be named 'a'"),
        ([{"name": "mixed", "share": 1}], "cannot be named 'mixed'"),
        ([{"name": "shadow", "share": 1}], "cannot be named 'shadow'"),
        ([{"name": "", "share": 1}], "cannot be named ''"),
        ([{"name": f"a{i}", "share": 1} for i in range(17)], "17 arms, at most 16"),
        ([{"name": "a", "share": 1, "middle": {"model": "x"}}], "middle"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_in_one_line(arms: list[dict[str, Any]], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong) as refused:
        from_plain(Experiment, {"name": "e", "arms": arms}, "e.json")
    assert "\n" not in str(refused.value)


def test_references_with_an_experiment_survive_the_way_through_a_config_file(parts: Parts) -> None:
    references = parts.references(experiment(parts))
    assert from_plain(CascadeReferences, to_plain(references)) == references
    assert references.label == ("retriever/1 early/1 late/1 features/1 late-test old new:late/2 shadow:late/2")
    assert [references.stage_label(stage) for stage in ("early", "late", "shadow")] == [
        "early/1", "late/1 late/2", "late/2"
    ]  # fmt: skip


def test_an_experiment_with_a_shadow_needs_a_process_for_it(parts: Parts) -> None:
    references = parts.references(experiment(parts))
    with pytest.raises(VersionError, match="no process for it: set traffic"):
        CascadeService().check(references)
    with pytest.raises(ValueError, match="kept in the traffic folder"):
        TrafficOptions(shadow_replicas=1)
    service = CascadeService(traffic=TrafficOptions("traffic", shadow_replicas=1))
    service.check(references)
    assert service.deployed == ("Cascade", "Retrieve", "Early", "Late", "Shadow")


def test_a_changed_file_is_deployed_and_a_wrong_one_changes_nothing(parts: Parts, tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(to_plain(experiment(parts, shadow=None))))
    deployed: Any = Deployed(CascadeService(state_folder=str(tmp_path / "state")))
    watched = ExperimentFile(file)
    running = Running(deployed, parts.references(watched.experiment))
    assert watched.look(running) == ""
    assert not deployed.deployed
    file.write_text(json.dumps({"name": "late-test", "arms": [{"name": "old", "share": 1}]}))
    assert watched.look(running) == ""
    assert [r.experiment for r in deployed.deployed] == [Experiment("late-test", (Arm("old", 1),))]
    for wrong, why in (
        ('{"name": 3}', "name"),
        (
            json.dumps({"name": "e", "arms": [{"name": "a", "share": 1, "late": {"model": str(tmp_path)}}]}),
            "config.json is missing",
        ),
        (json.dumps({"name": "e", "shadow": {"model": str(parts.late[0])}}), "no process for it"),
    ):
        file.write_text(wrong)
        assert why in watched.look(running), why
        assert why in watched.look(running)  # told again, not tried again
    assert len(deployed.deployed) == 1
    assert deployed.refusals == 3
    assert running.references.experiment == Experiment("late-test", (Arm("old", 1),))
