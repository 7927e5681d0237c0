"""Training over two raylets, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_nodes_learn_what_one_learns_and_a_lost_node_changes_nothing(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.training.lost_node", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    print(found.stdout)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert "a node was killed behind step" in found.stdout
    assert "going on from step" in found.stdout + found.stderr
