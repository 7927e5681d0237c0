"""The first stage of a cascade: a retriever that is asked by handle."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayrec.retrieval.index import IndexConfig
from rayrec.typed_json import from_plain
from serve_apps.cascade_stages import Candidates, Refused
from serve_apps.cascade_versions import CascadeReferences
from serve_apps.model_reference import ModelReference
from serve_apps.refusals import RequestError
from serve_apps.replica import Replica
from serve_apps.served_retriever import Retrieved, RetrieveRequest, ServedRetriever, load_served_retriever


@dataclass(frozen=True)
class RetrieverStageSize:
    """replicas, max_queued: as of the rankers. max_batch, beams, max_added, index: as of the retriever's own application."""

    replicas: int = 1
    max_batch: int = 64
    max_queued: int = 256
    beams: int = 20
    max_added: int = 10_000
    index: IndexConfig = field(default_factory=IndexConfig)

    def __post_init__(self) -> None:
        for name in ("replicas", "max_batch", "max_queued", "beams", "max_added"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class StagedRetriever:
    """reference: what it was loaded by."""

    reference: ModelReference
    retriever: ServedRetriever

    @property
    def label(self) -> str:
        return self.retriever.label

    def describe(self) -> dict[str, Any]:
        return self.retriever.describe()


class RetrieverStage(Replica[RetrieverStageSize, StagedRetriever, RetrieveRequest, Retrieved]):
    """One replica."""

    def __init__(self, size: RetrieverStageSize, items_folder: str) -> None:
        super().__init__(size)
        self._items_folder = Path(items_folder)

    def load_configured(self, user_config: dict[str, Any]) -> StagedRetriever:
        """The retriever, which is loaded only when it is another one."""
        reference = from_plain(CascadeReferences, user_config, "user_config").retriever
        if self._served is not None and self._served.reference == reference:
            return self._served
        size = self.limits
        return StagedRetriever(
            reference, load_served_retriever(reference, self._items_folder, size.index, size.beams, size.max_added)
        )

    def answer(self, served: StagedRetriever, requests: Sequence[RetrieveRequest]) -> list[Retrieved | RequestError]:
        return served.retriever.retrieve(requests)

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch

    def count_batch(self, requests: int) -> None:
        self.metrics.stage_batch.labels("retrieve").observe(requests)

    async def retrieve(self, request: RetrieveRequest) -> Candidates | Refused:
        """Asked by handle."""
        served = self.current
        try:
            return Candidates(served.label, await self.ask(served, request))
        except RequestError as error:
            return Refused(error.problems)

    async def label(self) -> str:
        """Of the version in force here; asked by handle, of every replica."""
        return self.current.label
