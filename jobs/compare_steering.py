"""Who follows a preference: python -m jobs.compare_steering --sequences S --semantic-ids I --preferences.benchmark B --name NAME.

Trains each arm with several seeds on one split, judges all on the five axes, beside popularity and, with --embeddings, the text
encoder alone; tables with intervals, training speed, and the star plot. A comparison as jobs.compare makes them (see
docs/compare.md), in this process: the same command again goes on where a killed one stopped. Arms: models of the retriever
family, and mender_emb_all or mender_tok_all, trained on all axes ("Mender-All").
"""

import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import tyro

from jobs.command_line import read
from rayrec.data.preferences.benchmark import Benchmark, read_benchmark
from rayrec.data.preferences.pools import AXES
from rayrec.data.sequences import read_sequences
from rayrec.data.sequences.item_embeddings import read_embeddings
from rayrec.errors import told
from rayrec.families.retriever.evaluation import AXES_SPLIT, OnAxes, as_judged
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.steering import AxisResult, judge_axes, nearest_ranks, popularity_ranks, star_plot
from rayrec.families.retriever.task import ModelName
from rayrec.reporting import Section
from rayrec.runs.comparing import Judging, run_comparison
from rayrec.runs.comparison import Comparison, ComparisonState, TrialOptions
from rayrec.training.judging import Judged
from rayrec.typed_json import ConfigError

Arm = Literal[
    "sasrec", "tiger", "dense", "liger", "extended_lm", "mender_emb", "mender_tok", "mender_emb_all", "mender_tok_all"
]
_ALL = "_all"


@dataclass(frozen=True)
class CompareSteering:
    """Compare on the five axes."""

    name: str
    """The comparison's folder."""
    experiment: Annotated[RetrieverExperiment, tyro.conf.arg(name="")]
    """What all have in common; model, axes and seeds are replaced."""
    arms: tuple[Arm, ...] = ("sasrec", "tiger", "liger", "mender_emb", "mender_emb_all", "mender_tok")
    """The first is the baseline."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs; each seeds weights, order of rows and draws."""
    embeddings: Path | None = None
    """Of jobs.embed_items by the benchmark's encoder, for the text encoder alone."""
    epochs: dict[Arm, int] = field(default_factory=dict)
    """Of single arms, where they differ ("tiger 5"); beams: of the search."""
    beams: int = 20
    """Of the beam search."""
    status: bool = False
    """Train nothing, report what is there."""
    trials: Annotated[TrialOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: TrialOptions(in_process=True)
    )
    """How the trials run."""


def run(command: CompareSteering) -> ComparisonState:
    """Train and judge what is left, print and write the report, and what the star plot shows as one line of JSON."""
    base = command.experiment.absolute()
    benchmark = _benchmark(base)
    assert base.preferences.benchmark is not None
    comparison = Comparison(
        {arm: _experiment(command, base, arm) for arm in command.arms}, command.arms[0], command.seeds
    )
    judging = Judging(
        AXES_SPLIT,
        OnAxes(base.preferences.benchmark, command.beams),
        _untrained(base, benchmark, command.embeddings),
        lambda state: (_star(state, benchmark),),
        ("recall@10", "ndcg@10", "m@10"),
    )
    state = run_comparison(command.name, comparison, command.trials, judging, status=command.status)
    print(json.dumps({arm: dict(zip(AXES, shown, strict=True)) for arm, shown in _shown(state).items()}))
    return state


def _experiment(command: CompareSteering, base: RetrieverExperiment, arm: Arm) -> RetrieverExperiment:
    axes = AXES if arm.endswith(_ALL) else ("recommendation",)
    return replace(
        base,
        retrieval=replace(base.retrieval, model=cast(ModelName, arm.removesuffix(_ALL))),
        preferences=replace(base.preferences, axes=axes),
        loop=replace(base.loop, epochs=command.epochs.get(arm, base.loop.epochs)),
    )


def _untrained(experiment: RetrieverExperiment, benchmark: Benchmark, embeddings: Path | None) -> dict[str, Judged]:
    """Popularity, and the text encoder alone where there are embeddings of items."""
    data = read_sequences(experiment.sequences)
    blind = replace(experiment, retrieval=replace(experiment.retrieval, model="sasrec"))
    popular = popularity_ranks(blind.task().catalogue.counts)
    found = {"popularity": as_judged(judge_axes(benchmark, data.interactions, popular, None, 1))}
    if embeddings is not None:
        items, record = read_embeddings(embeddings, data.items)
        if record.encoder != benchmark.card.encoder:
            raise ConfigError(f"{embeddings}: by {record.encoder!r}, the benchmark's are by {benchmark.card.encoder!r}")
        features = torch.from_numpy(benchmark.vectors.copy())
        found["text encoder"] = as_judged(judge_axes(benchmark, data.interactions, nearest_ranks(items), features, 1))
    return found


def _benchmark(experiment: RetrieverExperiment) -> Benchmark:
    if experiment.preferences.benchmark is None:
        raise ConfigError("preferences.benchmark is missing; make it with python -m jobs.build_preference_benchmark")
    interactions = read_sequences(experiment.sequences).interactions
    return read_benchmark(experiment.preferences.benchmark, interactions)


def _shown(state: ComparisonState) -> dict[str, list[float | None]]:
    """What the star plot draws, by arm in the order of AXES: means over seeds."""
    judged = {name: [one] for name, one in state.untrained.items()}
    for arm in state.record.comparison.arms:
        own = [ways[""] for key, ways in state.further.items() if key.arm == arm]
        if own:
            judged[arm] = own
    shown = {}
    for name, found in judged.items():
        drawn = [[one.metrics[axis][_drawn(axis)] for one in found] for axis in AXES]
        known = [[value for value in values if value is not None] for values in drawn]
        shown[name] = [statistics.mean(values) if values else None for values in known]
    return shown


def _drawn(axis: str) -> str:
    return "m@10" if axis == "sentiment" else "recall@10"


def _star(state: ComparisonState, benchmark: Benchmark) -> Section:
    counts = ", ".join(
        f"{c.axis} {c.rows:,} ({c.unseen:,} with an unseen preference)"
        for c in benchmark.card.counts
        if c.split == "test"
    )
    note = f"Test pools: {counts}. Sentiment: {benchmark.card.sentiment}. Means over seeds."
    drawn = {
        arm: [AxisResult(axis, 0, {_drawn(axis): value}) for axis, value in zip(AXES, shown, strict=True)]
        for arm, shown in _shown(state).items()
    }
    return Section(f"Five axes of {benchmark.card.source}", note, figures={"star": star_plot(drawn)})


def main() -> None:
    with told():
        run(read(CompareSteering, description=__doc__))


if __name__ == "__main__":
    main()
