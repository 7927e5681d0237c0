"""Judges a trained retriever by every method it has, on the sequences that it was trained on or others of the same items."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rayrec.data.preferences.benchmark import read_benchmark
from rayrec.data.sequences import read_sequences
from rayrec.families.retriever.bundle import RetrieverBundle, load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.judging import Judgement, judge
from rayrec.families.retriever.preferences import benchmark_features
from rayrec.families.retriever.steering import AxisResult, judge_axes, popularity_ranks, ranks_of, star_plot
from rayrec.reporting import Table
from rayrec.reporting.page import number
from rayrec.retrieval.searching import HEADS
from rayrec.typed_json import ConfigError, from_plain

SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class EvaluateRetriever:
    """Judge a retriever.

    split: which targets. beams: widths of the beam search. sequences: None = those it was trained on.
    benchmark: of jobs.build_preference_benchmark: judge on its five axes instead, models that are blind to preferences included.
    beside: further bundles to judge there. star: where to write the star plot, as .png, .svg or .pdf; popularity is drawn too.
    """

    split: Literal["valid", "test"] = "test"
    beams: tuple[int, ...] = (20,)
    sequences: Path | None = None
    benchmark: Path | None = None
    beside: tuple[Path, ...] = ()
    star: Path | None = None

    def judge(self, folder: Path) -> list[Judgement]:
        """One judgement by method and width. Raises BundleError or ConfigError that names what does not fit."""
        bundle, experiment = self._open(folder)
        task = experiment.task()
        searcher = task.searcher(bundle.model)
        return [
            judge(experiment, task, searcher, method, split=self.split, beams=beams)
            for method in searcher.methods
            for beams in (self.beams if "generative" in HEADS[method] else (None,))
        ]

    def _open(self, folder: Path) -> tuple[RetrieverBundle, RetrieverExperiment]:
        bundle = load_retriever(folder)
        experiment = from_plain(RetrieverExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
        if self.sequences is not None:
            experiment = replace(experiment, sequences=self.sequences.resolve())
        if self.benchmark is not None:  # instead of the one that it was trained with, which may be gone
            experiment = replace(
                experiment, preferences=replace(experiment.preferences, benchmark=self.benchmark.resolve())
            )
        if tuple(read_sequences(experiment.sequences).items.names.to_pylist()) != bundle.names:
            raise ConfigError(f"{experiment.sequences}: other items than those of {bundle.path}")
        return bundle, experiment

    def judge_axes(self, folder: Path) -> dict[str, tuple[AxisResult, ...]]:
        """By model and method, and popularity for comparison. Raises BundleError or ConfigError that names what does not fit."""
        assert self.benchmark is not None
        found: dict[str, tuple[AxisResult, ...]] = {}
        for one in (folder, *self.beside):
            bundle, experiment = self._open(one)
            task, interactions = experiment.task(), read_sequences(experiment.sequences).interactions
            benchmark = read_benchmark(self.benchmark, interactions.num_users, interactions.num_items)
            saved = bundle.saved.preferences
            if saved is not None and saved.texts is None and saved.encoder != benchmark.card.encoder:
                raise ConfigError(
                    f"{self.benchmark}: preferences embedded by {benchmark.card.encoder!r}, {one} reads {saved.encoder!r}"
                )
            features = benchmark_features(benchmark, bundle.saved.retrieval, None if saved is None else saved.texts)
            searcher, length = task.searcher(bundle.model), bundle.saved.retrieval.architecture.max_length
            if not found:
                counts = task.catalogue.counts
                found["popularity"] = judge_axes(
                    benchmark, interactions, popularity_ranks(counts), None, 1, split=self.split
                )
            for method in searcher.methods:
                for beams in self.beams if "generative" in HEADS[method] else (None,):
                    name = f"{bundle.saved.retrieval.model} {method}" + ("" if beams is None else f" {beams}")
                    while name in found:
                        name += "'"
                    ranks = ranks_of(task, searcher, method, beams)
                    found[name] = judge_axes(benchmark, interactions, ranks, features, length, split=self.split)
        return found

    def evaluate(self, folder: Path) -> Table:
        """The judgements as a table: one row a method, width and group of targets, or a method and axis."""
        if self.benchmark is not None:
            axes = self.judge_axes(folder)
            if self.star is not None:
                star_plot(axes).savefig(self.star, dpi=110)
            return Table(("model", "axis", "rows", *SHOWN, "m@5", "m@10"), tuple(
                (name, one.axis, f"{one.rows:,}", *(
                    number(one.metrics[m], 4) if m in one.metrics else "" for m in (*SHOWN, "m@5", "m@10")
                ))
                for name, results in axes.items() for one in results
            ))  # fmt: skip
        rows = []
        for one in self.judge(folder):
            name = one.method if one.beams is None else f"{one.method} {one.beams}"
            for group, metrics in one.metrics.items():
                cells = (number(metrics[metric], 4) for metric in SHOWN)
                rows.append((name, group, f"{metrics['users']:,.0f}", *cells, f"{one.milliseconds:.3f}"))
        return Table(("method", "targets", "users", *SHOWN, "ms/user"), tuple(rows))
