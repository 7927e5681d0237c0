"""How fast a ranker trains over Ray beside the same run in process: python -m benchmarks.training_over_ray

A Criteo-like log of 40 columns is made (that of ``benchmarks.ingest``, with some rows to validate on), and ``python -m jobs.train
ranker`` trains an epoch on it as a user would, in a new process each time: over Ray, where Ray Data's tasks read the log and a
worker of Ray Train takes the steps, and with ``--in-process``, the limit. Rows per second are those between the first line of
progress and the last. Prints a table and one line of JSON.
"""

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from benchmarks.ingest import write_log
from benchmarks.train_command import train_lines
from rayrec.data.log import ROW_GROUP_ROWS
from rayrec.errors import told

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
    arguments = f"--name {name} --loop.epochs 1 --stream.batch-size {batch_size} --running.progress-seconds 1".split()
    told_steps: list[tuple[float, int]] = []
    for seconds, line in train_lines(place / "runs", ["ranker", "--log", str(place / "log"), *arguments, *options]):
        if step := re.search(r"step ([\d,]+): loss", line):
            told_steps.append((seconds, int(step[1].replace(",", ""))))
    if len(told_steps) < 2:
        sys.exit(f"error: run {name} told of fewer than two steps: give it more rows")
    (begun, first), (ended, last) = told_steps[0], told_steps[-1]
    return batch_size * (last - first) / (ended - begun)


def main() -> None:
    with told():
        run(tyro.cli(TrainingOverRay, description=__doc__))


if __name__ == "__main__":
    main()
