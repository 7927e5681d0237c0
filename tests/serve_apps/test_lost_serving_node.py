"""A node with replicas is lost: on raylets of one machine, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve_apps.test_two_nodes import SETTINGS


@pytest.mark.slow
def test_replicas_of_a_lost_node_come_up_on_another_and_no_answer_changes(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.serve_apps.lost_serving_node", str(tmp_path)],
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(found.stdout)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
