"""What can fail around a cascade that runs in this process: its processes, the disk of its log, MLflow's server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import psutil

from benchmarks.serving import free_port
from rayrec.training.tracking import Tracker

_DISK_MB = 256


@dataclass
class World:
    """What can fail."""

    store: "Store"
    disk: Path

    def kill(self, process: str) -> None:
        """One process of a deployment, or the owner of the traffic log."""
        titles = (f"ServeReplica:cascade:{process}", f"ray::{process}")
        found = [
            p for p in psutil.Process().children(recursive=True) if any(t in " ".join(p.cmdline()) for t in titles)
        ]
        os.kill(found[0].pid, signal.SIGKILL)

    def put_in_force(self, version: Literal["1", "2"]) -> None:
        Tracker().point_alias("late", "serving", version)

    def fill_disk(self) -> None:
        with suppress(OSError), (self.disk / "filled").open("wb", buffering=0) as file:
            while file.write(bytes(65_536)):
                pass

    def free_disk(self) -> None:
        (self.disk / "filled").unlink()


class Store:
    """MLflow's own server on loopback, which can go away and come back."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        log = (self._folder / "mlflow.log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 180
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.uri}/health", trust_env=False).status_code == 200:
                    return
            assert time.monotonic() < deadline, f"MLflow's server does not come up, see {log.name}"
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of its own; None where none can be mounted."""
    place = folder / "disk"
    place.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", place], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
