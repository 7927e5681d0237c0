"""``POST /v1/earlier``: how a user, or the same question, was answered before. Knows nothing of Ray."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from fastapi import FastAPI, Request
from fastapi.params import Depends as Dependency
from pydantic import BaseModel, Field

from rayrec.traffic.earlier import Earlier, EarlierAnswer
from rayrec.traffic.ledger import Away
from serve_apps.cascade.decision_log import asked
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.served import Recommended, ServedCascade
from serve_apps.service.api import REFUSALS, Service, answering, body_of
from serve_apps.service.limits import Room, ServiceLimits
from serve_apps.service.refusals import Unavailable, parse_body

EARLIER = "/v1/earlier"
MAX_EARLIER = 20


class EarlierRequest(RecommendRequest):
    """A request to recommend, as it would be sent; only its user, history, preference and context matter here."""

    limit: int = Field(5, ge=1, le=MAX_EARLIER, description="How many answers are wanted at most")


class EarlierItem(BaseModel):
    """One item of an earlier answer."""

    item: str
    title: str = Field(description="Of its features in force now, for people")
    score: float | None = Field(description="Of the last stage that answered then")


class EarlierReplied(BaseModel):
    """One earlier answer."""

    request: str
    time_ms: int = Field(description="Unix time")
    same_question: bool = Field(description="Whether user, history, preference and context were those of this request")
    arm: str
    models: dict[str, str]
    items: list[EarlierItem]


class EarlierReply(BaseModel):
    """What is known."""

    by: Literal["user", "question"] = Field(description="What they are answers to: this user, or this very question")
    answers: list[EarlierReplied] = Field(description="Newest first")
    rows: int = Field(description="Of the log that were looked at, one a candidate")
    whole: bool = Field(description="false: the search ended at its bounds, and there may be older answers")


class KnowsEarlier(Service[ServedCascade, RecommendRequest, Recommended], Protocol):
    """What the route needs."""

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        """Raises Away."""
        ...


def add_earlier(
    app: FastAPI, service: KnowsEarlier, guarded: Sequence[Dependency], room: Room, limits: ServiceLimits
) -> None:
    """The route."""

    @app.post(
        EARLIER,
        dependencies=guarded,
        response_model=EarlierReply,
        responses=REFUSALS,
        openapi_extra=body_of(EarlierRequest),
    )
    async def earlier(request: Request) -> dict[str, Any]:
        """Earlier answers to the user of a request; of one without a user, to the same history, preference and context."""
        async with room.body(request) as body:
            served = answering(request, service)
            given = parse_body(EarlierRequest, body)
            question = asked(given.user, given.history, given.wish, given.context)
            try:
                found = await service.earlier(given.user or None, question, given.limit)
            except Away as error:
                detail = f"The log of decisions cannot be read now: {error}"
                raise Unavailable("decisions away", detail, limits.retry_after_s) from None
        return {
            "by": "user" if given.user else "question",
            "answers": [_told(answer, question, served) for answer in found.answers],
            "rows": found.rows,
            "whole": found.whole,
        }


def _told(answer: EarlierAnswer, question: str, served: ServedCascade) -> dict[str, Any]:
    titles = served.features.titles(served.features.rows(answer.items))
    return {
        "request": answer.request,
        "time_ms": answer.time_ms,
        "same_question": answer.asked == question,
        "arm": answer.arm,
        "models": dict(answer.models),
        "items": [
            {"item": item, "title": title, "score": None if math.isnan(score) else score}
            for item, title, score in zip(answer.items, titles, answer.scores, strict=True)
        ],
    }
