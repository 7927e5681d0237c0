"""The four bundles of a small cascade over 56 items, and its stages as plain calls in this process."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayrec.bundle import write_bundle
from rayrec.data.log import Log
from rayrec.families.ranker.bundle import ranker_parts
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.item_features import load_item_features, write_item_features
from rayrec.retrieval.index import IndexConfig
from serve_apps.cascade.ranker_stage import StagedArms, scored, staged_arms
from serve_apps.cascade.retriever_stage import StagedRetriever
from serve_apps.cascade.served import ServedCascade, load_served_cascade
from serve_apps.cascade.stages import Candidates, NeedsColumns, RankAsk, RankingStage, Refused, RetrieveAsk, Scored
from serve_apps.cascade.versions import CascadeReferences, Experiment
from serve_apps.retriever.served import ServedRetriever, load_served_retriever
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError
from tests.serve_apps.local_items import LocalItems
from tests.serve_apps.retriever_bundle import small_encoder, small_retriever

NAMES = tuple(f"item-{i}" for i in range(56))
KINDS = ("red", "blue", "green")
WITHOUT_FEATURES = "item-7"


@dataclass(frozen=True)
class Parts:
    """Folders of bundles: two versions of each."""

    retriever: tuple[Path, Path]
    early: tuple[Path, Path]
    late: tuple[Path, Path]
    features: tuple[Path, Path]

    def references(self, experiment: Experiment | None = None, **second: bool) -> CascadeReferences:
        """Of the first versions, but for those named."""
        made: dict[str, Any] = {
            part.name: ModelReference(
                str(getattr(self, part.name)[second.get(part.name, False)]),
                part.name,
                str(1 + second.get(part.name, False)),
            )
            for part in fields(self)
        }
        return CascadeReferences(**made, experiment=experiment)


def small_parts(folder: Path, log: Path) -> Parts:
    """The early ranker does not read the price, the late one does; one item has no features."""
    encoder = small_encoder(folder / "encoder")
    schema = Log.open(log).schema
    return Parts(
        tuple(small_retriever(folder / f"retriever-{i}", encoder, names=NAMES, seed=i) for i in (0, 1)),  # type: ignore[arg-type]
        tuple(small_ranker(folder / f"early-{i}", schema.without_columns(frozenset({"price"})), i) for i in (0, 1)),  # type: ignore[arg-type]
        tuple(small_ranker(folder / f"late-{i}", schema, 10 + i) for i in (0, 1)),  # type: ignore[arg-type]
        tuple(small_features(folder / f"features-{i}", i) for i in (0, 1)),  # type: ignore[arg-type]
    )


def small_ranker(folder: Path, schema: Any, seed: int) -> Path:
    """Untrained, with weights that tell items apart."""
    task = RankingTask(schema, RankingConfig())
    torch.manual_seed(seed)
    model = task.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the wide part starts at zero
    return write_bundle(folder, ranker_parts(model, task.model_config, schema), metrics={}, run_config={})


def small_table(seed: int = 0) -> dict[str, list[Any]]:
    generator = np.random.default_rng(seed)
    items = [name for name in NAMES if name != WITHOUT_FEATURES]
    prices = [None if i % 9 == 4 else float(price) for i, price in enumerate(generator.exponential(2, len(items)))]
    return {
        "item": items,
        "price": prices,
        "kind": [KINDS[int(name.split("-")[1]) % 3] for name in items],
        "tags": [["new", name[-1]] if name[-1] in "05" else [name[-1]] for name in items],
    }


def small_features(folder: Path, seed: int = 0) -> Path:
    write_item_features(folder, pa.table(small_table(seed)), "item", run_config={})
    return folder


class PlainStages:
    """The stages in this process, one request at a time; and what changes about items."""

    def __init__(self, references: CascadeReferences, folder: Path) -> None:
        self.folder = folder
        self.features = load_item_features(references.features.model, folder / "mapped")
        self.items = LocalItems(folder / "items")
        self.retriever: ServedRetriever = load_served_retriever(references.retriever, self.items.changes, IndexConfig())
        self.staged = StagedRetriever(references.retriever, self.retriever, self.features)
        self.rankers: Mapping[RankingStage, StagedArms] = {
            stage: staged_arms(references, stage, folder / "mapped") for stage in ("early", "late", "shadow")
        }

    async def retrieve(self, ask: RetrieveAsk) -> Candidates | Refused:
        (found,) = self.staged.retrieve([ask])
        if isinstance(found, RequestError):
            return Refused(found.problems)
        return Candidates(self.retriever.label, found)

    async def rank(self, stage: RankingStage, ask: RankAsk) -> Scored | Refused | NeedsColumns:
        staged = self.rankers[stage].of(ask.arm)
        try:
            request = staged.request(ask)
        except RequestError as error:
            return Refused(error.problems)
        if isinstance(request, NeedsColumns):
            return request
        (ranked,) = staged.ranker.rank([request])
        return Refused(ranked.problems) if isinstance(ranked, RequestError) else scored(staged.ranker, ranked)


def served_cascade(
    references: CascadeReferences, stages: PlainStages, logged_as: RankingStage | None = None
) -> ServedCascade:
    return load_served_cascade(references, stages.folder / "mapped", logged_as)
