"""Items that change on one node and are asked for on another, on two raylets in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Two nodes of one machine cannot have a HAProxy each. On a busy one a proxy takes longer than the 15 s that Serve gives it, and
# workers that step back for all else starve.
SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",
}


@pytest.mark.slow
def test_an_item_added_or_taken_out_on_one_node_is_so_on_the_other(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.serve_apps.two_nodes", str(tmp_path)],
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(found.stdout)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
