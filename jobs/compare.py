"""Train several experiments over several seeds and compare them: python -m jobs.compare PLAN.json --name NAME.

Running the same command again goes on where a killed comparison stopped; with more arms or seeds it trains only what is new.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from rayrec.bundle import BundleError
from rayrec.data.log import LogError
from rayrec.reporting import write_page
from rayrec.training.comparison import (
    Comparison,
    ComparisonState,
    TrialOptions,
    describe_left,
    open_comparison,
    run_trials,
)
from rayrec.training.comparison_report import (
    comparison_sections,
    differences_table,
    means_table,
    metrics_in_order,
    outcomes,
    results_csv,
    text_table,
)
from rayrec.training.kinds import AnyExperiment, read_experiment
from rayrec.training.sweeping import apply_parameters
from rayrec.training.tracking import RegistryError, Tracker
from rayrec.typed_json import ConfigError, from_json, write_text_atomically

SHOWN_METRICS = 2  # in the terminal; the report has all


@dataclass(frozen=True)
class ArmPlan:
    """One arm: an experiment (its own ``source``, else the plan's base) with ``settings`` on top, by dotted path."""

    source: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A comparison as a file. A source is the path of an experiment's JSON, relative to this file, or an MLflow run id.

    settings: on top of every arm's experiment, below the arm's own. baseline: None = the first arm.
    """

    arms: Mapping[str, ArmPlan]
    base: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Compare:
    """Compare experiments.

    plan: a JSON file with "arms", "base", "settings", "baseline", "seeds" (see docs/compare.md).
    arms: further arms, or all of them without a plan: NAME=SOURCE, SOURCE a file of an experiment's JSON or an MLflow run id.
    name: the comparison's folder; running it again goes on. baseline, seeds: in place of the plan's.
    split: on which arms are judged. status: train nothing, print what is done and what is left, and write the report of it.
    """

    name: str
    plan: tyro.conf.Positional[Path | None] = None
    arms: tuple[str, ...] = ()
    baseline: str | None = None
    seeds: tuple[int, ...] | None = None
    split: str = "test"
    status: bool = False
    trials: Annotated[TrialOptions, tyro.conf.arg(name="")] = field(default_factory=TrialOptions)


def compare(command: Compare) -> ComparisonState:
    """Run what is left of a comparison, print its tables, write and log its report.

    Raises ConfigError for a plan that is wrong, RuntimeError when trials failed (after all others are done and reported).
    """
    state = open_comparison(command.name, comparison_of(command))
    print(describe_left(state), flush=True)
    if not command.status:
        state = run_trials(state, command.trials)
        print(describe_left(state), flush=True)
    if state.done:
        _report(state, command.split)
    if state.failed:
        raise RuntimeError(
            "trials failed; the same command tries them again: "
            + "; ".join(f"{key}: {error}" for key, error in state.failed.items())
        )
    return state


def comparison_of(command: Compare) -> Comparison:
    """The comparison that a command line and its plan describe."""
    folder, plan = Path(), Plan({})
    if command.plan is not None:
        if not command.plan.is_file():
            raise ConfigError(f"{command.plan}: no such file")
        folder, plan = command.plan.parent, from_json(Plan, command.plan.read_bytes(), str(command.plan))
    base = None if plan.base is None else _experiment(plan.base, folder)
    arms: dict[str, AnyExperiment] = {}
    for name, arm in plan.arms.items():
        experiment = base if arm.source is None else _experiment(arm.source, folder)
        if experiment is None:
            raise ConfigError(f'{command.plan}: arm {name} has no source, and the plan no "base"')
        arms[name] = apply_parameters(experiment, {**plan.settings, **arm.settings})
    for text in command.arms:
        name, equals, source = text.partition("=")
        if not equals:
            raise ConfigError(f"--arms takes NAME=SOURCE, not {text!r}")
        arms[name] = _experiment(source, Path())
    baseline = command.baseline or plan.baseline or next(iter(arms), "")
    return Comparison(
        {name: experiment.absolute() for name, experiment in arms.items()},
        baseline,
        plan.seeds if command.seeds is None else command.seeds,
    )


def _experiment(source: str, folder: Path) -> AnyExperiment:
    file = folder / source
    if file.is_file():
        return read_experiment(file.read_bytes(), str(file))
    if file.suffix == ".json" or len(file.parts) > 1:
        raise ConfigError(f"{file}: no such file")
    return read_experiment(Tracker().config_text(source), f"run {source}")


def _report(state: ComparisonState, split: str) -> None:
    found = outcomes(state)
    splits = sorted({outcome.split for outcome in found})
    if split not in splits:
        raise ConfigError(f"no arm was judged on split {split!r}; splits: {', '.join(splits)}")
    comparison = state.record.comparison
    for metric in metrics_in_order(state)[:SHOWN_METRICS]:
        of_metric = [outcome for outcome in found if outcome.metric == metric and outcome.split == split]
        print(f"\n{metric}, {split} split: mean ± standard error")
        print(text_table(means_table(of_metric, list(comparison.arms), comparison.baseline)))
        print(f"difference to {comparison.baseline} [95 % bootstrap interval]")
        print(text_table(differences_table(of_metric, list(comparison.arms))))
    page = write_page(state.folder / "report", state.folder.name, comparison_sections(state, split))
    write_text_atomically(page.parent / "results.csv", results_csv(found))
    tracker, run = Tracker(state.record.tracking_uri), state.record.mlflow_run
    tracker.log_folder(run, page.parent, "report")
    means = {f"{o.arm}/{o.split}/{o.task}/{o.metric}": o.estimate.mean for o in found}
    differences = {
        f"{o.arm}/{o.split}/{o.task}/{o.metric}/difference": o.difference.mean
        for o in found
        if o.difference is not None
    }
    tracker.log_metrics(run, {**means, **differences}, len(state.done))
    if not state.left:
        tracker.finish(run)
    print(f"\nreport: {page}\nMLflow run: {run}")


def main() -> None:
    try:
        compare(tyro.cli(Compare, description=__doc__))
    except (BundleError, ConfigError, LogError, RegistryError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
