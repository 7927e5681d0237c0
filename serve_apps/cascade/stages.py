"""What the stages of a cascade are asked and what they answer, and how each is reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_apps.retriever.served import Retrieved, RetrieveRequest
from serve_apps.service.refusals import Problem

RankingStage = Literal["early", "late", "shadow"]
Stage = Literal["retrieve", "early", "late", "shadow"]


@dataclass(frozen=True)
class RetrieveAsk:
    """where: what the items' features have to be, see ``ItemTable.matching``."""

    request: RetrieveRequest
    where: Mapping[str, Any]


@dataclass(frozen=True)
class RankAsk:
    """C candidates of one request.

    table: digest of the items' features, "" for none: then all that the ranker reads of them stands in ``columns``. rows: (C,)
    int64, of that table. columns: raw values, one a candidate, of features that are not encoded. order_by: see ``RankRequests``,
    None = by the first task. arm: whose ranker, "" = the cascade's own, which answers for an arm that it has not heard of too.
    """

    context: Mapping[str, Any]
    table: str
    rows: NDArray[np.int64]
    columns: Mapping[str, Sequence[Any]]
    order_by: str | Mapping[str, float] | None = None
    arm: str = ""


@dataclass(frozen=True)
class Candidates:
    """model: who answered."""

    model: str
    found: Retrieved


@dataclass(frozen=True)
class Scored:
    """model: who answered. scores: (C,) float64 by which ``order`` (C,), best first, ranks. probabilities: (C,) by task.

    unknown: values that its vocabularies do not have, by feature.
    """

    model: str
    scores: NDArray[np.float64]
    order: NDArray[np.int64]
    probabilities: Mapping[str, NDArray[np.float64]]
    unknown: Mapping[str, int]


@dataclass(frozen=True)
class Refused:
    """A request that the stage cannot answer: a value, for an exception would lose its type on the way between processes."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class NeedsColumns:
    """A ranker that reads the items by another table, or is of another version than the asker knows: it reads these columns; ask
    again with them, without a table."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Away:
    """The owner of the items' changes cannot be reached; why."""

    why: str


class StageError(Exception):
    """A stage that cannot be reached now, is full, or failed; ``kind``: one word for the metrics."""

    def __init__(self, stage: Stage, kind: str) -> None:
        super().__init__(f"{stage}: {kind}")
        self.stage, self.kind = stage, kind

    def __reduce__(self) -> tuple[Any, ...]:  # Ray hands it from process to process
        return type(self), (self.stage, self.kind)


class Stages(Protocol):
    """The three models, wherever they run. Each raises StageError."""

    async def retrieve(self, ask: RetrieveAsk) -> Candidates | Refused: ...

    async def rank(self, stage: RankingStage, ask: RankAsk) -> Scored | Refused | NeedsColumns: ...
