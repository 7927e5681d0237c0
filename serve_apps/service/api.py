"""What the HTTP faces of all services share: health, model, metrics, their description. Knows nothing of Ray."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.params import Depends as Dependency
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.service.access import access_check, name_check
from serve_apps.service.docs_page import docs_page
from serve_apps.service.limits import Room, ServiceLimits
from serve_apps.service.metrics import ANSWERING, FAILED, Observed, ServingMetrics
from serve_apps.service.refusals import RequestError, Unavailable
from serve_apps.service.request_log import RequestLog

HEALTH, MODEL, METRICS = "/healthz", "/v1/model", "/metrics"
_NO_SCRIPTS = "default-src 'none'; style-src 'unsafe-inline'"


class ServedVersion(Protocol):
    """One version of a model, ready to answer."""

    @property
    def label(self) -> str:
        """Name and version, as replies call it."""
        ...

    def describe(self) -> dict[str, Any]:
        """What GET /v1/model tells."""
        ...


Served = TypeVar("Served", bound=ServedVersion)
Asked = TypeVar("Asked", contravariant=True)
Answer = TypeVar("Answer", covariant=True)
Handler = Callable[[Request], Awaitable[Response]]


class Service(Protocol[Served, Asked, Answer]):
    """What an app needs: the version in force, and a way to ask it."""

    @property
    def current(self) -> Served: ...

    async def ask(self, served: Served, request: Asked) -> Answer:
        """Raises RequestError."""
        ...


class WrongField(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class RequestProblems(BaseModel):
    detail: list[WrongField]


class Refusal(BaseModel):
    detail: str


_GUARDED: dict[int | str, dict[str, Any]] = {
    401: {"model": Refusal, "description": "No valid bearer token"},
    403: {"model": Refusal, "description": "The service has no token and was not asked over loopback"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {  # of a request with a body
    **_GUARDED,
    408: {"model": Refusal, "description": "The body did not come"},
    413: {"model": Refusal, "description": "The body is too large"},
    415: {"model": Refusal, "description": "The body is not application/json"},
    422: {"model": RequestProblems, "description": "The body does not fit; each wrong field is named"},
    503: {"description": "Full; try again after Retry-After seconds"},
}


def answering(request: Request, service: Service[Served, Any, Any]) -> Served:
    """The version in force, which answers this request from here on: the reply's header names it, whatever comes meanwhile."""
    served = service.current
    request.scope[ANSWERING] = served.label
    return served


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """What a route's document says of a body that it reads itself."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class Straight:
    """ASGI middleware that answers POSTs to some paths itself: what FastAPI does for a request takes as long as parsing its body.

    check: who may ask. handlers: by path; each is a route of the app too, which documents it and answers other methods.
    """

    def __init__(
        self, app: ASGIApp, check: Callable[[Request], Awaitable[None]], handlers: Mapping[str, Handler]
    ) -> None:
        self._app, self._check, self._handlers = app, check, handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST"
        handler = self._handlers.get(scope["path"]) if asked else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response: Response
        try:
            await self._check(request)
            response = await handler(request)
        except HTTPException as error:
            if isinstance(error, Unavailable):
                scope[FAILED] = error.kind
            response = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        except RequestError as error:
            response = _refused(error)
        await response(scope, receive, send)


def _share_parts(document: dict[str, Any]) -> None:
    """What the schemas of bodies are made of goes to where their references look for it."""
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if parts := content["schema"].pop("$defs", None):
                document.setdefault("components", {}).setdefault("schemas", {}).update(parts)


def _refused(error: RequestError) -> JSONResponse:
    return JSONResponse({"detail": [vars(problem) for problem in error.problems]}, 422)


def service_app(
    title: str,
    service: Service[Served, Any, Any],
    metrics: ServingMetrics,
    limits: ServiceLimits,
    *,
    paths: Sequence[str],
    straight: Mapping[str, Handler] = MappingProxyType({}),
    document: Callable[[dict[str, Any], Served], None] | None = None,
) -> tuple[FastAPI, list[Dependency], Room]:
    """An app with the common routes, the dependencies that guard a route, and the room for requests with a body.

    paths: of the routes that the caller adds, told apart in the metrics. straight: as in ``Straight``; may be filled later.
    document: completes the OpenAPI document of a version.
    """
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None, openapi_url=None)
    check = access_check(limits.token_sha256)
    guarded: list[Dependency] = [Depends(check)]
    named: list[Dependency] = [Depends(name_check(limits.token_sha256))]

    @app.get(HEALTH, dependencies=named)
    async def healthz(request: Request) -> dict[str, str]:
        """The service is up, and which model it serves."""
        return {"status": "ok", "model": answering(request, service).label}

    @app.get(MODEL, dependencies=guarded, responses=_GUARDED)
    async def model(request: Request) -> dict[str, Any]:
        """Version and metrics of the model, and what it reads and answers."""
        return answering(request, service).describe()

    @app.get(
        METRICS,
        dependencies=guarded,
        response_class=Response,
        responses={**_GUARDED, 200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return metrics.page()

    def described(request: Request) -> dict[str, Any]:
        served = answering(request, service)
        found = get_openapi(title=title, version=served.label, routes=app.routes)
        _share_parts(found)
        if document is not None:
            document(found, served)
        return found

    @app.get("/openapi.json", dependencies=guarded, include_in_schema=False)
    async def openapi(request: Request) -> JSONResponse:
        return JSONResponse(described(request))

    @app.get("/docs", dependencies=guarded, include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(described(request)), headers={"Content-Security-Policy": _NO_SCRIPTS})

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return _refused(error)

    @app.exception_handler(Unavailable)
    async def unavailable(request: Request, error: Unavailable) -> JSONResponse:
        request.scope[FAILED] = error.kind
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    app.add_middleware(Straight, check=check, handlers=straight)
    app.add_middleware(
        Observed,
        metrics=metrics,
        paths=frozenset({*paths, HEALTH, MODEL, METRICS}),
        label=lambda: service.current.label,
        log=RequestLog(limits.request_log, metrics.log_lines_lost.inc),
    )
    return app, guarded, Room(limits)
