"""What the arms of an experiment in traffic are worth, by the logs: users, feedback, value by task, calibration, and whether the
split is as configured."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrec.data.log import LogError
from rayrec.traffic.arm_sums import ArmSums, TrafficSums
from rayrec.traffic.assignment import Assignment
from rayrec.traffic.over_users import Estimate, Ratio, ratio_of_sums
from rayrec.traffic.split import SplitCheck, split_check


@dataclass(frozen=True)
class TaskOfArm:
    """value: yes a decision. difference: to the control arm, None for itself. calibration: yes over those that the rankers
    predicted of what they showed, None where nothing was predicted."""

    value: Estimate
    difference: Estimate | None
    calibration: Estimate | None


@dataclass(frozen=True)
class ArmOfReport:
    """decisions: how many. told: share of them on which there was feedback. tasks: by name."""

    users: int
    decisions: int
    told: Estimate
    tasks: Mapping[str, TaskOfArm]


@dataclass(frozen=True)
class ArmsReport:
    """All intervals are over users, at ``level``, each of its own: not adjusted for how many there are.

    split: None where the experiment is not known; drawn_otherwise: users who are in another arm than their name draws in it.
    moved, nobodys: see ``TrafficSums``.
    """

    control: str
    level: float
    arms: Mapping[str, ArmOfReport]
    split: SplitCheck | None
    drawn_otherwise: int
    moved: int
    nobodys: Mapping[str, int]

    @property
    def warnings(self) -> list[str]:
        """What forbids to believe the rest, a line each."""
        found, users = [], sum(arm.users for arm in self.arms.values())
        if self.split is not None and self.split.alarm:
            there = ", ".join(f"{arm} {n:,} of {self.split.expected[arm]:,.0f}" for arm, n in self.split.users.items())
            found.append(
                f"the users are not split as configured (p = {self.split.p:.2g}; users found of those expected: {there}): "
                "do not believe the differences before the cause is known"
            )
        if self.drawn_otherwise:
            found.append(
                f"{self.drawn_otherwise:,} of {users:,} users are in another arm than this experiment draws for their names: "
                "it is not the experiment that was served, or its shares were changed meanwhile"
            )
        if self.moved > 0.01 * (users + self.moved):
            found.append(
                f"{self.moved:,} of {users + self.moved:,} users are in more than one arm and were left out: "
                "shares were changed meanwhile, or it is more than one experiment; give the time since which it runs"
            )
        return found


def compare_arms(sums: TrafficSums, control: str, experiment: Assignment | None, level: float = 0.95) -> ArmsReport:
    """experiment: who was to be in which arm, None = not known. Raises LogError where an arm has no decision of a user."""
    for arm, found in sums.arms.items():
        if not found.users:
            raise LogError(f"arm {arm!r}: no decision of a user of this arm in the time looked at")
    if control not in sums.arms:
        raise LogError(f"there is no arm {control!r} to compare with; there are {', '.join(sums.arms)}")
    base = _values(sums.arms[control])
    arms = {}
    for arm, found in sums.arms.items():
        values = base if arm == control else _values(found)
        tasks = {
            task: TaskOfArm(
                values[i].estimate(level),
                None if arm == control else values[i].minus(base[i], level),
                _calibration(found.positives[:, i], found.expected[:, i], level),
            )
            for i, task in enumerate(sums.tasks)
        }
        told = ratio_of_sums(found.told, found.decisions).estimate(level)
        arms[arm] = ArmOfReport(len(found.users), int(found.decisions.sum()), told, tasks)
    split, otherwise = None, 0
    if experiment is not None:
        split = split_check({arm: len(found.users) for arm, found in sums.arms.items()}, experiment.weights)
        otherwise = sum(experiment.arm(user) != arm for arm, found in sums.arms.items() for user in found.users)
    return ArmsReport(control, level, arms, split, otherwise, sums.moved, sums.nobodys)


def _values(arm: ArmSums) -> list[Ratio]:
    return [ratio_of_sums(column, arm.decisions) for column in arm.positives.T]


def _calibration(positives: NDArray[np.float64], expected: NDArray[np.float64], level: float) -> Estimate | None:
    """Over users all of whose answers were predicted."""
    there = ~np.isnan(expected)
    ratio = ratio_of_sums(positives[there], expected[there]) if there.any() else None
    return None if ratio is None or np.isnan(ratio.value) else ratio.estimate(level)
