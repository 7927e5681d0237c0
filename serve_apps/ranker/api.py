"""The HTTP face of a ranker: a FastAPI app that knows nothing of Ray."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from pydantic_core import to_json

from serve_apps.ranker.request import RankRequest
from serve_apps.ranker.served import Ranked, ServedRanker
from serve_apps.service.api import REFUSALS, Handler, Service, answering, service_app
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics

RANK = "/v1/rank"


class RankReply(BaseModel):
    """Lists are in the order of the request's candidates."""

    model: str = Field(description="Name and version of the model that answered")
    order: list[int] = Field(description="Positions of the candidates, best first")
    scores: list[float] = Field(description="The score by which they are ordered")
    probabilities: dict[str, list[float]] = Field(description="By task; given its condition where the task has one")
    unknown: dict[str, int] = Field(
        description="By feature: how many values of the candidates its vocabulary does not have; empty when none"
    )


def build_app(
    service: Service[ServedRanker, RankRequest, Ranked], metrics: ServingMetrics, limits: ServiceLimits
) -> FastAPI:
    """Routes of a ranking service. The OpenAPI document is made of the schema of the version in force."""
    straight: dict[str, Handler] = {}
    app, guarded, room = service_app(
        "rayrec ranker", service, metrics, limits, paths=[RANK], straight=straight, document=_document
    )

    @app.post(RANK, dependencies=guarded, response_model=RankReply, responses=REFUSALS)
    async def rank(request: Request) -> Response:
        """Probabilities of each task for each candidate, and their order."""
        async with room.body(request) as body:
            ranker = answering(request, service)
            ranked = await service.ask(ranker, ranker.requests.parse(body))
        for task, probabilities in zip(ranker.tasks, ranked.probabilities.T, strict=True):
            metrics.predictions.labels(task).inc(len(probabilities))
            metrics.predicted_probability.labels(task).inc(float(probabilities.sum()))
        for feature, count in ranked.unknown.items():
            metrics.unknown_values.labels(feature).inc(count)
        return Response(to_json(_reply(ranker, ranked)), media_type="application/json")

    straight[RANK] = rank
    return app


def _reply(ranker: ServedRanker, ranked: Ranked) -> Mapping[str, Any]:
    return {
        "model": ranker.label,
        "order": ranked.order.tolist(),
        "scores": ranked.scores.tolist(),
        "probabilities": dict(zip(ranker.tasks, ranked.probabilities.T.tolist(), strict=True)),
        "unknown": ranked.unknown,
    }


def _document(document: dict[str, Any], ranker: ServedRanker) -> None:
    """Describe what this version's features take."""
    document["info"]["description"] = "Raw feature values as in the log; null says that a value is missing."
    schema = ranker.requests.json_schema()
    document["components"]["schemas"] |= schema.pop("$defs") | {"RankRequest": schema}
    document["paths"][RANK]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RankRequest"}}},
    }
