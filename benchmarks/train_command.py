"""``python -m jobs.train`` as a user runs it, line by line, for the benchmarks that time it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def train_lines(runs: Path, arguments: Sequence[str]) -> Iterator[tuple[float, str]]:
    """Each line that the command prints and the seconds from the command to it; last, an empty one when the prompt is back.

    runs: its runs folder. A Ray and an MLflow of the environment are left alone. Exits with its last lines where it fails.
    """
    environment = {**os.environ, "RAYREC_RUNS": str(runs), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    environment.pop("MLFLOW_TRACKING_URI", None)
    started, lines = time.perf_counter(), []
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            yield time.perf_counter() - started, line
    if process.returncode:
        sys.exit(f"error: {' '.join(process.args)} failed:\n{''.join(lines[-20:])}")
    yield time.perf_counter() - started, ""
