"""Judges a trained content ranker on the impressions that it was trained on, or on others of the same items."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rayrec.families.content.bundle import load_content_ranker
from rayrec.families.content.experiment import ContentExperiment
from rayrec.reporting import Table
from rayrec.reporting.page import number
from rayrec.training.judging import judge_stream
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError, from_plain

SHOWN = ("auc", "mrr", "ndcg@5", "ndcg@10")


@dataclass(frozen=True)
class EvaluateContent:
    """Judge a content ranker."""

    split: Literal["valid", "test"] = "test"
    """Which impressions."""
    content: Path | None = None
    """Folder of a content log; None = the one it was trained on."""
    tokens: Path | None = None
    """Folder of that log's tokens; None = those it was trained on."""
    max_history: int | None = None
    """Newest contents that are read; None = as trained."""

    def evaluate(self, folder: Path) -> Table:
        """One row: impressions and metrics. Raises BundleError or ConfigError that names what does not fit."""
        bundle = load_content_ranker(folder)
        experiment = from_plain(ContentExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
        if self.content is not None:
            experiment = replace(experiment, content=self.content.resolve())
        if self.tokens is not None:
            experiment = replace(experiment, tokens=self.tokens.resolve())
        inputs = experiment.inputs()
        if inputs.log.items.fingerprint != bundle.saved.items:
            raise ConfigError(f"{experiment.content}: other items than those of {bundle.path}")
        bundle.refuse_other_inputs(inputs, experiment.tokens)
        if self.max_history is not None:
            if self.max_history > bundle.saved.ranker.max_history:
                raise ConfigError(f"max_history is at most {bundle.saved.ranker.max_history}, as trained")
            experiment = replace(experiment, ranker=replace(experiment.ranker, max_history=self.max_history))
        stream = experiment.data(Worker()).open_evaluation(self.split, 1)
        found = judge_stream(experiment.task(), bundle.model, stream.epoch_batches())["impressions"]
        cells = (number(found[metric], 4) for metric in SHOWN)
        return Table(("impressions", *SHOWN), ((f"{found['rows']:,.0f}", *cells),))
