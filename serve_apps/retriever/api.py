"""The HTTP face of a retriever: a FastAPI app that knows nothing of Ray."""

from collections.abc import Mapping
from typing import Any, Protocol

from fastapi import FastAPI, Request

from serve_apps.items.availability_api import ITEM, add_availability, refusing_change
from serve_apps.items.journal import Availability
from serve_apps.retriever.served import NewItem, Retrieved, RetrieveRequest, ServedRetriever
from serve_apps.service.api import REFUSALS, Service, answering, body_of, service_app
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.refusals import parse_body

RETRIEVE, ITEMS = "/v1/retrieve", "/v1/items"


class RetrievalService(Service[ServedRetriever, RetrieveRequest, Retrieved], Protocol):
    """A service that takes new items too."""

    async def add(self, retriever: ServedRetriever, item: NewItem) -> Mapping[str, Any]:
        """Raises RequestError, ItemRefused, KeeperAway."""
        ...

    async def set_available(self, change: Availability) -> bool:
        """Whether all replicas have it. Raises ItemRefused, KeeperAway."""
        ...


def build_retrieval_app(service: RetrievalService, metrics: ServingMetrics, limits: ServiceLimits) -> FastAPI:
    """Routes of a retrieval service."""
    app, guarded, room = service_app("rayrec retriever", service, metrics, limits, paths=[RETRIEVE, ITEMS, ITEM])

    @app.post(RETRIEVE, dependencies=guarded, responses=REFUSALS, openapi_extra=body_of(RetrieveRequest))
    async def retrieve(request: Request) -> dict[str, Any]:
        """The k best items for a history."""
        async with room.body(request) as body:
            retriever = answering(request, service)
            found = await service.ask(retriever, parse_body(RetrieveRequest, body))
        return {"model": retriever.label, **vars(found)}

    @app.post(ITEMS, dependencies=guarded, status_code=201, responses=REFUSALS, openapi_extra=body_of(NewItem))
    async def add(request: Request) -> dict[str, Any]:
        """Add an item by its text: from the next request on it can be retrieved, without any training."""
        async with room.body(request) as body:
            retriever = answering(request, service)
            new = parse_body(NewItem, body)
            with refusing_change("item", limits):
                return {"model": retriever.label, **await service.add(retriever, new)}

    add_availability(app, service, guarded, room, limits)
    return app
