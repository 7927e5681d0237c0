"""The first stage of a cascade: a retriever that is asked by handle."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrec.item_features import ItemTable, load_item_features
from rayrec.retrieval.index import IndexConfig
from rayrec.typed_json import from_plain
from serve_apps.cascade.stages import Away, Candidates, Refused, RetrieveAsk
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.items.journal import ItemRefused, KeeperAway
from serve_apps.items.keeper import ItemFollower
from serve_apps.retriever.served import (
    NewItem,
    Retrieved,
    ServedRetriever,
    load_served_retriever,
)
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import Problem, RequestError
from serve_apps.service.replica import Replica

_MASKS = 64  # of filters, kept


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


class StagedRetriever:
    """A retriever and the items' features, by which it leaves out what a request does not want. Asked by one thread.

    reference: what the retriever was loaded by.
    """

    def __init__(self, reference: ModelReference, retriever: ServedRetriever, table: ItemTable) -> None:
        self.reference, self.retriever, self._table = reference, retriever, table
        self._rows = table.rows(retriever.names)  # (n,) of the table by item; those added later have none
        self._masks: OrderedDict[str, Tensor] = OrderedDict()

    def retrieve(self, asks: Sequence[RetrieveAsk]) -> list[Retrieved | RequestError]:
        """An answer or what is wrong, for each."""
        return self.retriever.retrieve([ask.request for ask in asks], [self._only(ask.where) for ask in asks])

    def _only(self, where: Mapping[str, Any]) -> Tensor | None:
        """(n + 1,) bool: the items that fit, kept for the next request that wants the same; None where there is nothing to leave
        out, or another table is needed to tell, as while one takes over: then the asker does it."""
        if not where or not where.keys() <= self._table.schema.kinds.keys():
            return None
        key = json.dumps(where, sort_keys=True)
        found = self._masks.pop(key, None)
        if found is None:
            there = np.flatnonzero(self._rows >= 0)
            found = torch.zeros(len(self._rows) + 1, dtype=torch.bool)
            found[1 + there[self._table.matching(self._rows[there], where)]] = True
        self._masks[key] = found
        if len(self._masks) > _MASKS:
            self._masks.popitem(last=False)
        return found

    @property
    def label(self) -> str:
        return self.retriever.label

    def describe(self) -> dict[str, Any]:
        return self.retriever.describe()


class RetrieverStage(Replica[RetrieverStageSize, StagedRetriever, RetrieveAsk, Retrieved]):
    """One replica."""

    def __init__(self, size: RetrieverStageSize, items_folder: str, mapped: str) -> None:
        super().__init__(size)
        self._mapped = Path(mapped)
        self.items = ItemFollower(items_folder)
        self._text_thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def load_configured(self, user_config: dict[str, Any]) -> StagedRetriever:
        """The retriever, which is loaded only when it is another one."""
        references = from_plain(CascadeReferences, user_config, "user_config")
        table = load_item_features(references.features.resolve().model, self._mapped)
        reference, size = references.retriever, self.limits
        if self._served is not None and self._served.reference == reference:
            return StagedRetriever(reference, self._served.retriever, table)
        loaded = load_served_retriever(reference, self.items.changes, size.index, size.beams, size.max_added)
        return StagedRetriever(reference, loaded, table)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """A replica that does not know which items are out answers nobody."""
        await self.items.start()
        await super().reconfigure(user_config)

    def answer(self, served: StagedRetriever, requests: Sequence[RetrieveAsk]) -> list[Retrieved | RequestError]:
        return served.retrieve(requests)

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch

    def count_batch(self, requests: int) -> None:
        self.metrics.stage_batch.labels("retrieve").observe(requests)

    def count_wait(self, seconds: float) -> None:
        self.metrics.stage_queue_seconds.labels("retrieve").observe(seconds)

    async def retrieve(self, ask: RetrieveAsk) -> Candidates | Refused:
        """Asked by handle."""
        served = self.current
        try:
            return Candidates(served.label, await self.ask(served, ask))
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
