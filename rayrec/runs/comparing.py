"""A comparison from its arms to its report: what every command that compares runs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rayrec.errors import UserError
from rayrec.files import write_text_atomically
from rayrec.reporting import Section, write_page
from rayrec.reporting.page import text_table
from rayrec.runs.comparison import (
    Comparison,
    ComparisonState,
    TrialOptions,
    describe_left,
    open_comparison,
    run_trials,
    tell_of_trials,
)
from rayrec.runs.comparison_report import (
    comparison_sections,
    differences_table,
    means_table,
    metrics_in_order,
    outcomes,
    reported,
    results_csv,
)
from rayrec.runs.further import FurtherEvaluation
from rayrec.training.judging import Judged
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError

Sections = Callable[[ComparisonState], Sequence[Section]]


class TrialsFailed(UserError):
    """Some trials failed, after all others were done and reported."""


@dataclass(frozen=True)
class Judging:
    """How arms are judged beside their own evaluation.

    split: whose metrics the report shows. wanted: what else is asked of each trained model.
    untrained: what the arms are shown beside. sections: further ones of the report.
    shown: metrics in the terminal, where the report has all; None = the first two that the task follows.
    """

    split: str = "test"
    wanted: FurtherEvaluation | None = None
    untrained: Mapping[str, Judged] = field(default_factory=dict)
    sections: Sections = lambda state: ()
    shown: tuple[str, ...] | None = None


def run_comparison(
    name: str,
    comparison: Comparison,
    options: TrialOptions,
    judging: Judging,
    *,
    status: bool = False,
    began: float | None = None,
) -> ComparisonState:
    """Train and judge what is left of a comparison, print its tables, write and log its report; returns where it stands.

    status: do nothing, report what is there. began: when ``options.start_until`` began to count; None = now.
    Raises ConfigError for arms that are wrong, TrialsFailed when some failed (after all others are done and reported).
    """
    state = replace(open_comparison(name, comparison, judging.wanted), untrained=judging.untrained)
    state = train_what_is_left(state, options, status=status, began=began)
    if state.done:
        report(state, judging)
    raise_failures(state)
    return state


def train_what_is_left(
    state: ComparisonState, options: TrialOptions, *, status: bool = False, began: float | None = None, what: str = ""
) -> ComparisonState:
    """Print where the comparison stands, train unless ``status``, print it again. what: the beginning of these lines."""
    print(f"{what}{describe_left(state)}", flush=True)
    if status or not state.left:
        return state
    until = options.start_until
    left = None if until is None or began is None else until - (time.monotonic() - began)
    state = run_trials(state, replace(options, start_until=until if began is None else left))
    print(f"{what}{describe_left(state)}", flush=True)
    return state


def raise_failures(state: ComparisonState) -> None:
    if state.failed:
        raise TrialsFailed(
            "trials failed; the same command tries them again: "
            + "; ".join(f"{key}: {error}" for key, error in state.failed.items())
        )


def report(state: ComparisonState, judging: Judging) -> None:
    """Tables of the first metrics, the page with all of them, a CSV, and both in MLflow.

    Raises UserError when all is written but the tracking store is away.
    """
    found = outcomes(state)
    splits = sorted({outcome.split for outcome in found})
    if judging.split not in splits:
        raise ConfigError(f"no arm was judged on split {judging.split!r}; splits: {', '.join(splits)}")
    comparison = state.record.comparison
    of_split = [outcome for outcome in found if outcome.split == judging.split]
    here = {outcome.metric for outcome in of_split}
    first = tuple(metric for metric in metrics_in_order(state) if metric in here)[:2]
    for metric in judging.shown or first:
        of_metric = [outcome for outcome in of_split if outcome.metric == metric]
        print(f"\n{metric}, {judging.split} split: mean ± standard error")
        print(text_table(means_table(of_metric, reported(found), comparison.baseline)))
        print(f"difference to {comparison.baseline} [95 % t interval], * where told from 0 in this table")
        print(text_table(differences_table(of_metric, reported(found))))
    sections = (*comparison_sections(state, judging.split), *judging.sections(state))
    page = write_page(state.folder / "report", state.folder.name, sections)
    write_text_atomically(page.parent / "results.csv", results_csv(found))
    tracker, run = Tracker(state.record.tracking_uri, state.record.mlflow_run), state.record.mlflow_run
    means = {f"{o.arm}/{o.split}/{o.task}/{o.metric}": o.estimate.mean for o in found}
    differences = {
        f"{o.arm}/{o.split}/{o.task}/{o.metric}/difference": o.difference.mean
        for o in found
        if o.difference is not None
    }
    print(f"\nreport: {page}\nMLflow run: {run}")
    with tracker.told(f"{len(state.done)} trials are done and reported ({page})"):
        tell_of_trials(state, tracker)
        tracker.log_folder(run, page.parent, "report")
        tracker.log_metrics(run, {**means, **differences}, len(state.done))
        if not state.left:
            tracker.finish(run)
