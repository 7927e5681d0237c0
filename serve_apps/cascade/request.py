"""What ``POST /v1/recommend`` takes."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serve_apps.retriever.served import MAX_LIST, MAX_NAME, RetrieveRequest

MAX_RETRIEVED, MAX_FEATURES, MAX_ATTRIBUTES, MAX_VALUES = 1_000, 10_000, 16, 100
_Value = Annotated[str, Field(max_length=1_024)] | bool | int | float
_OrderBy = Annotated[str, Field(max_length=MAX_NAME)] | Annotated[dict[str, float], Field(max_length=MAX_FEATURES)]
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class RecommendRequest(RetrieveRequest):
    """What a client asks for: as of ``POST /v1/retrieve``, and what the rankers need beside it."""

    history: list[Annotated[str, Field(max_length=MAX_NAME)]] = Field(
        default_factory=list, max_length=MAX_LIST, description="Items of the user, oldest first"
    )
    context: dict[_Name, Any] = Field(
        default_factory=dict,
        max_length=MAX_FEATURES,
        description="Features of the request, by name: all that the rankers read and the items' features do not hold",
    )
    retrieve: int = Field(200, ge=1, le=MAX_RETRIEVED, description="How many candidates the retriever gives")
    early: int = Field(50, ge=1, le=MAX_RETRIEVED, description="How many of them the early ranker passes on")
    order_by: dict[Literal["early", "late"], _OrderBy] = Field(
        default_factory=dict,
        description="By ranker: a task, or exponents by task, the score being the product of probability ** exponent; "
        "default: its first task",
    )
    where: dict[_Name, _Value | Annotated[list[_Value], Field(max_length=MAX_VALUES)]] = Field(
        default_factory=dict,
        max_length=MAX_ATTRIBUTES,
        description="Only items whose feature of each name has this value, or one of these",
    )
    deadline_ms: int | None = Field(
        None, ge=1, le=30_000, description="When a stage is not done by then, what the one before it gave is the answer"
    )
    trace: bool = Field(False, description="Tell of every candidate how far it came, and its scores")
    arm: _Name | None = Field(
        None,
        description="Answer by the rankers of this arm of the experiment, whoever the user is: all = the cascade's own, shadow = "
        "the shadow ranker in place of the late one. Such an answer is not logged and counts for nothing",
    )

    def retrieval(self) -> RetrieveRequest:
        """What the retriever is asked."""
        fields = RetrieveRequest.model_fields.keys() - {"k"}
        return RetrieveRequest.model_construct(**{name: getattr(self, name) for name in fields}, k=self.retrieve)
