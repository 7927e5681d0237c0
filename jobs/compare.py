"""Train several experiments over several seeds and compare them: python -m jobs.compare PLAN.json --name NAME.

Running the same command again goes on where a killed comparison stopped; with more arms or seeds it trains only what is new.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jobs.command_line import read
from rayrec.errors import told
from rayrec.families.ranker.task import RankingTask
from rayrec.families.table import AnyExperiment, family_of, follow, read_experiment
from rayrec.reporting.page import text_table
from rayrec.runs.arm_choice import ArmChoice, Candidate, choice_section, choose, comparison_of_candidates
from rayrec.runs.comparing import Judging, raise_failures, run_comparison, train_what_is_left
from rayrec.runs.comparison import (
    Comparison,
    ComparisonState,
    TrialOptions,
    open_comparison,
    tell_of_trials,
)
from rayrec.runs.further import FurtherEvaluation, check_further
from rayrec.runs.seeding import with_seed
from rayrec.runs.sweeping import apply_parameters
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError, from_json, from_plain


@dataclass(frozen=True)
class ArmPlan:
    """One arm: an experiment (its own ``source``, else the plan's base) with ``settings`` on top, by dotted path.

    choices: further settings, of which the one that is best on the validation split is compared (see rayrec.runs.arm_choice).
    each_task: train one model for each task of the log alone, each with the choice that is best for it, and report them as one
    arm.
    """

    source: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[Mapping[str, Any], ...] = ()
    each_task: bool = False


@dataclass(frozen=True)
class Plan:
    """A comparison as a file. A source is the path of an experiment's JSON, relative to this file, or an MLflow run id.

    settings: on top of every arm's experiment, below the arm's own. baseline: None = the first arm.
    choice_seeds: of the trials that choose among an arm's candidates.
    further: options of ``jobs.evaluate`` for this family of models, by which each trained model is judged once more.
    """

    arms: Mapping[str, ArmPlan]
    base: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    choice_seeds: tuple[int, ...] = (1000,)
    further: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PlannedComparison:
    """A plan with all its experiments made. An arm's only candidate is the arm; of several, one is to be chosen.

    joined: as in ``Comparison``. wanted: what else is asked of each trained model.
    """

    arms: Mapping[str, tuple[Candidate, ...]]
    baseline: str
    seeds: tuple[int, ...]
    choice_seeds: tuple[int, ...]
    joined: Mapping[str, tuple[str, ...]]
    wanted: FurtherEvaluation | None = None

    @property
    def open_arms(self) -> dict[str, tuple[Candidate, ...]]:
        return {arm: candidates for arm, candidates in self.arms.items() if len(candidates) > 1}

    def comparison(self, choices: Mapping[str, ArmChoice]) -> Comparison:
        arms = {
            arm: choices[arm].experiment if arm in choices else candidates[0].experiment
            for arm, candidates in self.arms.items()
        }
        return Comparison(arms, self.baseline, self.seeds, self.joined)


@dataclass(frozen=True)
class Compare:
    """Compare experiments."""

    name: str
    """The comparison's folder; running it again goes on."""
    plan: tyro.conf.Positional[Path | None] = None
    """A JSON file with "arms", "base", "settings", "baseline", "seeds" (see docs/compare.md)."""
    arms: tuple[str, ...] = ()
    """Further arms, or all of them without a plan: NAME=SOURCE, SOURCE a file of an experiment's JSON or an MLflow run
    id."""
    baseline: str | None = None
    """Arm that others are compared with, in place of the plan's."""
    seeds: tuple[int, ...] | None = None
    """Of the runs, in place of the plan's."""
    choice_seeds: tuple[int, ...] | None = None
    """Of the runs that choose among candidates, in place of the plan's."""
    settings: tuple[str, ...] = ()
    """PATH=VALUE, on top of the plan's own: the same plan for another log, say."""
    split: Literal["valid", "test"] = "test"
    """On which arms are judged."""
    status: bool = False
    """Train nothing, print what is done and what is left, and write the report of it."""
    trials: Annotated[TrialOptions, tyro.conf.arg(name="")] = field(default_factory=TrialOptions)
    """How the trials run."""


def compare(command: Compare) -> ComparisonState:
    """Run what is left of a comparison, print its tables, write and log its report.

    Returns where it stands: of the choice among candidates while that is not over, else of the comparison itself. Raises
    ConfigError for a plan that is wrong, TrialsFailed when some failed (after all others are done and reported).
    """
    started = time.monotonic()
    planned = plan_of(command)
    choices: dict[str, ArmChoice] = {}
    if planned.open_arms:
        candidates = comparison_of_candidates(planned.open_arms, planned.choice_seeds)
        for arm, options in planned.arms.items():
            for candidate in options:
                check_further(planned.wanted, arm, with_seed(candidate.experiment, planned.choice_seeds[0]))
        state = train_what_is_left(
            open_comparison(f"{command.name}-choice", candidates),
            command.trials,
            status=command.status,
            began=started,
            what="choice of settings: ",
        )
        if state.left:
            raise_failures(state)
            return state
        choices = choose(planned.open_arms, state)
        section = choice_section(choices)
        assert section.table is not None
        print(f"{text_table(section.table)}\n")
        tracker, run = Tracker(state.record.tracking_uri, state.record.mlflow_run), state.record.mlflow_run
        with suppress(Exception):  # of a store that is away: the comparison goes on, and tells of it at its end
            tell_of_trials(state, tracker)
            tracker.finish(run)
    chosen = (choice_section(choices),) if choices else ()
    judging = Judging(command.split, planned.wanted, sections=lambda state: chosen)
    return run_comparison(
        command.name, planned.comparison(choices), command.trials, judging, status=command.status, began=started
    )


def plan_of(command: Compare) -> PlannedComparison:
    """The comparison that a command line and its plan describe."""
    folder, plan = Path(), Plan({})
    if command.plan is not None:
        if not command.plan.is_file():
            raise ConfigError(f"{command.plan}: no such file")
        folder, plan = command.plan.parent, from_json(Plan, command.plan.read_bytes(), str(command.plan))
    base = None if plan.base is None else _experiment(plan.base, folder)
    settings = dict(_setting(text) for text in command.settings)
    seeds = plan.seeds if command.seeds is None else command.seeds
    if not seeds:
        raise ConfigError("seeds are different numbers from 0 on, not []")
    arms: dict[str, tuple[Candidate, ...]] = {}
    joined: dict[str, tuple[str, ...]] = {}
    for name, arm in plan.arms.items():
        experiment = base if arm.source is None else _experiment(arm.source, folder)
        if experiment is None:
            raise ConfigError(f'{command.plan}: arm {name} has no source, and the plan no "base"')
        shared = {**plan.settings, **settings, **arm.settings}
        if arm.each_task:
            tasks = with_seed(apply_parameters(experiment, shared), seeds[0]).task()
            if not isinstance(tasks, RankingTask):
                raise ConfigError(f"{command.plan}: arm {name}: each_task is for rankers")
            for task in tasks.schema.task_names:
                if f"{name}.{task}" in (plan.arms.keys() | arms.keys()):
                    raise ConfigError(
                        f"{command.plan}: arm {name} trains a model for {task} as {name}.{task}, but an arm has this name already"
                    )
                arms[f"{name}.{task}"] = _candidates(experiment, {**shared, "tasks": [task]}, arm.choices)
            joined[name] = tuple(f"{name}.{task}" for task in tasks.schema.task_names)
        else:
            arms[name] = _candidates(experiment, shared, arm.choices)
    for text in command.arms:
        name, equals, source = text.partition("=")
        if not equals:
            raise ConfigError(f"--arms takes NAME=SOURCE, not {text!r}")
        if name in arms or name in joined:
            raise ConfigError(f"--arms {name}: there is an arm of this name already; give it another")
        arms[name] = (Candidate({}, apply_parameters(_experiment(source, Path()), settings)),)
    return PlannedComparison(
        {
            name: tuple(replace(candidate, experiment=candidate.experiment.absolute()) for candidate in candidates)
            for name, candidates in arms.items()
        },
        command.baseline or plan.baseline or next(iter(arms), ""),
        seeds,
        plan.choice_seeds if command.choice_seeds is None else command.choice_seeds,
        joined,
        None if plan.further is None else _further(plan.further, arms, f"{command.plan}: further"),
    )


def _candidates(
    experiment: AnyExperiment, shared: Mapping[str, Any], choices: tuple[Mapping[str, Any], ...]
) -> tuple[Candidate, ...]:
    """One candidate for each choice, on top of the settings that they share; without choices the arm itself."""
    return tuple(Candidate(choice, apply_parameters(experiment, {**shared, **choice})) for choice in choices or ({},))


def _further(options: Mapping[str, Any], arms: Mapping[str, tuple[Candidate, ...]], where: str) -> FurtherEvaluation:
    """The evaluation of the arms' family with these options, its paths absolute."""
    kinds = {candidate.experiment.kind for candidates in arms.values() for candidate in candidates}
    if len(kinds) != 1:
        raise ConfigError(f"{where}: is for arms of one family, not of {', '.join(sorted(kinds)) or 'none'}")
    path = family_of(kinds.pop()).evaluation_path
    evaluation = None if path is None else follow(path)
    if evaluation is None or not hasattr(evaluation, "judge_each"):
        raise ConfigError(f"{where}: models of this family cannot be judged further")
    found = from_plain(evaluation, dict(options), where)
    paths = {part.name: getattr(found, part.name) for part in fields(found)}
    wanted: FurtherEvaluation = replace(
        found, **{name: path.resolve() for name, path in paths.items() if isinstance(path, Path)}
    )
    return wanted


def _setting(text: str) -> tuple[str, Any]:
    """PATH=VALUE; the value is JSON, or the text itself where it is none."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--settings takes PATH=VALUE, not {text!r}")
    try:
        return path, json.loads(value)
    except json.JSONDecodeError:
        return path, value


def _experiment(source: str, folder: Path) -> AnyExperiment:
    file = folder / source
    if file.is_file():
        return read_experiment(file.read_bytes(), str(file))
    if file.suffix == ".json" or len(file.parts) > 1:
        raise ConfigError(f"{file}: no such file")
    return read_experiment(Tracker().config_text(source), f"run {source}")


def main() -> None:
    with told():
        compare(read(Compare, description=__doc__))


if __name__ == "__main__":
    main()
