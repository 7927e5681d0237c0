"""Judges a trained retriever by every method it has, on the sequences that it was trained on or others of the same items.

``EachMethod`` and ``OnAxes`` are what comparisons ask of each trained retriever (see rayrec.runs.further).
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rayrec.data.preferences.benchmark import Benchmark, read_benchmark
from rayrec.data.sequences import read_sequences
from rayrec.data.sequences.interactions import InteractionsError
from rayrec.families.retriever.bundle import RetrieverBundle, load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.judging import Judgement, judge
from rayrec.families.retriever.preferences import benchmark_features
from rayrec.families.retriever.steering import AxisResult, judge_axes, popularity_ranks, ranks_of, star_plot
from rayrec.families.retriever.task import HistoryItems, RetrievalTask
from rayrec.reporting import Table
from rayrec.reporting.page import number
from rayrec.retrieval.searching import HEADS, Method
from rayrec.training.judging import Judged
from rayrec.typed_json import ConfigError, from_plain

SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class EvaluateRetriever:
    """Judge a retriever."""

    split: Literal["valid", "test"] = "test"
    """Which targets."""
    beams: tuple[int, ...] = (20,)
    """Widths of the beam search."""
    history: tuple[HistoryItems, ...] = ("ranked",)
    """Items of the history are "ranked" like all others, or "excluded" from the candidates (a target among them is a
    miss); or once each."""
    sequences: Path | None = None
    """Folder of the sequences; None = those it was trained on."""
    benchmark: Path | None = None
    """Of jobs.build_preference_benchmark: judge on its five axes instead, models that are blind to preferences
    included."""
    beside: tuple[Path, ...] = ()
    """Further bundles to judge there."""
    star: Path | None = None
    """Where to write the star plot, as .png, .svg or .pdf; popularity is drawn too."""

    def __post_init__(self) -> None:
        _check_beams(self.beams)
        _check_history(self.history)
        if self.benchmark is not None and self.history != ("ranked",):
            raise ConfigError("history: the axes of a benchmark are judged with it ranked")

    def judge(self, folder: Path, *, least_generative: bool = False) -> list[Judgement]:
        """One judgement by method, protocol of the history and width. Raises BundleError or ConfigError of what does not fit.

        least_generative: of a model with a hybrid method, ``generative`` at the least width alone: the searches are the same.
        """
        bundle, experiment = self._open(folder)
        task = experiment.task()
        if self.sequences is not None:
            seen = _seen_in_training(bundle)
            if seen is None:
                print(
                    f"{bundle.path}: the sequences that it was trained on are gone or others: in_set and cold are told apart by "
                    f"what {self.sequences} would train on",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                task = RetrievalTask(replace(task.catalogue, seen=seen), task.config)
        searcher = task.searcher(bundle.model)
        return [
            judge(experiment, task, searcher, method, split=self.split, beams=beams, history=history)
            for method in searcher.methods
            for history in self.history
            for beams in self._widths(method, least_generative and "hybrid" in searcher.methods)
        ]

    def _widths(self, method: Method, least: bool) -> tuple[int | None, ...]:
        if "generative" not in HEADS[method]:
            return (None,)
        return (min(self.beams),) if method == "generative" and least else self.beams

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
        found: dict[str, tuple[AxisResult, ...]] = {}
        for one in (folder, *self.beside):
            bundle, experiment, benchmark, features = self._on_axes(one)
            task, interactions = experiment.task(), read_sequences(experiment.sequences).interactions
            searcher, length = task.searcher(bundle.model), bundle.saved.retrieval.architecture.max_length
            if not found:
                counts = task.catalogue.counts
                found["popularity"] = judge_axes(
                    benchmark, interactions, popularity_ranks(counts), None, 1, split=self.split
                )
            for method in searcher.methods:
                for beams in self._widths(method, False):
                    name = f"{bundle.saved.retrieval.model} {method}" + ("" if beams is None else f" {beams}")
                    while name in found:
                        name += "'"
                    ranks = ranks_of(task, searcher, method, beams)
                    found[name] = judge_axes(
                        benchmark,
                        interactions,
                        ranks,
                        features,
                        length,
                        split=self.split,
                        tokens=experiment.user_tokens(),
                    )
        return found

    def check(self, experiment: RetrieverExperiment) -> None:
        """As that of ``EachMethod`` or ``OnAxes``."""
        self._of_comparison().check(experiment)

    def judge_each(self, bundle: Path) -> dict[str, Judged]:
        """What a comparison asks: ``EachMethod`` with these widths, or with a benchmark ``OnAxes`` with the first."""
        return self._of_comparison().judge_each(bundle)

    def _of_comparison(self) -> "EachMethod | OnAxes":
        if self.split != "test" or self.sequences is not None or self.beside or self.star is not None:
            raise ConfigError(
                "a comparison asks for beams and history, or a benchmark; split, sequences, beside and star are for jobs.evaluate"
            )
        if self.benchmark is not None:
            return OnAxes(self.benchmark, self.beams[0])
        return EachMethod(self.beams, self.history)

    def judge_default(self, folder: Path, beams: int) -> tuple[RetrieverBundle, tuple[AxisResult, ...]]:
        """On the axes, by the last method that the model has: LIGER's hybrid."""
        bundle, experiment, benchmark, features = self._on_axes(folder)
        task, interactions = experiment.task(), read_sequences(experiment.sequences).interactions
        searcher, length = task.searcher(bundle.model), bundle.saved.retrieval.architecture.max_length
        ranks = ranks_of(task, searcher, searcher.methods[-1], beams)
        tokens = experiment.user_tokens()
        return bundle, judge_axes(benchmark, interactions, ranks, features, length, split=self.split, tokens=tokens)

    def _on_axes(self, folder: Path) -> tuple[RetrieverBundle, RetrieverExperiment, Benchmark, Tensor | None]:
        """A model, its experiment, the benchmark, and its texts as the model reads them."""
        assert self.benchmark is not None
        bundle, experiment = self._open(folder)
        interactions = read_sequences(experiment.sequences).interactions
        benchmark = read_benchmark(self.benchmark, interactions)
        saved = bundle.saved.preferences
        if saved is not None and saved.texts is None:
            _check_encoder(self.benchmark, benchmark, saved.encoder, str(folder))
        texts = None if saved is None else saved.texts
        return bundle, experiment, benchmark, benchmark_features(benchmark, bundle.saved.retrieval, texts)

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
            name = " ".join(_way(one, several=True))
            for group, metrics in one.metrics.items():
                cells = (number(metrics[metric], 4) for metric in SHOWN)
                rows.append((name, group, f"{metrics['users']:,.0f}", *cells, f"{one.milliseconds:.3f}"))
        return Table(("method", "targets", "users", *SHOWN, "ms/user"), tuple(rows))


def _seen_in_training(bundle: RetrieverBundle) -> Tensor | None:
    """(N + 1,) bool of the items, by what generates them or else by the sequences of training; None where these are gone, or
    others of other items are in their place."""
    if bundle.model.generative is not None:
        return bundle.model.generative.seen
    trained = from_plain(RetrieverExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
    try:
        data = read_sequences(trained.sequences)
    except InteractionsError:
        return None
    if tuple(data.items.names.to_pylist()) != bundle.names:
        return None
    return torch.from_numpy(trained.split.split(data).seen)


@dataclass(frozen=True)
class EachMethod:
    """Each method that a model has on the test targets, those that search the trie at each of ``beams``.

    Of a model that has both, ``generative`` is judged at the least width alone: its searches are the hybrid's.
    history: as of ``EvaluateRetriever``.
    """

    beams: tuple[int, ...]
    history: tuple[HistoryItems, ...] = ("ranked",)

    def __post_init__(self) -> None:
        _check_beams(self.beams)
        _check_history(self.history)

    def check(self, experiment: RetrieverExperiment) -> None:
        """Nothing: every retriever has a method, on the sequences that it is trained on."""

    def judge_each(self, bundle: Path) -> dict[str, Judged]:
        """By method, where there are several, "excluded" where items of the history were, and width."""
        judgements = EvaluateRetriever(beams=self.beams, history=self.history).judge(bundle, least_generative=True)
        parameters = sum(p.numel() for p in load_retriever(bundle).model.parameters())
        several = len(judgements) > len(self.history)
        return {" ".join(_way(one, several)): one.as_judged("test", parameters) for one in judgements}


def _way(one: Judgement, several: bool) -> tuple[str, ...]:
    """The words that tell a judgement from others of its model. several: its method is among them."""
    excluded = ("excluded",) if one.history == "excluded" else ()
    return (*((one.method,) if several else ()), *excluded, *(() if one.beams is None else (str(one.beams),)))


def _check_beams(beams: tuple[int, ...]) -> None:
    if not beams or min(beams) < 1:
        raise ConfigError(f"beams: at least one width, each at least 1, not {list(beams)}")


def _check_history(history: tuple[HistoryItems, ...]) -> None:
    if not history or len(set(history)) < len(history):
        raise ConfigError(f"history: ranked or excluded, or once each, not {list(history)}")


def _check_encoder(place: Path, benchmark: Benchmark, encoder: str, reads: str) -> None:
    if benchmark.card.encoder != encoder:
        raise ConfigError(f"{place}: preferences embedded by {benchmark.card.encoder!r}, {reads} reads {encoder!r}")


AXES_SPLIT = "axes"


@dataclass(frozen=True)
class OnAxes:
    """The five axes of a preference benchmark, by the last method that a model has (LIGER's hybrid), under the split "axes"."""

    benchmark: Path
    beams: int = 20

    def __post_init__(self) -> None:
        _check_beams((self.beams,))

    def check(self, experiment: RetrieverExperiment) -> None:
        """Raises ConfigError for a benchmark that is not there, is of other sequences or of another encoder than the model's."""
        interactions = read_sequences(experiment.sequences).interactions
        benchmark, own = (
            read_benchmark(self.benchmark, interactions),
            experiment.benchmark(),
        )
        if own is not None and experiment.encoder_texts() is None:
            _check_encoder(self.benchmark, benchmark, own.card.encoder, experiment.retrieval.model)

    def judge_each(self, bundle: Path) -> dict[str, Judged]:
        loaded, results = EvaluateRetriever(benchmark=self.benchmark).judge_default(bundle, self.beams)
        return {"": as_judged(results, sum(p.numel() for p in loaded.model.parameters()))}


def as_judged(results: tuple[AxisResult, ...], parameters: int | None = None) -> Judged:
    """parameters: None = nothing was trained."""
    costs = {} if parameters is None else {"parameters": float(parameters)}
    return Judged(
        AXES_SPLIT,
        {one.axis: {"rows": float(one.rows), **one.metrics} for one in results},
        {one.axis: one.left_out for one in results},
        costs,
    )
