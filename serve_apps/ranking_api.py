"""The HTTP face of a ranker: a FastAPI app that knows nothing of Ray."""

from collections.abc import Mapping
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from pydantic_core import to_json

from serve_apps.access import access_check, read_json_body
from serve_apps.ranking_request import RankRequest, RequestError
from serve_apps.served_ranker import Ranked, ServedRanker
from serve_apps.serving_metrics import Observed, ServingMetrics

RANK, HEALTH, MODEL, METRICS = "/v1/rank", "/healthz", "/v1/model", "/metrics"


class RankingService(Protocol):
    """What the app needs: the version in force, and a way to ask it."""

    @property
    def current(self) -> ServedRanker: ...

    async def rank(self, ranker: ServedRanker, request: RankRequest) -> Ranked:
        """Raises RequestError."""
        ...


class RankReply(BaseModel):
    """Lists are in the order of the request's candidates."""

    model: str = Field(description="Name and version of the model that answered")
    order: list[int] = Field(description="Positions of the candidates, best first")
    scores: list[float] = Field(description="The score by which they are ordered")
    probabilities: dict[str, list[float]] = Field(description="By task; given its condition where the task has one")


class WrongField(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class RequestProblems(BaseModel):
    detail: list[WrongField]


class Refusal(BaseModel):
    detail: str


def build_app(
    service: RankingService, metrics: ServingMetrics, *, max_body_bytes: int, token_sha256: str | None
) -> FastAPI:
    """Routes of a ranking service. The OpenAPI document is made of the schema of the version in force."""
    app = FastAPI(title="rayrec ranker", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    guarded = [Depends(access_check(token_sha256))]
    refusals: dict[int | str, dict[str, Any]] = {
        401: {"model": Refusal, "description": "No valid bearer token"},
        403: {"model": Refusal, "description": "The service has no token and was not asked over loopback"},
    }

    @app.post(
        RANK,
        dependencies=guarded,
        response_model=RankReply,
        responses={
            **refusals,
            413: {"model": Refusal, "description": "The body is too large"},
            415: {"model": Refusal, "description": "The body is not application/json"},
            422: {
                "model": RequestProblems,
                "description": "The body does not fit the schema; each wrong field is named",
            },
            503: {"description": "Full; try again after Retry-After seconds"},
        },
    )
    async def rank(request: Request) -> Response:
        """Probabilities of each task for each candidate, and their order."""
        body = await read_json_body(request, max_body_bytes)
        ranker = service.current
        ranked = await service.rank(ranker, ranker.requests.parse(body))
        for task, probabilities in zip(ranker.tasks, ranked.probabilities.T, strict=True):
            metrics.predictions.labels(task).inc(len(probabilities))
            metrics.predicted_probability.labels(task).inc(float(probabilities.sum()))
        return Response(to_json(_reply(ranker, ranked)), media_type="application/json")

    @app.get(HEALTH)
    async def healthz() -> dict[str, str]:
        """The service is up, and which model it serves."""
        return {"status": "ok", "model": service.current.label}

    @app.get(MODEL, dependencies=guarded, responses=refusals)
    async def model() -> dict[str, Any]:
        """Version, features, tasks and metrics of the model."""
        return service.current.describe()

    @app.get(METRICS, dependencies=guarded, responses=refusals)
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return metrics.page()

    @app.get("/openapi.json", dependencies=guarded, include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(_openapi(app, service.current))

    @app.get("/docs", dependencies=guarded, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="openapi.json", title=app.title)

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"detail": [vars(problem) for problem in error.problems]}, 422)

    app.add_middleware(
        Observed,
        metrics=metrics,
        paths=frozenset({RANK, HEALTH, MODEL, METRICS}),
        label=lambda: service.current.label,
    )
    return app


def _reply(ranker: ServedRanker, ranked: Ranked) -> Mapping[str, Any]:
    return {
        "model": ranker.label,
        "order": ranked.order.tolist(),
        "scores": ranked.scores.tolist(),
        "probabilities": dict(zip(ranker.tasks, ranked.probabilities.T.tolist(), strict=True)),
    }


def _openapi(app: FastAPI, ranker: ServedRanker) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=ranker.label,
        routes=app.routes,
        description="Raw feature values as in the log; null says that a value is missing.",
    )
    schema = ranker.requests.json_schema()
    document["components"]["schemas"] |= schema.pop("$defs") | {"RankRequest": schema}
    document["paths"][RANK]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RankRequest"}}},
    }
    return document
