"""The HTTP face of a content ranker: a FastAPI app that knows nothing of Ray."""

from typing import Any

from fastapi import FastAPI, Request

from serve_apps.content.request import ContentRequest, GivenContent, RankedContent
from serve_apps.content.served import ServedContent
from serve_apps.service.api import REFUSALS, Service, answering, body_of, service_app
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.refusals import Problem, RequestError, parse_body

RANK = "/v1/content/rank"


def build_content_app(
    service: Service[ServedContent, ContentRequest, RankedContent], metrics: ServingMetrics, limits: ServiceLimits,
    *, max_candidates: int, max_encoded: int,
) -> FastAPI:  # fmt: skip
    """Routes of a content ranking service; max_candidates: of a request; max_encoded: texts of items in it."""
    app, guarded, room = service_app("rayrec content ranker", service, metrics, limits, paths=[RANK])

    @app.post(RANK, dependencies=guarded, responses=REFUSALS, openapi_extra=body_of(ContentRequest))
    async def rank(request: Request) -> dict[str, Any]:
        """Candidates, or all stored items, best first."""
        async with room.body(request) as body:
            served = answering(request, service)
            asked = parse_body(ContentRequest, body)
            _refuse_too_many(asked, max_candidates, max_encoded)
            found = await service.ask(served, asked)
        metrics.unknown_values.labels("item").inc(found.encoded)
        metrics.unknown_values.labels("user").inc(int(asked.user is None))
        metrics.predictions.labels("engaged").inc(len(found.scores))
        return {"model": served.label, **vars(found)}

    return app


def _refuse_too_many(asked: ContentRequest, max_candidates: int, max_encoded: int) -> None:
    """Raises RequestError."""
    if len(asked.candidates or ()) > max_candidates:
        raise RequestError([Problem(("body", "candidates"), f"at most {max_candidates} candidates", "too_long")])
    for field, given in (("candidates", asked.candidates), ("history", asked.history)):
        if sum(isinstance(one, GivenContent) for one in given or ()) > max_encoded:
            raise RequestError([Problem(("body", field), f"at most {max_encoded} texts of items", "too_long")])
