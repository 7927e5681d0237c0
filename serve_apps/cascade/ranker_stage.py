"""A ranking stage of a cascade: a ranker that is asked by handle, with the items' features already in the request."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.item_features import ItemTable, load_item_features
from rayrec.item_features.encoded import EncodedItems, encode_items
from rayrec.typed_json import from_plain
from serve_apps.cascade.stages import NeedsColumns, RankAsk, RankingStage, Refused, Scored
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.ranker.request import RankRequest
from serve_apps.ranker.served import Ranked, ServedRanker, load_ranker
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError
from serve_apps.service.replica import Replica


@dataclass(frozen=True)
class RankerStageSize:
    """replicas: processes that answer. max_batch_candidates: of one forward pass, over all requests in it.

    max_queued: requests that may wait at each asking replica for a place; beyond them the reply is a 503.
    """

    replicas: int = 1
    max_batch_candidates: int = 4096
    max_queued: int = 256

    def __post_init__(self) -> None:
        for name in ("replicas", "max_batch_candidates", "max_queued"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class StagedRanker:
    """reference: what it was loaded by. columns: of the items' features that it reads. encoded: those it has encoded, of the
    table with this digest."""

    reference: ModelReference
    ranker: ServedRanker
    columns: tuple[str, ...]
    encoded: EncodedItems
    table: str

    @property
    def label(self) -> str:
        return self.ranker.label

    def describe(self) -> dict[str, Any]:
        return self.ranker.describe()

    def request(self, ask: RankAsk) -> RankRequest | NeedsColumns:
        """Raises RequestError."""
        own = self.encoded.rows(ask.rows) if ask.table == self.table else {}
        if not own.keys() | ask.columns.keys() >= set(self.columns):
            return NeedsColumns(self.columns)
        columns = {name: values for name, values in ask.columns.items() if name not in own}
        return self.ranker.requests.of_columns(ask.context, columns, len(ask.rows), own, ask.order_by)


@dataclass(frozen=True)
class StagedArms:
    """The rankers of a stage by arm; "" is the cascade's own."""

    arms: Mapping[str, StagedRanker]

    @property
    def label(self) -> str:
        return " ".join(dict.fromkeys(staged.label for staged in self.arms.values()))

    def describe(self) -> dict[str, Any]:
        return self.arms[""].describe()

    def of(self, arm: str) -> StagedRanker:
        """That of the cascade where the arm has none of its own, or is not known here yet."""
        return self.arms.get(arm) or self.arms[""]


@dataclass(frozen=True)
class StagedRequest:
    """A request and the ranker that it was made for."""

    staged: StagedRanker
    request: RankRequest


class RankerStage(Replica[RankerStageSize, StagedArms, StagedRequest, Ranked]):
    """One replica; a batch is counted in candidates."""

    at_once = 512

    def __init__(self, stage: RankingStage, size: RankerStageSize, mapped: str) -> None:
        super().__init__(size)
        self._stage: RankingStage = stage
        self._mapped = Path(mapped)

    def load_configured(self, user_config: dict[str, Any]) -> StagedArms:
        """The rankers of this stage, checked against the items' features; one that is there already is not loaded again."""
        references = from_plain(CascadeReferences, user_config, "user_config")
        there = () if self._served is None else self._served.arms.values()
        return staged_arms(references, self._stage, self._mapped, there)

    def answer(self, served: StagedArms, requests: Sequence[StagedRequest]) -> list[Ranked | RequestError]:
        """Those of one ranker in one pass."""
        answers: dict[int, Ranked | RequestError] = {}
        for staged in {id(asked.staged): asked.staged for asked in requests}.values():
            rows = [i for i, asked in enumerate(requests) if asked.staged is staged]
            answers |= zip(rows, staged.ranker.rank([requests[i].request for i in rows]), strict=True)
        return [answers[i] for i in range(len(requests))]

    def weight(self, request: StagedRequest) -> int:
        return request.request.candidates

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch_candidates

    def count_batch(self, requests: int) -> None:
        self.metrics.stage_batch.labels(self._stage).observe(requests)

    def count_wait(self, seconds: float) -> None:
        self.metrics.stage_queue_seconds.labels(self._stage).observe(seconds)

    async def rank(self, ask: RankAsk) -> Scored | Refused | NeedsColumns:
        """Asked by handle."""
        served = self.current
        staged = served.of(ask.arm)
        try:
            request = staged.request(ask)
            if isinstance(request, NeedsColumns):
                return request
            return scored(staged.ranker, await self.ask(served, StagedRequest(staged, request)))
        except RequestError as error:
            return Refused(error.problems)

    async def label(self) -> str:
        """Of the versions in force here; asked by handle, of every replica."""
        return self.current.label


def staged_arms(
    references: CascadeReferences, stage: RankingStage, mapped: Path, there: Iterable[StagedRanker] = ()
) -> StagedArms:
    """there: rankers that are loaded already. Raises BundleError, RegistryError, ItemFeaturesError, DiskError."""
    table = load_item_features(references.features.resolve().model, mapped)
    loaded = {staged.reference: staged.ranker for staged in there}
    made: dict[ModelReference, StagedRanker] = {}
    # A shadow deployment without a shadow has the late ranker, and is not asked.
    wanted = references.rankers(stage) or references.rankers("late")
    for reference in wanted.values():
        if reference not in made:
            ranker = loaded[reference] if reference in loaded else load_ranker(reference, 1)
            made[reference] = staged_ranker(reference, ranker, table, stage, mapped)
    return StagedArms({arm: made[reference] for arm, reference in wanted.items()})


def staged_ranker(
    reference: ModelReference, ranker: ServedRanker, table: ItemTable, stage: RankingStage, mapped: Path
) -> StagedRanker:
    """mapped: folder of the encoded items. Raises ItemFeaturesError when the table does not fit the ranker, DiskError."""
    schema = ranker.bundle.schema
    table.check(schema, f"the {stage} ranker {ranker.label}")
    known = {*table.schema.kinds, *(pair.name for pair in table.schema.pairs)}
    columns = tuple(f.name for f in schema.features if f.name in known)
    return StagedRanker(reference, ranker, columns, encode_items(table, schema, mapped), table.digest)


def scored(ranker: ServedRanker, ranked: Ranked) -> Scored:
    probabilities = dict(zip(ranker.tasks, ranked.probabilities.T, strict=True))
    return Scored(ranker.label, ranked.scores, ranked.order, probabilities, ranked.unknown)
