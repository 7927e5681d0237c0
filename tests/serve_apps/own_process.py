"""Scripts that start raylets of their own, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

# Two nodes of one machine cannot have a HAProxy each. On a busy one a proxy takes longer than the 15 s that Serve gives it, and
# workers that step back for all else starve.
_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",
}


def run_on_nodes(module: str, folder: Path) -> None:
    """Run ``python -m module folder``, which must end well; what it printed is shown."""
    found = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        env=os.environ | _SETTINGS,
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(found.stdout)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
