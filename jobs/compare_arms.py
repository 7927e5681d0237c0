"""What the arms of an experiment in traffic are worth, by what was logged of it:

    python -m jobs.compare_arms TRAFFIC_FOLDER --experiment experiment.json

Reads decisions and feedback, also while the service goes on, and changes nothing. Exit code 3: the users are not split as the
experiment says, so that nothing else holds.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tyro

from jobs.command_line import read
from rayrec.errors import told
from rayrec.files import check_file_place, write_text_atomically
from rayrec.reporting.page import Table, text_table
from rayrec.traffic.arm_sums import Period, arms_of, shadow_books, sum_traffic
from rayrec.traffic.comparing_arms import ArmsReport, compare_arms
from rayrec.traffic.over_users import Estimate
from rayrec.traffic.shadow_overlap import ShadowOfArm, compare_shadow
from rayrec.typed_json import ConfigError, from_json, to_json
from serve_apps.cascade.versions import MIXED, OWN, Experiment

NOT_AS_CONFIGURED = 3


@dataclass(frozen=True)
class CompareArms:
    """Compare the arms of an experiment in traffic, and its shadow ranker with what was shown."""

    traffic: tyro.conf.Positional[Path]
    """The folder that the service logs to (--service.traffic.folder)."""
    experiment: Path | None = None
    """The file that was served; without it the split of the users is not checked, and the arms are those of the log."""
    control: str | None = None
    """The arm that the others are compared with; default: the experiment's first."""
    since: str | None = None
    """Only decisions from this time on, ISO 8601, UTC where no zone is given: when the experiment began."""
    window_seconds: float = 86_400.0
    """Feedback that came later does not count, and decisions younger than this are left out."""
    level: float = 0.95
    """Of the intervals."""
    report: Path | None = None
    """Write all of it there too, as JSON."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError(f"level must lie between 0 and 1, not {self.level}")
        if not self.window_seconds >= 0:
            raise ConfigError(f"window_seconds must be at least 0, not {self.window_seconds}")


@dataclass(frozen=True)
class WholeReport:
    """shadows: by book and arm."""

    arms: ArmsReport
    shadows: Mapping[str, Mapping[str, ShadowOfArm]]


def compared(command: CompareArms, now_ms: int) -> WholeReport:
    """Raises UserError."""
    if command.report is not None:
        check_file_place(command.report)
    window_ms = round(1_000 * command.window_seconds)
    period = Period(window_ms, now_ms - window_ms, 0 if command.since is None else _unix_ms(command.since))
    assignment = None
    if command.experiment is not None:
        if not command.experiment.is_file():
            raise ConfigError(f"{command.experiment}: there is no such file")
        assignment = from_json(Experiment, command.experiment.read_bytes(), str(command.experiment)).assignment
        if assignment is None:
            raise ConfigError(f"{command.experiment}: the experiment has no arms to compare")
    arms = [arm for arm in arms_of(command.traffic, period) if arm not in (OWN, MIXED)]
    if assignment is not None:
        arms = [arm for arm, weight in assignment.weights.items() if weight > 0 or arm in arms]
    if not arms:
        raise ConfigError(f"{command.traffic}: no decision of an arm of an experiment in the time looked at")
    shadows = shadow_books(command.traffic)
    sums = sum_traffic(command.traffic, arms, period, keep_shown=bool(shadows))
    report = compare_arms(sums, command.control or arms[0], assignment, command.level)
    beside = {}
    if sums.shown is not None:
        beside = {book.name: compare_shadow(book, sums.shown, sums.tasks, period, command.level) for book in shadows}
    return WholeReport(report, {book: by_arm for book, by_arm in beside.items() if by_arm})


def main() -> None:
    with told():
        command = read(CompareArms, description=__doc__)
        report = compared(command, time.time_ns() // 1_000_000)
        for line in lines(report):
            print(line)
        if command.report is not None:
            write_text_atomically(command.report, to_json(report))
        for warning in report.arms.warnings:
            print(f"WARNING: {warning}", file=sys.stderr)
        if report.arms.split is not None and (report.arms.split.alarm or report.arms.drawn_otherwise):
            sys.exit(NOT_AS_CONFIGURED)


def lines(report: WholeReport) -> list[str]:
    """For a terminal."""
    arms = report.arms
    told = [text_table(_arms_table(arms))]
    if arms.split is None:
        told.append("split: not checked; name the experiment's file by --experiment")
    else:
        there = ", ".join(f"{arm} {n:,} ({arms.split.expected[arm]:,.1f})" for arm, n in arms.split.users.items())
        told.append(f"split: users found (expected): {there}; p = {arms.split.p:.3g}")
    if arms.nobodys:
        nobodys = ", ".join(f"{arm} {n:,}" for arm, n in sorted(arms.nobodys.items()))
        told.append(f"decisions of no user or of none of these arms: {nobodys}")
    for book, by_arm in report.shadows.items():
        told += [f"shadow {book}", text_table(_shadow_table(by_arm))]
    return told


def _arms_table(report: ArmsReport) -> Table:
    head = ("arm", "users", "decisions", "with feedback", "task", "a decision", f"less {report.control}", "calibration")
    rows = []
    for arm, of in report.arms.items():
        for task, found in of.tasks.items():
            counts = (f"{of.users:,}", f"{of.decisions:,}", str(of.told))
            rows.append((arm, *counts, task, *map(_cell, (found.value, found.difference, found.calibration))))
    return Table(head, tuple(rows))


def _shadow_table(by_arm: Mapping[str, ShadowOfArm]) -> Table:
    head = ("beside", "decisions", "would show others", "overlap@k", "rank of the shown", "as shown", "calibration")
    rows = []
    for arm, of in by_arm.items():
        calibration = ", ".join(f"{task} {estimate}" for task, estimate in of.calibration.items())
        shown = (str(of.other), str(of.overlap), str(of.mean_rank), f"{of.own_rank:.5g}")
        rows.append((arm, f"{of.decisions:,}", *shown, calibration))
    return Table(head, tuple(rows))


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else str(estimate)


def _unix_ms(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"since must be a time such as 2026-01-31T12:00, not {text!r}") from None
    return round(1_000 * (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


if __name__ == "__main__":
    main()
