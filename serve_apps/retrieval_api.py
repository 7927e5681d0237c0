"""The HTTP face of a retriever: a FastAPI app that knows nothing of Ray."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from serve_apps.access import access_check, read_json_body
from serve_apps.ranking_request import Problem, RequestError
from serve_apps.served_retriever import NewItem, Retrieved, RetrieveRequest, ServedRetriever
from serve_apps.serving_metrics import Observed, ServingMetrics

RETRIEVE, ITEMS, HEALTH, MODEL, METRICS = "/v1/retrieve", "/v1/items", "/healthz", "/v1/model", "/metrics"
M = TypeVar("M", bound=BaseModel)
_SHOWN_PROBLEMS = 20


class RetrievalService(Protocol):
    """What the app needs: the version in force, and a way to ask it."""

    @property
    def current(self) -> ServedRetriever: ...

    async def retrieve(self, retriever: ServedRetriever, request: RetrieveRequest) -> Retrieved:
        """Raises RequestError."""
        ...

    async def add(self, retriever: ServedRetriever, item: NewItem) -> Mapping[str, Any]:
        """Raises RequestError."""
        ...


def build_retrieval_app(
    service: RetrievalService, metrics: ServingMetrics, *, max_body_bytes: int, token_sha256: str | None
) -> FastAPI:
    """Routes of a retrieval service."""
    app = FastAPI(title="rayrec retriever", version="1", docs_url=None, redoc_url=None)
    guarded = [Depends(access_check(token_sha256))]

    @app.post(RETRIEVE, dependencies=guarded, openapi_extra=_body_of(RetrieveRequest))
    async def retrieve(request: Request) -> dict[str, Any]:
        """The k best items for a history."""
        asked = parse(RetrieveRequest, await read_json_body(request, max_body_bytes))
        retriever = service.current
        found = await service.retrieve(retriever, asked)
        return {"model": retriever.label, **vars(found)}

    @app.post(ITEMS, dependencies=guarded, status_code=201, openapi_extra=_body_of(NewItem))
    async def add(request: Request) -> dict[str, Any]:
        """Add an item by its text: from the next request on it can be retrieved, without any training."""
        item = parse(NewItem, await read_json_body(request, max_body_bytes))
        retriever = service.current
        return {"model": retriever.label, **await service.add(retriever, item)}

    @app.get(HEALTH)
    async def healthz() -> dict[str, str]:
        """The service is up, and which model it serves."""
        return {"status": "ok", "model": service.current.label}

    @app.get(MODEL, dependencies=guarded)
    async def model() -> dict[str, Any]:
        """Version, methods and metrics of the model, and the size of the catalogue as of the replica's last request."""
        return service.current.describe()

    @app.get(METRICS, dependencies=guarded)
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return metrics.page()

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"detail": [vars(problem) for problem in error.problems]}, 422)

    app.add_middleware(
        Observed,
        metrics=metrics,
        paths=frozenset({RETRIEVE, ITEMS, HEALTH, MODEL, METRICS}),
        label=lambda: service.current.label,
    )
    return app


def parse(kind: type[M], body: bytes) -> M:
    """Raises RequestError that names what is wrong, the first 20 of it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:_SHOWN_PROBLEMS]
        raise RequestError([Problem(("body", *item["loc"]), item["msg"], item["type"]) for item in found]) from None


def _body_of(kind: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}
