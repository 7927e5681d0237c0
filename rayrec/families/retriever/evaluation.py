"""Judges a trained retriever by every method it has, on the sequences that it was trained on or others of the same items."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rayrec.data.sequences import read_sequences
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.judging import Judgement, judge
from rayrec.reporting import Table
from rayrec.reporting.page import number
from rayrec.retrieval.searching import HEADS
from rayrec.typed_json import ConfigError, from_plain

SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class EvaluateRetriever:
    """Judge a retriever.

    split: which targets. beams: widths of the beam search. sequences: None = those it was trained on.
    """

    split: Literal["valid", "test"] = "test"
    beams: tuple[int, ...] = (20,)
    sequences: Path | None = None

    def judge(self, folder: Path) -> list[Judgement]:
        """One judgement by method and width. Raises BundleError or ConfigError that names what does not fit."""
        bundle = load_retriever(folder)
        experiment = from_plain(RetrieverExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
        if self.sequences is not None:
            experiment = replace(experiment, sequences=self.sequences.resolve())
        task = experiment.task()
        if tuple(read_sequences(experiment.sequences).items.names.to_pylist()) != bundle.names:
            raise ConfigError(f"{experiment.sequences}: other items than those of {bundle.path}")
        searcher = task.searcher(bundle.model)
        return [
            judge(experiment, task, searcher, method, split=self.split, beams=beams)
            for method in searcher.methods
            for beams in (self.beams if "generative" in HEADS[method] else (None,))
        ]

    def evaluate(self, folder: Path) -> Table:
        """The judgements as a table: one row a method, width and group of targets."""
        rows = []
        for one in self.judge(folder):
            name = one.method if one.beams is None else f"{one.method} {one.beams}"
            for group, metrics in one.metrics.items():
                cells = (number(metrics[metric], 4) for metric in SHOWN)
                rows.append((name, group, f"{metrics['users']:,.0f}", *cells, f"{one.milliseconds:.3f}"))
        return Table(("method", "targets", "users", *SHOWN, "ms/user"), tuple(rows))
