"""A Ray head of your own on this machine, to submit jobs to: python -m jobs.cluster start, and stop.

    <runs>/cluster/cluster.json   ports, process, folder of Ray's own files
    <runs>/cluster/token          what a client needs to be let in (mode 600)
    <runs>/cluster/env            ``. runs/cluster/env`` makes ``ray job submit`` and ``serve deploy`` talk to this head

It has ports, token and temporary folder of its own, so that other Rays of the machine neither see it nor are touched by ``stop``.
Submitted jobs run ``python`` of the environment that started the head, and write to the same runs folder.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from jobs.command_line import read_one_of
from rayrec.errors import UserError, told
from rayrec.files import write_text_atomically
from rayrec.registry import runs_folder
from rayrec.runs.ray_settings import ONE_MACHINE_SETTINGS


class ClusterError(UserError):
    """A head that is there already, is not there, or did not come up."""


@dataclass(frozen=True)
class Start:
    """Start a head and wait until it takes jobs."""

    cpus: int | None = None
    """Logical CPUs; None = as many as the machine has, 4 at least: workers and the tasks that read must fit side by side."""
    object_store_mb: int = 500
    """Shared memory for blocks on their way."""


@dataclass(frozen=True)
class Stop:
    """End the head that ``start`` began, with its jobs and services, and nothing else."""


@dataclass(frozen=True)
class Head:
    """A head that runs. pid: of its process group. address: of dashboard and job server. scratch: Ray's own files."""

    pid: int
    address: str
    scratch: str

    @property
    def alive(self) -> bool:
        return _group_alive(self.pid)


def start(command: Start) -> Head:
    """Raises ClusterError when one runs already or it does not come up within three minutes."""
    folder = runs_folder().resolve() / "cluster"
    found = read_head(folder)
    if found is not None and found.alive:
        raise ClusterError(f"a cluster runs already at {found.address}; stop it with python -m jobs.cluster stop")
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.unlink(missing_ok=True)
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    scratch = tempfile.mkdtemp(prefix="rr-")  # short: paths of sockets are limited to 107 bytes
    port, dashboard, agent, client = _free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    settings = environment(folder, address)
    arguments = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address", "127.0.0.1", "--port", str(port), "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(client),
        "--num-cpus", str(command.cpus or max(4, os.cpu_count() or 1)), "--temp-dir", f"{scratch}/ray",
        "--object-store-memory", str(command.object_store_mb * 1_000_000),
    ]  # fmt: skip
    inherited = ONE_MACHINE_SETTINGS | {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            arguments, env=inherited | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
    head = Head(process.pid, address, scratch)
    write_text_atomically(folder / "cluster.json", json.dumps(asdict(head)))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items() if name != "PATH"]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    write_text_atomically(folder / "env", "\n".join(lines) + "\n")
    try:
        _wait(process, head, token.read_text())
    except ClusterError as error:
        _end(head)
        raise ClusterError(f"{error}; {folder / 'head.log'} says why") from None
    return head


def stop() -> Head:
    """Raises ClusterError when none runs."""
    folder = runs_folder().resolve() / "cluster"
    head = read_head(folder)
    if head is None or not head.alive:
        raise ClusterError(f"no cluster runs that was started from {folder.parent}")
    _end(head)
    for name in ("cluster.json", "env", "token"):
        (folder / name).unlink(missing_ok=True)
    return head


def environment(folder: Path, address: str) -> dict[str, str]:
    """What clients, the head and its jobs need in their environment."""
    return {
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_DASHBOARD_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAYREC_RUNS": str(folder.parent),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def read_head(folder: Path) -> Head | None:
    """The head that was started last from this runs folder."""
    try:
        return Head(**json.loads((folder / "cluster.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _wait(process: subprocess.Popen[bytes], head: Head, token: str, seconds: float = 180) -> None:
    """Until a trivial job was taken: the job server answers before the agent that runs jobs is there."""
    deadline = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {token}"}
    while True:
        if process.poll() is not None:
            raise ClusterError("the Ray head ended")
        if time.monotonic() > deadline:
            raise ClusterError(f"the Ray head did not come up within {seconds:.0f} s")
        try:
            reply = httpx.post(
                f"{head.address}/api/jobs/", json={"entrypoint": "true"}, headers=headers, timeout=10, trust_env=False
            )
        except httpx.HTTPError:
            reply = None
        if reply is not None and reply.is_success:
            return
        time.sleep(0.3)


def _end(head: Head) -> None:
    """SIGTERM to the whole group, SIGKILL after 5 s, then the scratch folder.

    Workers get theirs from the raylet at once; it then waits some 13 s for an agent that the same signal has ended."""
    for name, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(head.pid, name)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + seconds
        while _group_alive(head.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
    shutil.rmtree(head.scratch, ignore_errors=True)


def _group_alive(group: int) -> bool:
    """Whether a process of the group still runs; ended ones that nobody took note of do not count."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(int(number) == group and state[0] != "Z" for number, state in map(str.split, listed.splitlines()))


def _free_ports(count: int) -> list[int]:
    """Outside of the range of Ray's workers, 10002 to 19999."""
    probes: list[socket.socket] = []
    while len(probes) < count:
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        if not 10_000 <= probe.getsockname()[1] < 20_000:
            probes.append(probe)
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def main() -> None:
    with told():
        command = read_one_of({"start": Start, "stop": Stop}, description=__doc__)
        if isinstance(command, Stop):
            print(f"stopped: {stop().address}")
            return
        head = start(command)
        place = Path(os.path.relpath(runs_folder() / "cluster" / "env"))
        print(f"dashboard and job server: {head.address}\nin every shell that talks to it: . {place}")


if __name__ == "__main__":
    main()
