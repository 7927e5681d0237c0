"""The simulate job as a user runs it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.command_line import read
from jobs.simulate import Simulate, main, run
from rayrec.data.log import Log
from rayrec.data.simulation import FunnelConfig, SimulatedLogs

SMALL = ("--requests", "600", "--world.users", "200", "--world.ads", "200", "--world.campaigns", "100")


def test_flags_set_the_world_the_funnel_and_the_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--out", str(tmp_path / "ads"), *SMALL, "--funnel.pool", "30", "--funnel.slots", "3", "--seed", "4"]
    command = read(Simulate, arguments=[*flags, "--unlabeled-share", "1"])
    logs = run(command)
    assert logs == SimulatedLogs.open(tmp_path / "ads")
    assert logs.summary.config.funnel == FunnelConfig(pool=30, slots=3)
    assert Log.open(logs.labeled).rows("train") == 480 * 3
    printed = capsys.readouterr().out
    assert "18,000 candidates in" in printed
    assert "labeled            1,440         180         180" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--funnel.slots", "50"], "a funnel narrows"), (["--out", "."], "error: .: exists already")],
)
def test_bad_input_is_refused_with_the_reason(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simulate", "--out", "ads", *SMALL, *flags])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code not in (0, None)
    assert message in str(stop.value.code) + capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_job_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.simulate", "--out", str(tmp_path / "ads"), "--requests", "2000000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as job:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".ads.*.partial/.labeled.*.partial")) and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 143
    assert list(tmp_path.iterdir()) == []
