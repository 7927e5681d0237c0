"""The HTTP face of a cascade: a FastAPI app that knows nothing of Ray."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from pydantic_core import to_json

from rayrec.data.log.schema import CategoricalFeature, DenseFeature, SequenceFeature
from rayrec.traffic.calibration import expected_positives
from rayrec.traffic.earlier import Earlier
from rayrec.traffic.feedback import Feedback
from rayrec.traffic.ledger import Judged
from serve_apps.cascade.decision import Decision
from serve_apps.cascade.earlier_api import EARLIER, add_earlier
from serve_apps.cascade.feedback_api import FEEDBACK, add_feedback
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.served import NothingInTime, Recommended, ServedCascade
from serve_apps.cascade.stages import StageError
from serve_apps.items.availability_api import ITEM, add_availability, refusing_change
from serve_apps.items.journal import Availability
from serve_apps.playground import add_playground
from serve_apps.retriever.api import ITEMS
from serve_apps.retriever.served import NewItem
from serve_apps.service.api import REFUSALS, Handler, answering, body_of, service_app
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import ANSWERING, ServingMetrics
from serve_apps.service.refusals import Unavailable, parse_body

RECOMMEND, STAGES = "/v1/recommend", "/v1/stages"


class Item(BaseModel):
    """One item of the reply."""

    item: str
    score: float = Field(description="Of the last stage that answered in time, by which the items are ordered")
    scores: dict[str, float] = Field(description="By stage")
    probabilities: dict[str, float] = Field(description="By task of the last ranker that answered")


class Candidate(BaseModel):
    """One candidate of the trace."""

    item: str
    title: str = Field(description="Of its features, for people")
    reached: str = Field(
        description="without_features, filtered, unavailable: left out before ranking; retrieved: ranked by no ranker; early, "
        "late: scored last by that ranker and cut; shown"
    )
    position: int | None = Field(description="In the reply, from 0; null = not in it")
    scores: dict[str, float] = Field(description="By stage, of the stages that scored it")


class RecommendReply(BaseModel):
    """What a client gets."""

    request: str = Field(description="Names this request, for feedback")
    items: list[Item] = Field(description="At most k, best first")
    models: dict[str, str] = Field(description="Name and version of what answered, by stage")
    timings_ms: dict[str, float] = Field(description="By stage, the way there and back and waiting included")
    late: list[str] = Field(
        description="Stages that did not answer before the deadline: the items are those of the one before"
    )
    unknown: dict[str, dict[str, int]] = Field(
        description="By stage and feature: values that its vocabulary does not have; empty when none"
    )
    arm: str | None = Field(
        None,
        description="Of an experiment, that the user is in, or that was asked for; mixed: a version was changing; absent without "
        "an experiment",
    )
    logged: bool | None = Field(
        None,
        description="Whether this decision is on disk, so that feedback on it is known; absent where none is kept, and "
        "of an answer whose arm was asked for",
    )
    trace: list[Candidate] | None = Field(None, description="All candidates in the retriever's order, where asked for")


class CascadeService(Protocol):
    """What the app needs."""

    @property
    def current(self) -> ServedCascade: ...

    async def ask(self, served: ServedCascade, request: RecommendRequest) -> Recommended:
        """Raises RequestError, StageError, NothingInTime."""
        ...

    async def stages(self) -> Mapping[str, Mapping[str, int]]:
        """By stage: how many replicas serve each version now. Raises StageError."""
        ...

    async def add(self, item: NewItem) -> dict[str, Any]:
        """Raises RequestError, StageError, KeeperAway."""
        ...

    async def set_available(self, change: Availability) -> bool:
        """Whether all replicas have it. Raises ItemRefused, KeeperAway."""
        ...

    async def feedback(self, event: Feedback) -> Judged:
        """Raises FeedbackError, Away."""
        ...

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        """See ``earlier_answers``. Raises Away."""
        ...


def build_cascade_app(
    service: CascadeService, metrics: ServingMetrics, limits: ServiceLimits, *, feedback: bool = False
) -> FastAPI:
    """Routes of a cascade. The OpenAPI document names the features that the rankers in force read from a request. feedback:
    whether decisions are kept: then it is taken, and earlier answers are told."""
    straight: dict[str, Handler] = {}
    app, guarded, room = service_app(
        "rayrec cascade",
        service,
        metrics,
        limits,
        paths=[RECOMMEND, STAGES, ITEMS, ITEM, FEEDBACK, EARLIER],
        straight=straight,
        document=_document,
    )

    def unavailable(error: StageError) -> Unavailable:
        metrics.stage_errors.labels(error.stage, error.kind).inc()
        detail = f"The stage {error.stage!r} cannot answer now: {error.kind}"
        return Unavailable(f"{error.stage} {error.kind}", detail, limits.retry_after_s)

    @app.post(RECOMMEND, dependencies=guarded, response_model=RecommendReply, responses=REFUSALS)
    async def recommend(request: Request) -> Response:
        """The k best items: found by the retriever, cut by the early ranker, ordered by the late one."""
        async with room.body(request) as body:
            served = answering(request, service)
            asked = parse_body(RecommendRequest, body)
            try:
                found = await service.ask(served, asked)
            except StageError as error:
                raise unavailable(error) from None
            except NothingInTime:
                metrics.stage_late.labels("retrieve").inc()
                detail = "The retriever did not answer before the deadline"
                raise Unavailable("retrieve late", detail, limits.retry_after_s) from None
        _count(found, metrics)
        request.scope[ANSWERING] = " ".join(found.decision.models.values())
        return Response(to_json(reply(found, trace=asked.trace)), media_type="application/json")

    @app.get(STAGES, dependencies=guarded, responses={503: REFUSALS[503]})
    async def stages() -> Mapping[str, Mapping[str, int]]:
        """How many replicas of each stage serve which version, as they say themselves."""
        try:
            return await service.stages()
        except StageError as error:
            raise unavailable(error) from None

    @app.get(ITEMS, dependencies=guarded, responses={422: REFUSALS[422]})
    async def find(
        request: Request,
        find: Annotated[str, Query(min_length=1, max_length=100)],
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> dict[str, Any]:
        """Items whose name or title holds a text."""
        table = answering(request, service).features
        found = await asyncio.to_thread(table.search, find, limit)
        return {"items": [{"item": item, "title": title} for item, title in found]}

    @app.post(ITEMS, dependencies=guarded, status_code=201, responses=REFUSALS, openapi_extra=body_of(NewItem))
    async def add(request: Request) -> dict[str, Any]:
        """Add an item to the retriever by its text; it is recommended once the items' features have a row of it."""
        async with room.body(request) as body:
            answering(request, service)
            item = parse_body(NewItem, body)
            with refusing_change("item", limits):
                try:
                    return await service.add(item)
                except StageError as error:
                    raise unavailable(error) from None

    add_availability(app, service, guarded, room, limits)
    if feedback:
        add_feedback(app, service, guarded, room, limits, metrics)
        add_earlier(app, service, guarded, room, limits)
    add_playground(app, limits)
    straight[RECOMMEND] = recommend
    return app


def reply(found: Recommended, *, trace: bool) -> dict[str, Any]:
    """The JSON of a RecommendReply."""
    decision = found.decision
    last = next(stage for stage in ("late", "early", "retrieve") if stage in decision.scores)
    probabilities = decision.probabilities.get(last, {})
    told: dict[str, Any] = {
        "request": decision.request,
        "items": [
            {
                "item": decision.items[row],
                "score": float(decision.scores[last][row]),
                "scores": _of_row(decision.scores, row),
                "probabilities": _of_row(probabilities, row),
            }
            for row in found.shown.tolist()
        ],
        "models": decision.models,
        "timings_ms": {stage: round(ms, 3) for stage, ms in found.milliseconds.items()},
        "late": list(decision.late),
        "unknown": {stage: counts for stage, counts in found.unknown.items() if counts},
    }
    if found.rankers.arm or found.forced:
        told["arm"] = decision.arm
    if found.logged is not None:
        told["logged"] = found.logged
    if trace and found.titles is not None:
        told["trace"] = _trace(decision, found.titles)
    return told


def _trace(decision: Decision, titles: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "item": item,
            "title": titles[row],
            "reached": reached,
            "position": position if position >= 0 else None,
            "scores": _of_row(decision.scores, row),
        }
        for row, (item, reached, position) in enumerate(
            zip(decision.items, decision.reached, decision.position.tolist(), strict=True)
        )
    ]


def _of_row(values: Mapping[str, NDArray[np.float64]], row: int) -> dict[str, float]:
    return {name: float(column[row]) for name, column in values.items() if not np.isnan(column[row])}


def _count(found: Recommended, metrics: ServingMetrics) -> None:
    decision = found.decision
    for stage, milliseconds in found.milliseconds.items():
        metrics.stage_seconds.labels(stage).observe(milliseconds / 1e3)
    if found.logged is not None:
        metrics.decisions.labels("kept" if found.logged else "unkept").inc()
    if found.logged:
        _count_shown(found, metrics)
    for stage in decision.late:
        metrics.stage_late.labels(stage).inc()
    metrics.without_features.inc(decision.reached.count("without_features"))
    if found.forced:
        return
    for counts in found.unknown.values():
        for feature, count in counts.items():
            metrics.unknown_values.labels(feature).inc(count)
    for task, values in decision.probabilities.get("late", {}).items():
        there = values[~np.isnan(values)]
        metrics.predictions.labels(task).inc(len(there))
        metrics.predicted_probability.labels(task).inc(float(there.sum()))


def _count_shown(found: Recommended, metrics: ServingMetrics) -> None:
    """What feedback is to be held against."""
    decision = found.decision
    for stage in ("late", "early"):
        if stage in decision.models:
            model = decision.models[stage]
            expected = expected_positives(
                decision.probabilities[stage], found.shown, found.rankers.schemas[stage].tasks
            )
            for task, positives in expected.items():
                metrics.shown.labels(task, model).inc(len(found.shown))
                metrics.shown_predicted.labels(task, model).inc(positives)
            return


def _document(document: dict[str, Any], served: ServedCascade) -> None:
    """Describe what the rankers in force read from a request."""
    schema = RecommendRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= schema.pop("$defs", {}) | {"RecommendRequest": schema}
    schema["properties"]["context"] |= {
        "properties": {name: _described(feature) for name, feature in served.asked.items()},
        "additionalProperties": False,
    }
    schema["properties"]["where"]["propertyNames"] = {"enum": list(served.features.schema.kinds)}
    document["paths"][RECOMMEND]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RecommendRequest"}}},
    }


def _described(feature: Any) -> dict[str, Any]:
    if isinstance(feature, DenseFeature):
        return {"type": ["number", "null"] if feature.allow_missing else "number"}
    codes = ["string", "integer", "boolean"]
    if isinstance(feature, CategoricalFeature):
        return {"type": [*codes, "null"] if feature.allow_missing else codes}
    if isinstance(feature, SequenceFeature):
        return {"type": ["array", "null"], "items": {"type": [*codes, "null"]}}
    return {"type": ["string", "null"]}
