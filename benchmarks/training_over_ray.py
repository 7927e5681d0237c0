"""How fast a ranker trains over Ray beside the same run in process: python -m benchmarks.training_over_ray

A Criteo-like log of 40 columns is made (that of ``benchmarks.ingest``, with some rows to validate on), and ``python -m jobs.train
ranker`` trains an epoch on it as a user would, in a new process each time: over Ray, where Ray Data's tasks read the log and a
worker of Ray Train takes the steps, and with ``--in-process``, the limit. Rows per second are those between the first line of
progress and the last. Prints a table and one line of JSON.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from benchmarks.ingest import write_log
from rayrec.data.log import ROW_GROUP_ROWS
from rayrec.errors import told

ROOT = Path(__file__).parents[1]
WAYS = {"ray": (), "in_process": ("--in-process",)}


@dataclass(frozen=True)
class TrainingOverRay:
    """rows: of the log's training split. batch_size: rows of a step. repeats: of each way, in turn; the median counts."""

    rows: int = 16 * ROW_GROUP_ROWS
    batch_size: int = 4096
    repeats: int = 3


def run(command: TrainingOverRay) -> dict[str, float]:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="rayrec-training-") as folder:
        place = Path(folder)
        write_log(place / "log", command.rows, judged_rows=8192)
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(command.repeats):
            for way, options in WAYS.items():
                rates[way].append(_rows_per_s(place, command.batch_size, f"{way}{number}", options))
    for way, found in rates.items():
        print(f"{way:<11}{median(found):>10,.0f} rows/s ({min(found):,.0f} to {max(found):,.0f})")
    result = {"ray_over_in_process": round(median(rates["ray"]) / median(rates["in_process"]), 3)}
    print(json.dumps(result))
    return result


def _rows_per_s(place: Path, batch_size: int, name: str, options: tuple[str, ...]) -> float:
    arguments = [
        "--log",
        str(place / "log"),
        "--name",
        name,
        "--loop.epochs",
        "1",
        "--stream.batch-size",
        str(batch_size),
    ]
    environment = {**os.environ, "RAYREC_RUNS": str(place / "runs"), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    environment.pop("MLFLOW_TRACKING_URI", None)
    lines: list[str] = []
    told_steps: list[tuple[float, int]] = []
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.train", "ranker", *arguments, "--running.progress-seconds", "1", *options],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if step := re.search(r"step ([\d,]+): loss", line):
                told_steps.append((time.perf_counter(), int(step[1].replace(",", ""))))
    if process.returncode or len(told_steps) < 2:
        sys.exit(f"error: {' '.join(process.args)} failed or told too little:\n{''.join(lines[-20:])}")
    (begun, first), (ended, last) = told_steps[0], told_steps[-1]
    return batch_size * (last - first) / (ended - begun)


def main() -> None:
    with told():
        run(tyro.cli(TrainingOverRay, description=__doc__))


if __name__ == "__main__":
    main()
