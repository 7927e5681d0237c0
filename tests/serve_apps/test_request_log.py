"""Each request has an id, in its reply and in a line of the log, and a log that cannot be written costs no answer."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fastapi.testclient import TestClient

from rayrec.data.log import Log
from serve_apps.example_request import example_request
from serve_apps.ranker.api import build_app
from serve_apps.ranker.application import RankerService
from serve_apps.ranker.request import RankRequest
from serve_apps.ranker.served import Ranked, ServedRanker
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.refusals import Unavailable
from serve_apps.service.request_log import GIVEN_HEADER, REQUEST_ID_HEADER
from tests.serve_apps.conftest import InProcess

ID = re.compile(r"[0-9a-f]{32}")


def client_of(ranker: ServedRanker, folder: Path | None) -> TestClient:
    limits = RankerService(request_log=None if folder is None else str(folder))
    return TestClient(build_app(InProcess(ranker), ServingMetrics(), limits), base_url="http://127.0.0.1")


@pytest.fixture
def body(small_log: Path) -> dict[str, Any]:
    return example_request(Log.open(small_log), candidates=3)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


def test_a_reply_bears_the_id_of_its_request_or_a_new_one(ranker: ServedRanker) -> None:
    client = client_of(ranker, None)

    def asked(given: str) -> str:
        headers = {GIVEN_HEADER: given.encode("latin-1")}
        return client.get("/healthz", headers=headers).headers[REQUEST_ID_HEADER]

    assert asked("order-17:a_b.C") == "order-17:a_b.C"
    for given in ("", "a" * 129, 'a"b', "a b", "a/b", "<x>", "näh"):
        assert ID.fullmatch(asked(given)), given
    assert len({client.get("/healthz").headers[REQUEST_ID_HEADER] for _ in range(5)}) == 5


def test_the_log_tells_of_each_request_what_became_of_it_and_nothing_of_its_content(
    ranker: ServedRanker, body: dict[str, Any], tmp_path: Path
) -> None:
    client = client_of(ranker, tmp_path / "log")
    secret = {"authorization": "Bearer secret-token"}
    assert client.post("/v1/rank", json=body, headers={GIVEN_HEADER: "one", **secret}).status_code == 200
    assert client.post("/v1/rank", json={"candidates": "secret-value"}).status_code == 422
    assert client.get("/secret-path?secret=1", headers={GIVEN_HEADER: "three"}).status_code == 404
    ranked, refused, lost = lines_of(tmp_path / "log")
    assert {k: ranked[k] for k in ("id", "method", "path", "status", "model")} == {
        "id": "one",
        "method": "POST",
        "path": "/v1/rank",
        "status": 200,
        "model": "small/1",
    }
    assert 0 < ranked["ms"] < 60_000
    assert abs(datetime.fromisoformat(ranked["time"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert (refused["path"], refused["status"]) == ("/v1/rank", 422)
    assert ID.fullmatch(refused["id"])
    assert (lost["id"], lost["path"], lost["status"]) == ("three", "other", 404)
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "log").iterdir())


def test_the_log_and_the_metrics_tell_what_failed_a_request_and_call_no_refusal_a_failure(
    ranker: ServedRanker, body: dict[str, Any], tmp_path: Path
) -> None:
    class Failing(InProcess):
        failing: ClassVar[list[Exception]] = [
            ZeroDivisionError("of secret-value"),
            Unavailable("full", "Full; try again", 1),
        ]

        async def ask(self, ranker: ServedRanker, request: RankRequest) -> Ranked:
            raise self.failing.pop(0)

    limits = RankerService(request_log=str(tmp_path))
    app = build_app(Failing(ranker), ServingMetrics(), limits)
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    assert client.post("/v1/rank", json=body, headers={GIVEN_HEADER: "one"}).status_code == 500
    assert client.post("/v1/rank", json=body, headers={GIVEN_HEADER: "two"}).status_code == 503
    assert client.post("/v1/rank", json={}).status_code == 422
    broken, full, wrong = lines_of(tmp_path)
    assert (broken["id"], broken["status"], broken["error"]) == ("one", 500, "ZeroDivisionError")
    assert (full["id"], full["status"], full["error"]) == ("two", 503, "full")
    assert "error" not in wrong
    assert "secret-value" not in str(broken)
    counted = re.findall(r"^rayrec_errors_total(\{.*\} \S+)", client.get("/metrics").text, re.MULTILINE)
    assert counted == [
        '{kind="ZeroDivisionError",path="/v1/rank"} 1.0',
        '{kind="full",path="/v1/rank"} 1.0',
    ]


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_log_whose_disk_is_full_is_counted_and_costs_no_answer(ranker: ServedRanker, small_disk: Path) -> None:
    client = client_of(ranker, small_disk / "log")
    assert client.get("/healthz").status_code == 200
    filled = small_disk / "filled"
    with pytest.raises(OSError, match="No space"):
        filled.write_bytes(bytes(2 * 2**20))
    asked = [client.get("/healthz", headers={GIVEN_HEADER: f"full-{i}"}).status_code for i in range(60)]
    assert asked == [200] * 60
    counted = re.search(r"^rayrec_request_log_lines_lost_total (\S+)", client.get("/metrics").text, re.MULTILINE)
    assert counted is not None
    assert float(counted[1]) > 0
    filled.unlink()
    assert client.get("/healthz", headers={GIVEN_HEADER: "room-again"}).status_code == 200
    assert any(line["id"] == "room-again" for line in lines_of(small_disk / "log"))
