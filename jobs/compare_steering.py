"""Who follows a preference: python -m jobs.compare_steering --sequences S --semantic-ids I --preferences.benchmark B --out OUT.

Trains each arm with several seeds on one split, judges all on the five axes, beside popularity and, with --embeddings, the text
encoder alone; a table, training speed, and the star plot. Trains in this process; the same command again goes on where a killed
one stopped. Arms: models of the retriever family, and mender_emb_all or mender_tok_all, trained on all axes ("Mender-All").
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import tyro
from torch import Tensor

from rayrec.data.preferences.benchmark import Benchmark, read_benchmark
from rayrec.data.preferences.pools import AXES
from rayrec.data.sequences import read_sequences
from rayrec.data.sequences.item_embeddings import read_embeddings
from rayrec.errors import told
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.preferences import benchmark_features
from rayrec.families.retriever.steering import (
    AxisResult,
    judge_axes,
    nearest_ranks,
    popularity_ranks,
    ranks_of,
    star_plot,
)
from rayrec.families.retriever.task import ModelName
from rayrec.files import write_text_atomically
from rayrec.reporting import Section, Table, write_page
from rayrec.reporting.page import text_table
from rayrec.training.checkpoint import best_weights, read_progress
from rayrec.training.experiment import train_here
from rayrec.training.reporters import FolderReporter
from rayrec.typed_json import ConfigError, from_json, to_json

Arm = Literal["sasrec", "tiger", "dense", "liger", "mender_emb", "mender_tok", "mender_emb_all", "mender_tok_all"]
_ALL = "_all"


@dataclass(frozen=True)
class CompareSteering:
    """Compare on the five axes.

    out: folder of checkpoints, results and report. experiment: what all have in common; model, axes and seeds are replaced.
    embeddings: of jobs.embed_items by the benchmark's encoder, for the text encoder alone.
    epochs: of single arms, where they differ ("tiger 5"); beams: of the search.
    """

    out: Path
    experiment: Annotated[RetrieverExperiment, tyro.conf.arg(name="")]
    arms: tuple[Arm, ...] = ("sasrec", "tiger", "liger", "mender_emb", "mender_emb_all", "mender_tok")
    seeds: tuple[int, ...] = (0, 1, 2)
    embeddings: Path | None = None
    epochs: dict[Arm, int] = field(default_factory=dict)
    beams: int = 20


@dataclass(frozen=True)
class Trial:
    """An arm trained with a seed. rows_a_second: training rows, reading and evaluations included."""

    arm: str
    seed: int
    method: str
    parameters: int
    training_seconds: float
    rows_a_second: float
    results: tuple[AxisResult, ...]


def run(command: CompareSteering) -> list[Trial]:
    """Train what is not trained yet, judge, print the table; the report is written anew after each arm."""
    benchmark, trials = _benchmark(command.experiment), _untrained(command)
    planned = [(seed, arm) for seed in command.seeds for arm in command.arms]
    for done, (seed, arm) in enumerate(planned):
        _report(command, benchmark, trials, f"{done} of {len(planned)} trained.")
        trials.append(trial(command, benchmark, arm, seed))
    table = _report(command, benchmark, trials, f"All {len(planned)} trained.")
    print(text_table(table))
    print(f"report: {command.out / 'report' / 'report.html'}")
    print(json.dumps({arm: dict(zip(AXES, _shown(own), strict=True)) for arm, own in _by_arm(trials).items()}))
    return trials


def trial(command: CompareSteering, benchmark: Benchmark, arm: Arm, seed: int) -> Trial:
    """From its result file, or trained and judged now. Raises ConfigError when the folder stands for another experiment."""
    folder, base = command.out / f"{arm}-{seed}", command.experiment.absolute()
    model = cast(ModelName, arm.removesuffix(_ALL))
    axes = AXES if arm.endswith(_ALL) else ("recommendation",)
    epochs = command.epochs.get(arm, base.loop.epochs)
    experiment = replace(
        base,
        retrieval=replace(base.retrieval, model=model),
        preferences=replace(base.preferences, axes=axes),
        loop=replace(base.loop, seed=seed, epochs=epochs),
        stream=replace(base.stream, seed=seed),
    )
    folder.mkdir(parents=True, exist_ok=True)
    config, result = folder / "experiment.json", folder / "result.json"
    if config.is_file() and from_json(RetrieverExperiment, config.read_bytes(), str(config)) != experiment:
        raise ConfigError(f"{folder} holds another experiment; choose another --out, or remove it")
    write_text_atomically(config, to_json(experiment))
    if result.is_file():
        return from_json(Trial, result.read_bytes(), str(result))
    print(f"{arm}, seed {seed}", flush=True)
    reporter = FolderReporter(folder / "checkpoints")
    train_here(experiment, reporter)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    experiment.save_bundle(checkpoint, folder / "bundle")
    task, interactions = experiment.task(), read_sequences(experiment.sequences).interactions
    model_ = task.build()
    model_.load_state_dict(best_weights(checkpoint))
    searcher = task.searcher(model_)
    method = searcher.methods[-1]  # LIGER's hybrid
    features = benchmark_features(benchmark, experiment.retrieval, experiment.encoder_texts())
    ranks = ranks_of(task, searcher, method, command.beams)
    found = judge_axes(benchmark, interactions, ranks, features, experiment.retrieval.architecture.max_length)
    progress, parameters = read_progress(checkpoint), sum(p.numel() for p in model_.parameters())
    speed = progress.step * experiment.stream.batch_size / max(progress.seconds, 1e-9)
    done = Trial(arm, seed, method, parameters, progress.seconds, speed, found)
    write_text_atomically(result, to_json(done))
    return done


def _untrained(command: CompareSteering) -> list[Trial]:
    """Popularity, and the text encoder alone where there are embeddings of items."""
    experiment, benchmark = command.experiment, _benchmark(command.experiment)
    data = read_sequences(experiment.sequences)
    blind = replace(experiment, retrieval=replace(experiment.retrieval, model="sasrec"))
    counts = blind.task().catalogue.counts
    found = [("popularity", judge_axes(benchmark, data.interactions, popularity_ranks(counts), None, 1))]
    if command.embeddings is not None:
        items, record = read_embeddings(command.embeddings, data.items)
        if record.encoder != benchmark.card.encoder:
            raise ConfigError(
                f"{command.embeddings}: by {record.encoder!r}, the benchmark's are by {benchmark.card.encoder!r}"
            )
        features: Tensor = torch.from_numpy(benchmark.vectors.copy())
        found.append(("text encoder", judge_axes(benchmark, data.interactions, nearest_ranks(items), features, 1)))
    return [Trial(name, 0, "untrained", 0, 0.0, 0.0, results) for name, results in found]


def _benchmark(experiment: RetrieverExperiment) -> Benchmark:
    if experiment.preferences.benchmark is None:
        raise ConfigError("preferences.benchmark is missing; make it with python -m jobs.build_preference_benchmark")
    interactions = read_sequences(experiment.sequences).interactions
    return read_benchmark(experiment.preferences.benchmark, interactions.num_users, interactions.num_items)


def _by_arm(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    arms: dict[str, list[Trial]] = {}
    for one in trials:
        arms.setdefault(one.arm, []).append(one)
    return arms


def _shown(trials: Sequence[Trial]) -> list[float | None]:
    """What the star plot draws: means over seeds."""
    return [_mean([t.results[i].shown for t in trials])[0] for i in range(len(AXES))]


def _mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return (statistics.mean(known) if known else None), (statistics.stdev(known) if len(known) > 1 else None)


def _report(command: CompareSteering, benchmark: Benchmark, trials: Sequence[Trial], text: str) -> Table:
    arms, rows = _by_arm(trials), []
    for arm, own in arms.items():
        cells = []
        for i, axis in enumerate(AXES):
            for metric in ("m@10",) if axis == "sentiment" else ("recall@10", "ndcg@10"):
                mean, deviation = _mean([t.results[i].metrics[metric] for t in own])
                cells.append(
                    "n/a" if mean is None else f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
                )
        speed = statistics.median(t.rows_a_second for t in own)
        rows.append(
            (arm, own[0].method, *cells, f"{own[0].parameters:,}", f"{speed:,.0f}" if speed else "", str(len(own)))
        )
    heads = [f"{axis} {m}" for axis in AXES for m in (("m@10",) if axis == "sentiment" else ("R@10", "N@10"))]
    table = Table(("arm", "method", *heads, "parameters", "rows/s", "seeds"), tuple(rows))
    drawn = {"sentiment": "m@10"}
    means = {
        arm: [AxisResult(a, 0, {drawn.get(a, "recall@10"): v}) for a, v in zip(AXES, _shown(own), strict=True)]
        for arm, own in arms.items()
    }
    counts = ", ".join(
        f"{c.axis} {c.rows:,} ({c.unseen:,} with an unseen preference)"
        for c in benchmark.card.counts
        if c.split == "test"
    )
    note = f"Test pools: {counts}. Sentiment: {benchmark.card.sentiment}. Means over seeds, standard deviation behind. {text}"
    sections = (
        Section("Five axes", note, table=table, figures={"star": star_plot(means)}),
        Section("What all have in common", code=to_json(command.experiment)),
    )
    write_page(command.out / "report", f"Steering compared: {benchmark.card.source}", sections)
    return table


def main() -> None:
    with told():
        run(tyro.cli(CompareSteering, description=__doc__))


if __name__ == "__main__":
    main()
