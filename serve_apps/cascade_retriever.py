"""The first stage of a cascade: a retriever that is asked by handle."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from rayrec.retrieval.index import IndexConfig
from rayrec.typed_json import from_plain
from serve_apps.cascade_stages import Away, Candidates, Refused
from serve_apps.cascade_versions import CascadeReferences
from serve_apps.item_journal import ItemRefused, KeeperAway
from serve_apps.item_keeper import ItemFollower
from serve_apps.model_reference import ModelReference
from serve_apps.refusals import Problem, RequestError
from serve_apps.replica import Replica
from serve_apps.served_retriever import (
    NewItem,
    Retrieved,
    RetrieveRequest,
    ServedRetriever,
    load_served_retriever,
)


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
        self.items = ItemFollower(items_folder)
        self._text_thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def load_configured(self, user_config: dict[str, Any]) -> StagedRetriever:
        """The retriever, which is loaded only when it is another one."""
        reference = from_plain(CascadeReferences, user_config, "user_config").retriever
        if self._served is not None and self._served.reference == reference:
            return self._served
        size = self.limits
        return StagedRetriever(
            reference,
            load_served_retriever(reference, self.items.changes, size.index, size.beams, size.max_added),
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """A replica that does not know which items are out answers nobody."""
        await self.items.start()
        await super().reconfigure(user_config)

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

    async def add(self, item: NewItem) -> dict[str, Any] | Refused | Away:
        """Asked by handle: give a new item its place, by its text."""
        served, loop = self.current, asyncio.get_running_loop()
        try:
            embedding = await loop.run_in_executor(self._text_thread, served.retriever.embed, item)
            entry = await loop.run_in_executor(self.thread, served.retriever.entry, item, embedding)
            everywhere = await self.items.add(entry, self.limits.max_added)
            placed = await loop.run_in_executor(self.thread, served.retriever.taken_in, item.item)
        except RequestError as error:
            return Refused(error.problems)
        except ItemRefused as error:
            return Refused((Problem(("body", "item"), str(error), "value_error"),))
        except KeeperAway as error:
            return Away(str(error))
        return {"model": served.label, **placed, "everywhere": everywhere}

    async def label(self) -> str:
        """Of the version in force here; asked by handle, of every replica."""
        return self.current.label
