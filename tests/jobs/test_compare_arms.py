"""The job that compares arms, on a folder that a service could have written."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs import compare_arms
from jobs.compare_arms import CompareArms, compared
from rayrec.errors import UserError
from rayrec.traffic.assignment import Assignment
from rayrec.typed_json import ConfigError
from tests.traffic.test_comparing_arms import EQUAL, Traffic, watched

NOW_MS = 2 * 86_400_000


@pytest.fixture
def traffic(tmp_path: Path) -> Iterator[Traffic]:
    with ExitStack() as stack:
        yield Traffic(tmp_path / "traffic", stack)


def experiment_file(folder: Path, shares: dict[str, float]) -> Path:
    file = folder / "experiment.json"
    arms = [{"name": name, "share": share} for name, share in shares.items()]
    file.write_text(json.dumps({"name": "e", "arms": arms}))
    return file


def fill(traffic: Traffic, lost: int = 0) -> None:
    """Of 60 users as they are drawn; of the arm "new" the first ``lost`` are missing. A third of them click."""
    for i in range(60):
        user, request = f"user-{i}", f"r{i}"
        arm = Assignment("e", EQUAL).arm(user)
        if arm == "new" and i < lost:
            continue
        watched(traffic, traffic.decide(request, user, arm), [0.9, 0.1, 0.8, 0.0])
        if i % 3 == 0:
            traffic.say(request, 0, click=1)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare_arms", *map(str, arguments)])
    try:
        compare_arms.main()
    except SystemExit as ended:
        return int(str(ended.code))
    return 0


def test_the_job_prints_arms_split_and_shadow_and_writes_them_as_json(
    traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(traffic)
    file, report = experiment_file(tmp_path, EQUAL), tmp_path / "report.json"
    assert run(monkeypatch, traffic.folder, "--experiment", file, "--report", report) == 0
    told = capsys.readouterr()
    assert told.err == ""
    plain = json.loads(report.read_text())
    arms = plain["arms"]["arms"]
    assert arms["old"]["users"] + arms["new"]["users"] == 60
    assert sum(arm["decisions"] * arm["tasks"]["click"]["value"]["value"] for arm in arms.values()) == pytest.approx(20)
    assert f"split: users found (expected): old {arms['old']['users']} (30.0)" in told.out
    assert "less old" in told.out
    assert plain["shadows"]["shadow"]["new"]["other"]["value"] == 1
    assert "would show others" in told.out


def test_a_split_that_is_not_as_configured_is_told_loudly_and_by_the_exit_code(
    traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(traffic, lost=50)
    assert run(monkeypatch, traffic.folder, "--experiment", experiment_file(tmp_path, EQUAL)) == 3
    assert "WARNING: the users are not split as configured" in capsys.readouterr().err
    assert run(monkeypatch, traffic.folder) == 0
    assert "split: not checked; name the experiment's file by --experiment" in capsys.readouterr().out


def test_only_decisions_since_a_time_whose_window_has_closed_count(traffic: Traffic) -> None:
    for i, time_ms in enumerate((1_000, 60_000, NOW_MS - 1_000)):
        for arm in EQUAL:
            traffic.decide(f"{arm}{i}", f"{arm}-{i}", arm, time_ms=time_ms)
    since = compared(CompareArms(traffic.folder, since="1970-01-01T00:01"), NOW_MS)
    assert [arm.users for arm in since.arms.arms.values()] == [1, 1]
    assert [arm.users for arm in compared(CompareArms(traffic.folder), NOW_MS).arms.arms.values()] == [2, 2]
    everything = compared(CompareArms(traffic.folder, window_seconds=0, control="old"), NOW_MS)
    assert [arm.users for arm in everything.arms.arms.values()] == [3, 3]


def test_what_cannot_be_compared_is_refused_in_one_line(traffic: Traffic, tmp_path: Path) -> None:
    traffic.decide("r", "ann", "all")
    with pytest.raises(ConfigError, match="no decision of an arm of an experiment"):
        compared(CompareArms(traffic.folder), NOW_MS)
    with pytest.raises(ConfigError, match="since must be a time such as"):
        compared(CompareArms(traffic.folder, since="monday"), NOW_MS)
    with pytest.raises(ConfigError, match=r"nowhere\.json: there is no such file"):
        compared(CompareArms(traffic.folder, tmp_path / "nowhere.json"), NOW_MS)
    (tmp_path / "empty.json").write_text('{"name": "e"}')
    with pytest.raises(ConfigError, match="has no arms to compare"):
        compared(CompareArms(traffic.folder, tmp_path / "empty.json"), NOW_MS)
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UserError, match=r"report\.json: is a folder"):
        compared(CompareArms(traffic.folder, report=tmp_path / "report.json"), NOW_MS)
    for wrong in ({"level": 1.0}, {"window_seconds": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            CompareArms(traffic.folder, **wrong)  # type: ignore[arg-type]
