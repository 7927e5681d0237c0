"""Generative and dense retrieval compared: python -m jobs.compare_retrieval --sequences S --semantic-ids I --out FOLDER.

SASRec, the dense text retriever, TIGER and LIGER on one split, with equal widths, equal epochs and several seeds: metrics in-set
and cold, parameters, bytes of the index, time a user, training time; a table and quality against cost. Trains in this process;
running the same command again goes on where a killed one stopped, and the report tells what is there so far.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from rayrec.errors import told
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.judging import Judgement, judge
from rayrec.families.retriever.task import ModelName
from rayrec.files import write_text_atomically
from rayrec.metrics.paired import mean_estimate
from rayrec.reporting import Section, Table, write_page
from rayrec.reporting.page import number
from rayrec.retrieval.searching import HEADS
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.experiment import train_here
from rayrec.training.reporters import FolderReporter
from rayrec.typed_json import ConfigError, from_json, to_json

COLUMNS = ("in_set recall@5", "in_set ndcg@5", "in_set recall@10", "in_set ndcg@10", "cold recall@10", "cold ndcg@10")


@dataclass(frozen=True)
class CompareRetrieval:
    """Compare retrievers.

    out: folder of checkpoints, results and report. experiment: what all have in common; its model and seeds are replaced.
    beams: widths at which the generative and hybrid methods are judged; a model that has both, at the least one by the former.
    """

    out: Path
    experiment: Annotated[RetrieverExperiment, tyro.conf.arg(name="")]
    models: tuple[ModelName, ...] = ("sasrec", "dense", "tiger", "liger")
    seeds: tuple[int, ...] = (0, 1, 2)
    beams: tuple[int, ...] = (20, 40, 100)


@dataclass(frozen=True)
class Trial:
    """A model trained with a seed, and how it is judged by each method."""

    model: ModelName
    seed: int
    parameters: int
    training_seconds: float
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True)
class Row:
    """A model by a method: means and standard deviations over seeds, in the order of COLUMNS (None where undefined).

    user_errors: standard errors over the judged users of the means over seeds; None where not known.
    """

    name: str
    means: tuple[float | None, ...]
    deviations: tuple[float | None, ...]
    user_errors: tuple[float | None, ...]
    parameters: int
    index_bytes: int
    milliseconds: float
    training_seconds: float
    seeds: int


def run(command: CompareRetrieval) -> list[Row]:
    """Train what is not trained yet, judge, print the table; the report is written anew after each model."""
    command.experiment.check()
    trials: list[Trial] = []
    rows: list[Row] = []
    planned = [(seed, model) for seed in command.seeds for model in command.models]
    for seed, model in planned:
        trials.append(trial(command, model, seed))
        rows = table(trials)
        text = "Mean over seeds, standard deviation behind it, standard error over users in brackets; "
        text += f"{len(trials)} of {len(planned)} trained models."
        write_page(command.out / "report", "Retrieval compared", sections(rows, command, text))
    print(
        f"{'':<14}" + "".join(f"{name:>18}" for name in COLUMNS) + f"{'ms/user':>10}{'index kB':>10}{'training s':>12}"
    )
    for row in rows:
        cells = "".join(f"{_cell(m, d):>18}" for m, d in zip(row.means, row.deviations, strict=True))
        print(
            f"{row.name:<14}{cells}{row.milliseconds:>10.3f}{row.index_bytes / 1e3:>10,.0f}{row.training_seconds:>12.1f}"
        )
    print(f"report: {command.out / 'report' / 'report.html'}")
    print(json.dumps({row.name: dict(zip(COLUMNS, row.means, strict=True)) for row in rows}))
    return rows


def trial(command: CompareRetrieval, model: ModelName, seed: int) -> Trial:
    """From its result file, or trained and judged now. Raises ConfigError when the folder stands for another experiment."""
    folder = command.out / f"{model}-{seed}"
    base = command.experiment.absolute()
    experiment = replace(
        base,
        retrieval=replace(base.retrieval, model=model),
        loop=replace(base.loop, seed=seed),
        stream=replace(base.stream, seed=seed),
    )
    folder.mkdir(parents=True, exist_ok=True)
    config, result = folder / "experiment.json", folder / "result.json"
    if config.is_file() and from_json(RetrieverExperiment, config.read_bytes(), str(config)) != experiment:
        raise ConfigError(f"{folder} holds another experiment; choose another --out, or remove it")
    write_text_atomically(config, to_json(experiment))
    if result.is_file():
        return from_json(Trial, result.read_bytes(), str(result))
    print(f"{model}, seed {seed}", flush=True)
    reporter = FolderReporter(folder / "checkpoints")
    train_here(experiment, reporter)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    task = experiment.task()
    trained = task.build()
    trained.load_state_dict(best_weights(checkpoint))
    judgements = []
    searcher = task.searcher(trained)
    for method in searcher.methods:
        widths: tuple[int | None, ...] = command.beams if "generative" in HEADS[method] else (None,)
        if method == "generative" and "hybrid" in searcher.methods:  # the same searches once more: one shows their part
            widths = (min(command.beams),)
        for beams in widths:
            judgements.append(judge(experiment, task, searcher, method, beams=beams))
    parameters = sum(p.numel() for p in trained.parameters())
    done = Trial(model, seed, parameters, read_progress(checkpoint).seconds, tuple(judgements))
    write_text_atomically(result, to_json(done))
    return done


def table(trials: Sequence[Trial]) -> list[Row]:
    """One row for each model and method, over all seeds."""
    groups: dict[str, list[tuple[Trial, Judgement]]] = {}
    for one in trials:
        for judgement in one.judgements:
            method = "" if len(one.judgements) == 1 else f" {judgement.method}"
            beams = "" if judgement.beams is None else f" {judgement.beams}"
            groups.setdefault(f"{one.model}{method}{beams}", []).append((one, judgement))
    rows = []
    for name, members in groups.items():
        columns = []
        user_errors: list[float | None] = []
        for column in COLUMNS:
            group, metric = column.split()
            values = [value for _, j in members if (value := j.metrics[group][metric]) is not None]
            columns.append(
                (statistics.mean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None)
            )
            rests = [j.left_out.get(group, {}).get(metric, ()) for _, j in members]
            known = len(values) == len(members) and all(rests)
            user_errors.append(mean_estimate(values, rests).group_error if known else None)
        first, judgement = members[0]
        rows.append(
            Row(
                name,
                tuple(mean for mean, _ in columns),
                tuple(deviation for _, deviation in columns),
                tuple(user_errors),
                first.parameters,
                judgement.index_bytes,
                statistics.median(j.milliseconds for _, j in members),
                statistics.median(t.training_seconds for t, _ in members),
                len(members),
            )
        )
    return rows


def sections(rows: Sequence[Row], command: CompareRetrieval, text: str) -> tuple[Section, ...]:
    """The table, quality against cost, and the config."""
    head = ("retriever", *COLUMNS, "parameters", "index bytes", "ms a user", "training s", "seeds")
    cells = tuple(
        (
            row.name,
            *(_cell(m, d, e) for m, d, e in zip(row.means, row.deviations, row.user_errors, strict=True)),
            f"{row.parameters:,}",
            f"{row.index_bytes:,}",
            number(row.milliseconds, 3),
            number(row.training_seconds, 1),
            str(row.seeds),
        )
        for row in rows
    )
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for place, column in enumerate(("in_set ndcg@10", "cold ndcg@10"), 1):
        panel = figure.add_subplot(1, 2, place)
        families: dict[str, list[tuple[float, float, str]]] = {}  # the widths of one method are points of one line
        for row in rows:
            value = row.means[COLUMNS.index(column)]
            family, beams = row.name.rstrip("0123456789 "), row.name.split()[-1]
            if value is not None:
                point = (row.milliseconds, value, beams if beams.isdigit() else "")
                families.setdefault(family, []).append(point)
        for family, points in families.items():
            panel.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=family)
            for x, y, beams in points:
                panel.annotate(beams, (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
        if families:  # no method has a figure for cold targets when there are none
            panel.legend(fontsize=7, frameon=False)
        panel.set(xscale="log", xlabel="milliseconds a user", ylabel=column)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return (
        Section("Test targets", text, table=Table(head, cells)),
        Section("Quality against cost", figures={"quality_against_cost": figure}),
        Section("What all have in common", code=to_json(command.experiment)),
    )


def _cell(mean: float | None, deviation: float | None, user_error: float | None = None) -> str:
    if mean is None:
        return "n/a"
    users = "" if user_error is None else f" (users {user_error:.4f})"
    return f"{mean:.4f}{users}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}{users}"


def main() -> None:
    with told():
        run(tyro.cli(CompareRetrieval, description=__doc__))


if __name__ == "__main__":
    main()
