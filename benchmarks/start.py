"""From the command to the first training step, over Ray and in process: python -m benchmarks.start

A small log is made, and ``python -m jobs.train ranker`` is run on it as a user would, in a new process each time, in a runs
folder that was used before. The first step is when the run says so: its first line of progress comes at once
(``--running.progress-seconds 0``). The unit is the time that ``import torch`` takes in a new process, measured between the runs.
Prints a table and one line of JSON. Limits on an idle machine of two cores: 12 s over Ray, 5 s in process.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from benchmarks.train_command import train_lines
from rayrec.data.simulation import SimulationConfig, simulate
from rayrec.errors import told


@dataclass(frozen=True)
class Start:
    """repeats: of each way; the median counts. requests: of the simulated log."""

    repeats: int = 3
    requests: int = 2000


@dataclass(frozen=True)
class Timing:
    """Seconds from the command to its first step, and to its end."""

    first_step: float
    whole: float


def run(command: Start) -> dict[str, float]:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="rayrec-start-") as folder:
        place = Path(folder)
        simulate(SimulationConfig(requests=command.requests), place / "ads")
        log = place / "ads" / "labeled"
        _train(place, log, "warm", ["--in-process"])  # makes MLflow's tables and the byte code
        imports, here, ray = [], [], []
        for number in range(command.repeats):
            imports.append(_seconds([sys.executable, "-c", "import torch"]))
            here.append(_train(place, log, f"here{number}", ["--in-process"]))
            ray.append(_train(place, log, f"ray{number}", []))
    unit = median(imports)
    print(f"import torch {unit:.2f} s")
    found = {}
    for name, timings in (("ray", ray), ("in_process", here)):
        first, whole = median(t.first_step for t in timings), median(t.whole for t in timings)
        print(f"{name:<11} first step {first:6.2f} s ({first / unit:5.2f}x), prompt {whole:6.2f} s")
        found[f"{name}_first_step_s_over_import"] = first / unit
    print(json.dumps(found))
    return found


def _train(place: Path, log: Path, name: str, options: list[str]) -> Timing:
    arguments = ["ranker", "--log", str(log), "--name", name, "--loop.epochs", "1", "--running.progress-seconds", "0"]
    first, whole = None, 0.0
    for whole, line in train_lines(place / "runs", [*arguments, *options]):
        if first is None and "step 1:" in line:
            first = whole
    if first is None:
        sys.exit(f"error: run {name} told of no first step")
    return Timing(first, whole)


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def main() -> None:
    with told():
        run(tyro.cli(Start, description=__doc__))


if __name__ == "__main__":
    main()
