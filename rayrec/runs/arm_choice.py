"""Each method with its own strength: of several candidates of an arm, the one that is best on the validation split is compared.

The candidates are the arms of a comparison of their own, over seeds of their own, so the comparison that follows trains every
arm anew and judges it on rows and draws that chose nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

from rayrec.families.table import AnyExperiment
from rayrec.reporting import Section, Table
from rayrec.runs.comparison import Comparison, ComparisonState, TrialKey


@dataclass(frozen=True)
class Candidate:
    """One setting that an arm may take: the settings that make it, for the report, and the experiment they give."""

    settings: Mapping[str, Any]
    experiment: AnyExperiment


@dataclass(frozen=True)
class ArmChoice:
    """How an arm came out: each candidate's mean ``objective`` over the seeds, and which is the best (the first of equals)."""

    candidates: tuple[Candidate, ...]
    objectives: tuple[float, ...]
    objective: str
    best: int

    @property
    def experiment(self) -> AnyExperiment:
        return self.candidates[self.best].experiment


def comparison_of_candidates(arms: Mapping[str, tuple[Candidate, ...]], seeds: tuple[int, ...]) -> Comparison:
    """All candidates of all arms as arms of one comparison. Raises ConfigError when there are fewer than two."""
    found = {
        _name(arm, i): candidate.experiment
        for arm, candidates in arms.items()
        for i, candidate in enumerate(candidates)
    }
    return Comparison(found, next(iter(found), ""), seeds)


def choose(arms: Mapping[str, tuple[Candidate, ...]], state: ComparisonState) -> dict[str, ArmChoice]:
    """By arm; ``state`` is the finished comparison of the candidates."""
    choices = {}
    for arm, candidates in arms.items():
        objectives = tuple(_objective(state, _name(arm, i)) for i in range(len(candidates)))
        task = state.record.comparison.trial(_name(arm, 0)).task()
        sign = -1.0 if task.objective_mode == "max" else 1.0
        ranks = [float("inf") if isnan(value) else sign * value for value in objectives]
        choices[arm] = ArmChoice(candidates, objectives, task.objective_name, ranks.index(min(ranks)))
    return choices


def choice_section(choices: Mapping[str, ArmChoice]) -> Section:
    """A table of all candidates, the chosen ones marked."""
    rows = tuple(
        (arm, ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in candidate.settings.items()) or "as it is",
         f"{choice.objectives[i]:.5f}", "chosen" if i == choice.best else "")
        for arm, choice in choices.items()
        for i, candidate in enumerate(choice.candidates)
    )  # fmt: skip
    text = "Each arm's candidates by the mean over their own seeds of the objective that training watches; the best is compared."
    return Section(
        "Choice of settings", text, table=Table(("arm", "candidate", next(iter(choices.values())).objective, ""), rows)
    )


def _name(arm: str, candidate: int) -> str:
    return f"{arm}.{candidate}"


def _objective(state: ComparisonState, arm: str) -> float:
    """NaN where a seed has none: a candidate is not judged by the seeds in which it did not diverge."""
    values = [state.done[TrialKey(arm, seed)].best_objective for seed in state.record.comparison.seeds]
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if len(defined) == len(values) else float("nan")
