"""Simulate an ads world and write its logs: python -m jobs.simulate --out FOLDER.

FOLDER/labeled, unlabeled, candidates: impressions with outcomes, candidates not shown, all candidates of the test period, with
their true probabilities. FOLDER/student: the same without the features that only the late stage sees.
"""

import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.command_line import read
from rayrec.data.simulation import SimulatedLogs, SimulationConfig, simulate
from rayrec.errors import told


@dataclass(frozen=True)
class Simulate:
    """Simulate an ads world and write its logs."""

    out: Path
    """Folder to write; it appears whole or not at all."""
    config: Annotated[SimulationConfig, tyro.conf.arg(name="")] = field(default_factory=SimulationConfig)
    """Of the world, the funnel and their size."""
    workers: int = 2
    """Threads that simulate, besides the one that writes."""
    overwrite: bool = False
    """Replace an earlier simulation there."""


def run(command: Simulate) -> SimulatedLogs:
    """Simulate with a progress bar on stderr; prints what was written."""
    started = time.perf_counter()
    columns = (
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("candidates"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("simulating", total=None)
        logs = simulate(
            command.config,
            command.out,
            workers=command.workers,
            overwrite=command.overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_summary(logs, time.perf_counter() - started)
    return logs


def print_summary(logs: SimulatedLogs, seconds: float) -> None:
    """Rows by log and split, and the rates of the world."""
    summary = logs.summary
    print(f"{'rows':<12}" + "".join(f"{split:>12}" for split in ("train", "valid", "test")))
    for name, rows in summary.rows.items():
        print(f"{name:<12}" + "".join(f"{rows.get(split, 0):>12,}" for split in ("train", "valid", "test")))
    print(
        f"true click probability: {summary.true_click_rate:.4f} on all candidates, {summary.true_impression_click_rate:.4f} on "
        f"impressions (drawn: {summary.impression_click_rate:.4f}); conversions per click: {summary.conversion_rate:.4f}"
    )
    print(
        f"{summary.candidates:,} candidates in {seconds:.1f} s ({summary.candidates / seconds:,.0f}/s): {logs.folder}"
    )


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that half-written logs are removed
    with told():
        run(read(Simulate, description=__doc__))


if __name__ == "__main__":
    main()
