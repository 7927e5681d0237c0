"""A ranking stage of a cascade: a ranker that is asked by handle, with the items' features already in the request."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.item_features import ItemTable, load_item_features
from rayrec.item_features.encoded import EncodedItems, encode_items
from rayrec.typed_json import from_plain
from serve_apps.cascade_stages import NeedsColumns, RankAsk, RankingStage, Refused, Scored
from serve_apps.cascade_versions import CascadeReferences
from serve_apps.model_reference import ModelReference
from serve_apps.ranking_request import RankRequest
from serve_apps.refusals import RequestError
from serve_apps.replica import Replica
from serve_apps.served_ranker import Ranked, ServedRanker, load_ranker


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


class RankerStage(Replica[RankerStageSize, StagedRanker, RankRequest, Ranked]):
    """One replica; a batch is counted in candidates."""

    at_once = 512

    def __init__(self, stage: RankingStage, size: RankerStageSize, mapped: str) -> None:
        super().__init__(size)
        self._stage: RankingStage = stage
        self._mapped = Path(mapped)

    def load_configured(self, user_config: dict[str, Any]) -> StagedRanker:
        """The ranker of this stage, which is loaded only when it is another one, and checked against the items' features."""
        references = from_plain(CascadeReferences, user_config, "user_config")
        table = load_item_features(references.features.resolve().model, self._mapped)
        reference = getattr(references, self._stage)
        if self._served is not None and self._served.reference == reference:
            return staged_ranker(reference, self._served.ranker, table, self._stage, self._mapped)
        return staged_ranker(reference, load_ranker(reference, 1), table, self._stage, self._mapped)

    def answer(self, served: StagedRanker, requests: Sequence[RankRequest]) -> list[Ranked | RequestError]:
        return served.ranker.rank(requests)

    def weight(self, request: RankRequest) -> int:
        return request.candidates

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch_candidates

    def count_batch(self, requests: int) -> None:
        self.metrics.stage_batch.labels(self._stage).observe(requests)

    async def rank(self, ask: RankAsk) -> Scored | Refused | NeedsColumns:
        """Asked by handle."""
        served = self.current
        try:
            request = served.request(ask)
            if isinstance(request, NeedsColumns):
                return request
            return scored(served.ranker, await self.ask(served, request))
        except RequestError as error:
            return Refused(error.problems)

    async def label(self) -> str:
        """Of the version in force here; asked by handle, of every replica."""
        return self.current.label


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
