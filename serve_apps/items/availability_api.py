"""``PUT /v1/items/{item}``: take an item out, or bring it back. Knows nothing of Ray."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.params import Depends as Dependency
from pydantic import BaseModel, ConfigDict, Field

from serve_apps.items.journal import Availability, ItemRefused, KeeperAway
from serve_apps.service.api import REFUSALS
from serve_apps.service.limits import Room, ServiceLimits
from serve_apps.service.refusals import Problem, RequestError, Unavailable, parse_body

ITEM = "/v1/items/{item}"
MAX_NAME = 500


class ItemState(BaseModel):
    """What an item is to be."""

    model_config = ConfigDict(extra="forbid", strict=True)
    available: bool = Field(description="false takes it out of every answer, true brings it back")


class ItemStateReply(BaseModel):
    """What it is."""

    item: str
    available: bool
    everywhere: bool = Field(
        description="Whether every replica has it now; false: one did not say so within two seconds, and is behind or gone"
    )


class TakesItemsOut(Protocol):
    """What the route needs."""

    async def set_available(self, change: Availability) -> bool:
        """Whether all replicas have it. Raises ItemRefused, KeeperAway."""
        ...


def add_availability(
    app: FastAPI, service: TakesItemsOut, guarded: Sequence[Dependency], room: Room, limits: ServiceLimits
) -> None:
    """The route."""

    @app.put(
        "/v1/items/{item:path}",
        dependencies=guarded,
        response_model=ItemStateReply,
        responses=REFUSALS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ItemState.model_json_schema()}},
            }
        },
    )
    async def put(item: str, request: Request) -> dict[str, Any]:
        """From the reply on no answer of any replica holds an item that is taken out."""
        if not 1 <= len(item) <= MAX_NAME:
            raise RequestError([Problem(("path", "item"), f"A name of 1 to {MAX_NAME} characters", "string_too_long")])
        async with room.body(request) as body:
            state = parse_body(ItemState, body)
            with refusing_change("item", limits):
                everywhere = await service.set_available(Availability(item, state.available))
        return {"item": item, "available": state.available, "everywhere": everywhere}


@contextmanager
def refusing_change(field: str, limits: ServiceLimits) -> Iterator[None]:
    """A change that cannot be taken is a 422, one that cannot be kept now a 503."""
    try:
        yield
    except ItemRefused as error:
        raise RequestError([Problem(("body", field), str(error), "value_error")]) from None
    except KeeperAway as error:
        raise Unavailable("items away", str(error), limits.retry_after_s) from None
