"""The retriever as a Ray Serve application: ``serve deploy serve_apps/retriever.yaml``, or ``python -m jobs.serve``.

Items added by ``POST /v1/items``, and those taken out and brought back by ``PUT /v1/items/{item}``, go to one owner, which the
replicas of all nodes follow: see ``serve_apps.items.keeper``.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from fastapi import FastAPI
from ray import serve

from rayrec.families.retriever.bundle import RetrieverBundle
from rayrec.retrieval.index import IndexConfig
from serve_apps.items.journal import Availability
from serve_apps.items.keeper import ItemFollower
from serve_apps.retriever.api import build_retrieval_app
from serve_apps.retriever.served import NewItem, Retrieved, RetrieveRequest, ServedRetriever, load_served_retriever
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError
from serve_apps.service.replica import Replica, application


@dataclass(frozen=True)
class RetrieverService(ServiceLimits):
    """As ``ServiceLimits``, for histories."""

    kind: ClassVar[str] = "retriever"
    max_body_bytes: int = 256 * 1024
    """Of a request."""
    max_batch: int = 64
    """Requests of one forward pass."""
    beams: int = 20
    """Least width of the beam search."""
    max_added: int = 10_000
    """Items that a version takes beside its own."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """Of the dense vectors."""
    items_folder: str | None = None
    """Of the cluster's head node, where changes of items are kept; None = a new folder among temporary files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_batch", "beams", "max_added"):
            self._check_at_least_one(name)

    @property
    def kept_items(self) -> str | None:
        return self.items_folder

    def in_folder(self, folder: Path) -> "RetrieverService":
        kept = super().in_folder(folder)
        assert isinstance(kept, RetrieverService)
        return replace(kept, items_folder=str(Path(self.items_folder or folder / "items").resolve()))


@serve.deployment
@serve.ingress()
class Retriever(Replica[RetrieverService, ServedRetriever, RetrieveRequest, Retrieved]):
    """New items are taken in by the model's thread, and their text is read in another: its encoder is loaded by the first."""

    def __init__(self, limits: RetrieverService) -> None:
        super().__init__(limits)
        assert limits.items_folder is not None
        self.items = ItemFollower(limits.items_folder)
        self._text_thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def load(self, reference: ModelReference) -> ServedRetriever:
        limits = self.limits
        return load_served_retriever(reference, self.items.changes, limits.index, limits.beams, limits.max_added)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """A replica that does not know which items are out answers nobody."""
        await self.items.start()
        await super().reconfigure(user_config)

    def answer(self, served: ServedRetriever, requests: Sequence[RetrieveRequest]) -> list[Retrieved | RequestError]:
        return served.retrieve(requests)

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch

    async def add(self, retriever: ServedRetriever, item: NewItem) -> Mapping[str, Any]:
        """Raises RequestError, ItemRefused, KeeperAway."""
        loop = asyncio.get_running_loop()
        embedding = await loop.run_in_executor(self._text_thread, retriever.embed, item)
        entry = await loop.run_in_executor(self.thread, retriever.entry, item, embedding)
        everywhere = await self.items.add(entry, self.limits.max_added)
        return {
            **await loop.run_in_executor(self.thread, retriever.taken_in, item.item),
            "everywhere": everywhere,
        }

    async def set_available(self, change: Availability) -> bool:
        """Whether all replicas have it. Raises ItemRefused, KeeperAway."""
        return await self.items.set_available(change)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_retrieval_app(self, self.metrics, self.limits)


def build(args: dict[str, Any]) -> serve.Application:
    """The application; ``args``: fields of RetrieverService. What it serves is set by ``user_config``."""
    return application(Retriever, RetrieverService, args)


SERVICE = RetrieverService


def example(bundle: RetrieverBundle) -> tuple[str, dict[str, Any]]:
    """A history of two of its items."""
    return "/v1/retrieve", {"history": list(bundle.names[:2]), "k": 5}
