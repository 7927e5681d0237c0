"""``POST /v1/feedback``: what a user did with an item of a reply. Knows nothing of Ray."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, HTTPException, Request
from fastapi.params import Depends as Dependency
from pydantic import BaseModel, ConfigDict, Field

from rayrec.traffic.feedback import Feedback, FeedbackError, Outcome
from rayrec.traffic.ledger import Away, Judged
from serve_apps.service.api import REFUSALS, Refusal, body_of
from serve_apps.service.limits import Room, ServiceLimits
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.refusals import Problem, RequestError, Unavailable, parse_body

FEEDBACK = "/v1/feedback"
_MAX_NAME, _MAX_TASKS, _MAX_ID = 500, 64, 100
_REFUSED: Mapping[Outcome, tuple[int, str]] = {
    Outcome.UNKNOWN: (404, "This item was not shown in a request of this name, or too long ago to be known"),
    Outcome.CONFLICTING: (409, "Other feedback on this item of the request was accepted before, and holds"),
    Outcome.LATE: (410, "The window for feedback on this request has closed"),
}


class FeedbackEvent(BaseModel):
    """What a client tells. Sending it again changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    request: str = Field(min_length=1, max_length=_MAX_ID, description="``request`` of the reply that showed the item")
    item: str = Field(min_length=1, max_length=_MAX_NAME)
    labels: dict[Annotated[str, Field(max_length=_MAX_NAME)], Annotated[int, Field(ge=0, le=1)]] = Field(
        min_length=1, max_length=_MAX_TASKS, description="0 or 1 by task, of those that are known"
    )
    id: str | None = Field(None, min_length=1, max_length=_MAX_ID, description="The client's own name of this event")


class FeedbackReply(BaseModel):
    """It is on disk."""

    request: str
    item: str
    outcome: str = Field(description="accepted, or duplicate: all of it was known already")


class TakesFeedback(Protocol):
    """What the route needs."""

    async def feedback(self, event: Feedback) -> Judged:
        """Raises FeedbackError, and Away when it cannot be kept now."""
        ...


def add_feedback(
    app: FastAPI,
    service: TakesFeedback,
    guarded: Sequence[Dependency],
    room: Room,
    limits: ServiceLimits,
    metrics: ServingMetrics,
) -> None:
    """The route."""
    refused: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": text} for status, text in _REFUSED.values()
    }

    @app.post(
        FEEDBACK,
        dependencies=guarded,
        response_model=FeedbackReply,
        responses=REFUSALS | refused,
        openapi_extra=body_of(FeedbackEvent),
    )
    async def feedback(request: Request) -> dict[str, str]:
        """Tell what a user did with an item of a reply: it is on disk when this answers 200, and not counted otherwise."""
        async with room.body(request) as body:
            event = parse_body(FeedbackEvent, body)
            told = Feedback(event.request, event.item, event.labels, event.id)
            try:
                judged = await service.feedback(told)
            except FeedbackError as error:
                metrics.feedback.labels("wrong").inc()
                raise RequestError([Problem(("body", "labels"), str(error), "value_error")]) from None
            except Away as error:
                metrics.feedback.labels("unkept").inc()
                raise Unavailable("feedback away", f"Not kept, send it again: {error}", limits.retry_after_s) from None
        outcome = judged.outcome
        metrics.feedback.labels(outcome.value).inc()
        for task in judged.positives:
            metrics.feedback_positives.labels(task, judged.model).inc()
        if outcome in _REFUSED:
            raise HTTPException(*_REFUSED[outcome])
        return {"request": event.request, "item": event.item, "outcome": outcome.value}
