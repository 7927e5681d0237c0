"""README and docs/cluster.md print how jobs are submitted, watched, swept, served and asked: each line runs, in that order."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# A foreground command of the page runs beside the line that it prints to ask it with, then gets what Ctrl-C sends.
_SERVED = """
{line} > served.txt & served=$!
until grep -q "curl -s" served.txt; do kill -0 $served; sleep 1; done
grep -o "curl -s.*" served.txt > ask.sh; cat ask.sh; sh ask.sh; echo
kill -INT $served; wait $served
"""


@ray.remote(num_cpus=0)
class Bystander:
    def process(self) -> int:
        return os.getpid()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What git would give of this tree, with the environment of these tests as its ``.venv``."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("pyproject.toml", "requirements.lock"):
        os.utime(tmp_path / name, (0, 0))  # older than the environment
    return tmp_path


@pytest.mark.parametrize(("page", "heading"), [("README.md", "## Submit, watch"), ("docs/cluster.md", "## On this")])
def test_each_line_of_the_page_runs_and_another_ray_of_the_machine_is_not_touched(
    page: str, heading: str, clone: Path, data_root: Path, ray_session: None
) -> None:
    text = (ROOT / page).read_text().partition(heading)[2]
    block = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].replace("\\\n", "")
    bystander = Bystander.remote()
    process = ray.get(bystander.process.remote())
    steps = ["set -e -o pipefail", "trap 'test ! -e runs/cluster/env || make cluster-stop' EXIT"]
    for line in block.splitlines():
        command = line.partition(" #")[0].strip()
        steps.append(f"printf '%s\\n' {_quoted('$ ' + command)}")
        steps.append(_SERVED.format(line=command) if command.startswith("python -m jobs.serve") else command)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYREC_", "PYTHONPATH"))}
    bash = subprocess.Popen(
        ["bash", "-c", "\n".join(steps)],
        cwd=clone, env=environment | {"RAYREC_DATA": str(data_root)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out = bash.communicate(timeout=1800)[0]
    finally:
        if bash.poll() is None:  # neither the cluster nor what it serves outlives this test
            os.killpg(bash.pid, signal.SIGTERM)
            print(bash.communicate(timeout=120)[0])
    print(out)
    assert bash.returncode == 0, out[-4000:]
    assert re.search(r'"order": ?\[\d', out)
    assert "failed" not in out.partition("ray job list")[2].partition("$ ")[0].lower()
    assert "stopped: http://127.0.0.1:" in out
    assert ray.get(bystander.process.remote()) == process


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
