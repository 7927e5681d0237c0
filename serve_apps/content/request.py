"""What a client of a content ranker sends, and what it gets."""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_NAME, MAX_TEXT, MAX_FIELDS, MAX_HISTORY = 500, 20_000, 20, 1000
_ENCODED_ITEM, _ENCODED_USER, _ALL = 200, 1000, 2000  # what they weigh beside a candidate that is at hand

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class GivenContent(BaseModel):
    """An item that the service need not know."""

    model_config = ConfigDict(extra="forbid", strict=True)
    item: Name | None = Field(None, description="What the reply calls it")
    texts: Annotated[dict[Name, Text], Field(min_length=1, max_length=MAX_FIELDS)] = Field(
        description="Its text by field, as GET /v1/model lists the fields"
    )


class ContentRequest(BaseModel):
    """Rank candidates for a known user, or for whoever has this history."""

    model_config = ConfigDict(extra="forbid", strict=True)
    user: Name | None = Field(None, description="A user whose embedding is stored")
    history: list[Name | GivenContent] | None = Field(
        None, max_length=MAX_HISTORY, description="Instead of a user: what one engaged with, newest first"
    )
    interest: Text | None = Field(None, description="Beside a history: what a text says of one's interests")
    candidates: list[Name | GivenContent] | None = Field(
        None, min_length=1, description="Names of stored items, or texts; left out = all stored items"
    )
    k: int | None = Field(None, ge=1, le=1000, description="At most so many; default: all candidates, 10 of all items")
    with_interest: bool = Field(False, description="Tell the interest text that the embedding was made with")
    with_summary: bool = Field(False, description="Tell what EmbSum writes of the user")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.user is None) == (self.history is None):
            raise ValueError("give either a user or a history")
        if self.user is not None and self.interest is not None:
            raise ValueError("an interest text goes with a history: a user's own is in the stored embedding")
        return self

    @property
    def weight(self) -> int:
        """What it takes, in stored candidates."""
        given = sum(isinstance(one, GivenContent) for one in self.candidates or ())
        size = _ALL if self.candidates is None else len(self.candidates)
        return size + _ENCODED_ITEM * given + (_ENCODED_USER if self.history is not None else 0)


@dataclass(frozen=True)
class RankedContent:
    """Best first: items (None for a text without a name), scores, and order: places among the candidates, None of all items.

    ignored: names of the history that are not stored. encoded: texts of items that were read on demand.
    interest, summary: None where they were not asked for or there are none. stored: state of the data that the embeddings are of.
    """

    items: list[str | None]
    scores: list[float]
    order: list[int] | None
    ignored: list[str]
    encoded: int
    interest: str | None
    summary: str | None
    stored: str | None
