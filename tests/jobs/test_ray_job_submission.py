"""Every job is also a Ray job: submitted with ``ray job submit`` to a real local cluster, token authentication on."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rayrec.families.ranker.bundle import load_bundle

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]

    def submit(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, asked again while the new cluster's job agent is still starting (seconds on a busy machine)."""
        ray = Path(sys.executable).parent / "ray"
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                [str(ray), "job", "submit", "--address", self.address, "--working-dir", str(ROOT), "--", *command],
                env={**self.environment, **environment},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head of its own: own ports, own token, own short folder (socket paths are limited to 107 bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="rr-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    runs = tmp_path_factory.mktemp("runs")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAYREC_RUNS": str(runs),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    port, dashboard = free_port(), free_port()
    ray = Path(sys.executable).parent / "ray"
    head = subprocess.Popen(
        [
            str(ray), "start", "--head", "--block", "--port", str(port), "--dashboard-host", "127.0.0.1",
            "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(free_port()),
            "--ray-client-server-port", str(free_port()), "--num-cpus", "4",
            "--object-store-memory", "200000000", "--temp-dir", str(folder / "ray"), "--disable-usage-stats",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{address}/api/version", timeout=2)
                break
            except httpx.TransportError:
                assert head.poll() is None, "the Ray head ended"
                assert time.monotonic() < deadline, "the Ray head did not come up within two minutes"
                time.sleep(0.3)
        yield Cluster(address, environment)
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_training_job_leaves_a_bundle(cluster: Cluster, small_log: Path) -> None:
    done = cluster.submit(
        "python", "-m", "jobs.train", "ranker", "--name", "submitted", "--log", str(small_log),
        "--loop.epochs", "1", "--stream.batch-size", "512",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    bundle = load_bundle(Path(cluster.environment["RAYREC_RUNS"]) / "submitted" / "bundle")
    assert bundle.metadata.metrics["test"]["click"]["auc"] > 0.5


def test_a_client_without_the_token_is_turned_away(cluster: Cluster) -> None:
    other = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).with_name("other")
    other.touch(mode=0o600)
    other.write_text(secrets.token_hex(32))
    done = cluster.submit("python", "-c", "print('in')", RAY_AUTH_TOKEN_PATH=str(other))
    assert done.returncode != 0
    assert httpx.get(f"{cluster.address}/api/jobs/").status_code in (401, 403)
