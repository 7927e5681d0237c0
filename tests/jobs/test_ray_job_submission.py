"""Every job is also a Ray job: submitted with ``ray job submit`` to a real local cluster, token authentication on."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from rayrec.families.ranker.bundle import load_bundle

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]

    def submit(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, as docs/cluster.md has it."""
        return subprocess.run(
            ["ray", "job", "submit", "--working-dir", str(ROOT), "--", *command],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """What ``make cluster`` starts, from an own runs folder, and a shell that has read its ``env``."""
    runs = tmp_path_factory.mktemp("runs")
    others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "RAYREC_RUNS"}
    command = [sys.executable, "-m", "jobs.cluster"]
    started = subprocess.run(
        [*command, "start", "--object-store-mb", "200"], cwd=ROOT, env={**others, "RAYREC_RUNS": str(runs)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    shell = subprocess.run(
        ["bash", "-c", f". {runs}/cluster/env && env -0"], env=others, capture_output=True, text=True, check=True
    )
    environment = dict(line.partition("=")[::2] for line in shell.stdout.split("\0") if line)
    yield Cluster(environment["RAY_API_SERVER_ADDRESS"], environment)
    stopped = subprocess.run([*command, "stop"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90)
    assert stopped.returncode == 0, stopped.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(environment["RAY_API_SERVER_ADDRESS"])
    assert not (runs / "cluster" / "token").exists()


def test_a_submitted_training_job_leaves_a_bundle(cluster: Cluster, small_log: Path) -> None:
    done = cluster.submit(
        "python", "-m", "jobs.train", "ranker", "--name", "submitted", "--log", str(small_log),
        "--loop.epochs", "1", "--stream.batch-size", "512",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    bundle = load_bundle(Path(cluster.environment["RAYREC_RUNS"]) / "submitted" / "bundle")
    assert bundle.metadata.metrics["test"]["click"]["auc"] > 0.5


def test_an_own_head_steps_back_for_nothing_else_and_watches_for_no_preemption(cluster: Cluster) -> None:
    head = json.loads((Path(cluster.environment["RAYREC_RUNS"]) / "cluster" / "cluster.json").read_text())
    family = psutil.Process(head["pid"]).children(recursive=True)
    workers = [process.nice() for process in family if process.name().startswith("ray::IDLE")]
    assert workers
    assert set(workers) == {psutil.Process().nice()}
    assert psutil.Process(head["pid"]).environ()["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"


def test_a_client_without_the_token_is_turned_away(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch(mode=0o600)
    other.write_text(secrets.token_hex(32))
    done = cluster.submit("python", "-c", "print('in')", RAY_AUTH_TOKEN_PATH=str(other))
    assert done.returncode != 0
    assert httpx.get(f"{cluster.address}/api/jobs/").status_code in (401, 403)


def test_a_second_head_of_the_same_runs_folder_is_refused_and_the_token_is_the_users_alone(cluster: Cluster) -> None:
    again = subprocess.run(
        [sys.executable, "-m", "jobs.cluster", "start"],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 1
    assert again.stderr.strip() == (
        f"error: a cluster runs already at {cluster.address}; stop it with python -m jobs.cluster stop"
    )
    assert Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600
