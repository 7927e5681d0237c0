"""A real Ray Train run whose worker is killed, and then its driver."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rayrec.data.log.streams import StreamConfig
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.training.checkpoint import read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter
from rayrec.training.worker import RunOptions, Worker

ROOT = Path(__file__).parents[2]
# Of the run that is killed: 748 steps, of which some 250 are done when its driver ends.
EPOCHS, BATCH, EVERY = 4, 64, 50


@pytest.mark.parametrize(
    "again", [["--in-process"], pytest.param([], marks=pytest.mark.slow)], ids=["in_process", "over_ray"]
)
def test_a_run_survives_the_kill_of_a_worker_and_then_of_the_driver(
    runs: Path, small_log: Path, tmp_path: Path, again: list[str]
) -> None:
    experiment = RankerExperiment(
        log=small_log,
        loop=LoopConfig(epochs=EPOCHS, checkpoint_every_steps=EVERY, patience=None),
        stream=StreamConfig(batch_size=BATCH),
    )
    command = [
        sys.executable, "-m", "jobs.train", "ranker", "--name", "killed", "--log", str(small_log),
        "--loop.epochs", str(EPOCHS), "--loop.checkpoint-every-steps", str(EVERY), "--loop.patience", "None",
        "--running.threads", "1", "--running.progress-seconds", "0.5", "--stream.batch-size", str(BATCH),
    ]  # fmt: skip
    (scratch := tmp_path / "scratch").mkdir()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)}
    environment.pop("RAY_ADDRESS", None)
    output = tmp_path / "output.txt"
    with output.open("w") as stream:
        driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            # The third checkpoint: reports go one by one, so the first ones are known to Ray Train by now.
            first = _wait_for(lambda: (step := _newest_step(runs) or 0) >= 3 * EVERY and step, driver, output)
            worker = next(
                p for p in psutil.Process(driver.pid).children(recursive=True) if "RayTrainWorker" in p.name()
            )
            worker.kill()
            _wait_for(lambda: "going on from step" in output.read_text(), driver, output)
            _wait_for(lambda: (_newest_step(runs) or 0) > (first or 0) + EVERY, driver, output)
            family = psutil.Process(driver.pid).children(recursive=True)
            agents = [process for process in family if process.name().endswith("Agent")]
            driver.send_signal(signal.SIGKILL)
        finally:
            driver.kill()
            driver.wait()
    # Ray's agents may take half a minute to notice; those that write into the run's folder do not.
    left = psutil.wait_procs([process for process in family if process not in agents], timeout=30)[1]
    assert not left
    interrupted_at = _newest_step(runs)
    assert interrupted_at is not None
    assert interrupted_at < EPOCHS * (12_000 // BATCH), "the run had ended before its driver was killed"

    done = subprocess.run(
        [*command, *again], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "going on from step" in done.stdout + done.stderr
    assert not list(scratch.glob("checkpoint_tmp_*")), "a restart left a copy of its checkpoint"
    assert again or not list(scratch.glob(".rayrec-checkpoint*")), "what the killed ones were writing was left"
    metrics = load_bundle(runs / "killed" / "bundle").metadata.metrics

    undisturbed = FolderReporter(tmp_path / "undisturbed")
    train_here(
        experiment, undisturbed, worker=Worker(options=RunOptions(1, reader="in_process")), say=lambda text: None
    )
    latest = undisturbed.latest()
    assert latest is not None
    for split, tasks in read_progress(latest).evaluations.items():
        for task, expected in tasks.items():
            assert metrics[split][task]["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)


def _newest_step(runs: Path) -> int | None:
    """Step of the newest checkpoint of the run."""
    steps = []
    for file in (runs / "killed" / "train").glob("checkpoint_*/progress.json"):
        try:
            steps.append(json.loads(file.read_text())["step"])
        except (OSError, ValueError):  # being written, or just removed
            continue
    return max(steps, default=None)


def _wait_for(condition: Callable[[], object], driver: "subprocess.Popen[bytes]", output: Path) -> int | None:
    deadline = time.monotonic() + 300
    while True:
        found = condition()
        if found:
            return found if isinstance(found, int) else None
        assert driver.poll() is None, "the driver ended early:\n" + output.read_text()[-3000:]
        assert time.monotonic() < deadline, "nothing happened for five minutes:\n" + output.read_text()[-3000:]
        time.sleep(0.1)
