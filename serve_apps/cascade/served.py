"""One request through the three stages: retrieve, early ranker, late ranker. Knows nothing of Ray or HTTP.

The stages are asked through ``Stages``, so that deployments on other machines and plain calls in this process go one way.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from rayrec.data.log.schema import CategoricalFeature, DenseFeature, Feature, LogSchema, SequenceFeature, TextFeature
from rayrec.families.ranker.bundle import read_ranker_schema
from rayrec.item_features import ItemTable, load_item_features
from rayrec.item_features.table import described
from rayrec.traffic.assignment import Assignment
from serve_apps.cascade.decision import Decision, Reached
from serve_apps.cascade.decision_log import DecisionWriter, ShadowWriter
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.stages import (
    Candidates,
    NeedsColumns,
    RankAsk,
    RankingStage,
    Refused,
    RetrieveAsk,
    Scored,
    Stage,
    StageError,
    Stages,
)
from serve_apps.cascade.versions import MIXED, OWN, WATCHED, CascadeReferences
from serve_apps.items.changes import ItemChanges
from serve_apps.items.columns import ItemColumns
from serve_apps.service.refusals import Problem, RequestError

T = TypeVar("T")
RANKERS: tuple[RankingStage, ...] = ("early", "late")
_REACHED: tuple[Reached, ...] = get_args(Reached)
_WITHOUT_FEATURES, _FILTERED, _UNAVAILABLE, _RETRIEVED, _SHOWN = map(
    _REACHED.index, ("without_features", "filtered", "unavailable", "retrieved", "shown")
)


class NothingInTime(Exception):
    """Not even the retriever answered before the deadline."""


@dataclass(frozen=True)
class Recommended:
    """decision: the whole of it. shown: rows of its candidates in the order of the reply. milliseconds: by stage.

    unknown: values that vocabularies do not have, by stage and feature. titles: of the candidates, for people; only for a trace.
    rankers: of the user's arm. watched: asks the shadow ranker, where there is one.
    logged: whether the decision is known to be on disk; None where none is kept. forced: the request named its arm, which no
    draw gave it: it is neither logged nor watched, and counts for nothing.
    """

    decision: Decision
    shown: NDArray[np.int64]
    milliseconds: Mapping[str, float]
    unknown: Mapping[str, Mapping[str, int]]
    titles: Sequence[str] | None
    rankers: "Rankers"
    watched: "Watched | None" = None
    logged: bool | None = None
    forced: bool = False


@dataclass(frozen=True)
class Rankers:
    """Who ranks for an arm. arm: "" = the cascade's own. labels: their versions, where it matters that these answered. writer: of
    decisions for their log, None where none is kept."""

    arm: str
    schemas: Mapping[RankingStage, LogSchema]
    labels: Mapping[RankingStage, str] = field(default_factory=dict)
    writer: DecisionWriter | None = None

    def told(self, models: Mapping[str, str]) -> str:
        """The arm that a decision of these models counts for."""
        if not self.arm:
            return OWN
        return MIXED if any(models.get(stage, label) != label for stage, label in self.labels.items()) else self.arm


@dataclass(frozen=True)
class ServedCascade:
    """label: of all versions. features_label: of the table's. schemas, writer: of the cascade's own rankers, see ``Rankers``.

    assignment, arms: of an experiment. shadow: writes what the ranker says that is only watched; None = there is none.
    watched: the rankers of an answer by the shadow. read: by arm and stage, the columns of the table and pairs that are read; of
    the shadow with those of the arm "" too.
    context: features that a request brings.
    """

    label: str
    features_label: str
    features: ItemTable
    schemas: Mapping[RankingStage, LogSchema]
    writer: DecisionWriter | None = None
    assignment: Assignment | None = None
    arms: Mapping[str, Rankers] = field(default_factory=dict)
    shadow: ShadowWriter | None = None
    watched: Rankers | None = None
    read: Mapping[str, Mapping[RankingStage, tuple[str, ...]]] = field(init=False)
    context: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Raises ItemFeaturesError when the table does not fit a ranker."""
        table, context, read = self.features.schema, set[str](), {}
        made = {pair.name: pair for pair in table.pairs}
        for arm, stages in self._schemas().items():
            read[arm] = dict[RankingStage, tuple[str, ...]]()
            for stage, schema in stages.items():
                self.features.check(schema, f"the {stage} ranker" + (f" of arm {arm!r}" if arm else ""))
                names = [feature.name for feature in schema.features]
                read[arm][stage] = tuple(name for name in names if name in table.kinds or name in made)
                context |= {name for name in names if name not in read[arm][stage]}
                context |= {made[name].request for name in names if name in made}
        object.__setattr__(self, "read", read)
        object.__setattr__(self, "context", frozenset(context))

    def _schemas(self) -> dict[str, dict[RankingStage, LogSchema]]:
        """Of all rankers, by arm and stage."""
        shadow: dict[RankingStage, LogSchema] = {} if self.shadow is None else {"shadow": self.shadow.schema}
        arms = [*self.arms.values(), *(() if self.watched is None else (self.watched,))]
        return {"": {**self.schemas, **shadow}} | {arm.arm: dict(arm.schemas) for arm in arms}

    @property
    def asked(self) -> Mapping[str, Feature]:
        """What any of the rankers reads of a request, by name."""
        every = [schema for stages in self._schemas().values() for schema in stages.values()]
        return {f.name: f for schema in every for f in schema.features if f.name in self.context}

    def rankers_of(self, user: str | None, arm: str | None = None) -> Rankers:
        """Of the user's arm; the cascade's own for one without a name. arm: of that one. Raises RequestError for none."""
        own = Rankers("", self.schemas, writer=self.writer)
        if arm is not None:
            there = {OWN: own, **self.arms} | ({} if self.watched is None else {WATCHED: self.watched})
            if arm not in there:
                told = f"There is no arm {arm!r} now; there are {', '.join(there)}"
                raise RequestError([Problem(("body", "arm"), told, "value_error")])
            return there[arm]
        return own if self.assignment is None or not user else self.arms[self.assignment.arm(user)]

    def describe(self) -> dict[str, Any]:
        """The features that a request brings, with a value that each takes, those that the table holds, and how decisions are
        logged."""
        kept = {name: f for name, f in sorted(self.asked.items()) if not isinstance(f, TextFeature)}
        return {
            "versions": self.label,
            "context": list(kept),
            "lists": [name for name, f in kept.items() if isinstance(f, SequenceFeature)],
            "numbers": [name for name, f in kept.items() if isinstance(f, DenseFeature)],
            "example": {name: _some_value(f) for name, f in kept.items()},
            "arms": {name: self.assignment.share(name) for name in self.arms} if self.assignment is not None else {},
            "shadow": None if self.watched is None else self.watched.labels["late"],
            "logged": None if self.writer is None else self.writer.told(),
            "features": {"version": self.features_label, **described(self.features.schema)},
        }

    async def recommend(
        self, request: RecommendRequest, stages: Stages, changes: ItemChanges, deadline_ms: int
    ) -> Recommended:
        """changes: items that are out when the reply is made are not in it. deadline_ms: where the request has none.

        Raises RequestError, StageError, NothingInTime.
        """
        return await _Run(self, request, stages, changes, request.deadline_ms or deadline_ms).recommend()

    def check(self, request: RecommendRequest) -> None:
        """Raises RequestError for names that nobody reads."""
        problems = [
            Problem(
                ("body", "context", name), "No ranker reads a feature of this name from a request", "extra_forbidden"
            )
            for name in sorted(request.context.keys() - self.context)
        ]
        problems += [
            Problem(("body", "where", name), "The items have no feature of this name", "extra_forbidden")
            for name in sorted(request.where.keys() - self.features.schema.kinds)
        ]
        if problems:
            raise RequestError(problems)


def load_served_cascade(
    references: CascadeReferences, mapped: Path, logged_as: RankingStage | None = None
) -> ServedCascade:
    """The table of features, mapped, and what the rankers read, but not the rankers. logged_as: the ranker in whose columns
    decisions are kept.

    Raises BundleError, RegistryError or ItemFeaturesError when there is nothing that can be served.
    """
    found = references.resolve()
    schemas = {stage: read_ranker_schema(getattr(found, stage).model) for stage in RANKERS}
    table = load_item_features(found.features.model, mapped)
    writers: list[DecisionWriter] = []  # one for all rankers of a schema: it builds its dictionaries

    def writer(schemas: Mapping[RankingStage, LogSchema]) -> DecisionWriter | None:
        if logged_as is None:
            return None
        if not any(made.book.schema == schemas[logged_as] for made in writers):
            table.check(schemas[logged_as], f"the {logged_as} ranker")
            writers.append(DecisionWriter(schemas[logged_as], table, mapped))
        return next(made for made in writers if made.book.schema == schemas[logged_as])

    experiment, arms = found.experiment, {}
    for arm in experiment.arms if experiment is not None else ():
        rankers = {stage: getattr(arm, stage) or getattr(found, stage) for stage in RANKERS}
        of_arm = {stage: read_ranker_schema(reference.model) for stage, reference in rankers.items()}
        labels = {stage: reference.label for stage, reference in rankers.items()}
        arms[arm.name] = Rankers(arm.name, of_arm, labels, writer(of_arm))
    watched = None if experiment is None else experiment.shadow
    shadow = by_shadow = None
    if watched is not None:
        shadow = ShadowWriter(read_ranker_schema(watched.model))
        labels = {"early": found.early.label, "late": watched.label}
        by_shadow = Rankers(WATCHED, {"early": schemas["early"], "late": shadow.schema}, labels)
    return ServedCascade(
        str(found.label),
        str(found.features.label),
        table,
        schemas,
        writer(schemas),
        None if experiment is None else experiment.assignment,
        arms,
        shadow,
        by_shadow,
    )


@dataclass(frozen=True)
class Watched:
    """What the late ranker scored, or was to score, for the shadow to score too. kept: (n,) rows of the decision's candidates."""

    run: "_Run"
    rows: NDArray[np.int64]
    columns: ItemColumns
    pairs: Mapping[str, Sequence[Any]]
    kept: NDArray[np.int64]

    async def ask(self) -> Scored:
        """The shadow's scores of ``kept``. Raises RequestError, StageError."""
        found = await self.run._ranked("shadow", self.rows, self.columns, self.pairs, self.kept)
        assert found is not None  # only a deadline leaves nothing
        return found


class _Run:
    """One request on its way."""

    def __init__(
        self, served: ServedCascade, request: RecommendRequest, stages: Stages, changes: ItemChanges, deadline_ms: int
    ) -> None:
        self._served, self._request, self._stages, self._deadline_s = served, request, stages, deadline_ms / 1e3
        self._changes = changes
        self._started, self._time_ms = time.perf_counter(), time.time_ns() // 1_000_000
        self._milliseconds: dict[str, float] = {}
        self._late: list[Stage] = []
        self._rankers = served.rankers_of(request.user, request.arm)
        self._models: dict[str, str] = {}

    async def recommend(self) -> Recommended:
        served, request = self._served, self._request
        served.check(request)
        found = await self._in_time("retrieve", self._stages.retrieve(RetrieveAsk(request.retrieval(), request.where)))
        if found is None:
            raise NothingInTime
        names = found.found.items
        n, retrieved = len(names), np.array(found.found.scores, np.float64)
        started = time.perf_counter()
        rows = served.features.rows(names)
        columns = ItemColumns(served.features, rows)
        pairs = self._pairs(columns)
        here = np.flatnonzero(rows >= 0)
        kept = here[served.features.matching(rows[here], request.where)]
        kept = self._available(kept, names)
        self._models["features"] = served.features_label
        self._milliseconds["features"] = 1e3 * (time.perf_counter() - started)
        ranked = kept
        scores, reached = {"retrieve": retrieved}, np.where(rows < 0, _WITHOUT_FEATURES, _FILTERED)
        reached[self._out(names)] = _UNAVAILABLE
        reached[kept] = _RETRIEVED
        probabilities: dict[str, dict[str, NDArray[np.float64]]] = {}
        unknown: dict[str, Mapping[str, int]] = {}
        for stage in RANKERS:
            if not len(kept):
                break
            ranked = kept
            scored = await self._ranked(stage, rows, columns, pairs, kept)
            if scored is None:
                break
            scores[stage] = _spread(scored.scores, kept, n)
            probabilities[stage] = {task: _spread(values, kept, n) for task, values in scored.probabilities.items()}
            unknown[stage] = scored.unknown
            reached[kept] = _REACHED.index(stage)
            kept = kept[scored.order if stage == "late" else scored.order[: request.early]]
        shown = self._available(kept, names)[
            : request.k
        ]  # one that was taken out meanwhile leaves its place to the next
        reached[shown] = _SHOWN
        position = np.full(n, -1)
        position[shown] = np.arange(len(shown))
        self._milliseconds["total"] = 1e3 * (time.perf_counter() - self._started)
        decision = Decision(
            request=uuid.uuid4().hex,
            time_ms=self._time_ms,
            user=request.user,
            history=request.history,
            preference=request.wish,
            context=request.context,
            models=self._models,
            late=tuple(self._late),
            items=names,
            reached=[_REACHED[i] for i in reached.tolist()],
            position=position,
            scores=scores,
            probabilities=probabilities,
            rows=rows,
            columns=columns.beside(pairs),
            arm=self._rankers.told(self._models),
        )
        return Recommended(
            decision,
            shown,
            self._milliseconds,
            unknown,
            served.features.titles(rows) if request.trace else None,
            self._rankers,
            None if served.shadow is None or not len(ranked) else Watched(self, rows, columns, pairs, ranked),
            forced=request.arm is not None,
        )

    def _out(self, names: Sequence[str]) -> list[int]:
        """Rows of the items that are taken out."""
        out = self._changes.out
        return [row for row, name in enumerate(names) if name in out] if out else []

    def _available(self, kept: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int64]:
        """Of rows, those of items that are not taken out."""
        out = self._out(names)
        return kept[~np.isin(kept, out)] if out else kept

    def _pairs(self, columns: ItemColumns) -> dict[str, list[Any]]:
        """The features of request and item together that a ranker reads. Raises RequestError."""
        found, context = {}, self._request.context
        read, watched = self._served.read[self._rankers.arm], self._served.read[""].get("shadow", ())
        for pair in self._served.features.schema.pairs:
            if not any(pair.name in read[stage] for stage in RANKERS):
                with suppress(KeyError, TypeError):  # of the shadow's, which is not felt
                    if pair.name in watched:
                        found[pair.name] = pair.values(context[pair.request], columns[pair.item])
                continue
            place = ("body", "context", pair.request)
            if pair.request not in context:
                raise RequestError(
                    [Problem(place, f"Needed for {pair.name!r} (null says that it is missing)", "missing")]
                )
            try:
                found[pair.name] = pair.values(context[pair.request], columns[pair.item])
            except TypeError as error:
                raise RequestError([Problem(place, str(error), "value_error")]) from None
        return found

    async def _ranked(
        self,
        stage: RankingStage,
        rows: NDArray[np.int64],
        columns: ItemColumns,
        pairs: Mapping[str, Sequence[Any]],
        kept: NDArray[np.int64],
    ) -> Scored | None:
        """First by rows of the table, which the ranker has encoded; by raw values where it has another one. stage: "shadow" is
        watched, which no deadline cuts short; in place of the late ranker it is asked as that."""
        arm = "" if stage == "shadow" else self._rankers.arm
        table, kinds, read = self._served.features, self._served.features.schema.kinds, self._served.read[arm][stage]
        names: Sequence[str] = [name for name in read if name in pairs or kinds.get(name) == "codes"]
        digest, chosen = table.digest, kept.tolist()
        by: RankingStage = "shadow" if (arm, stage) == (WATCHED, "late") else stage
        for _ in range(2):
            of_items = table.columns(rows[kept], [name for name in names if name in kinds])
            own = of_items | {name: [pairs[name][i] for i in chosen] for name in names if name in pairs}
            order_by = None if stage == "shadow" else self._request.order_by.get(stage)
            ask = RankAsk(self._request.context, digest, rows[kept], own, order_by, "" if arm == WATCHED else arm)
            asked = self._stages.rank(by, ask)
            answer: Scored | NeedsColumns | Refused | None = (
                await asked if stage == "shadow" else await self._in_time(stage, asked)
            )
            if isinstance(answer, Refused):
                raise RequestError(answer.problems)
            if not isinstance(answer, NeedsColumns):
                return answer
            if not kinds.keys() | pairs.keys() >= set(answer.names):
                break
            names, digest = answer.names, ""
        raise StageError(stage, "version")

    async def _in_time(self, stage: Stage, answer: Awaitable[T | Refused]) -> T | None:
        """The stage's answer, None when it did not come before the deadline. Raises RequestError, StageError."""
        started = time.perf_counter()
        before = self._milliseconds.get(stage, 0.0)
        try:
            async with asyncio.timeout(self._deadline_s - (started - self._started)):
                given = await answer
        except TimeoutError:
            self._late.append(stage)
            return None
        finally:
            self._milliseconds[stage] = before + 1e3 * (time.perf_counter() - started)
        if isinstance(given, Refused):
            raise RequestError(given.problems)
        if isinstance(given, Candidates | Scored):
            self._models[stage] = given.model
        return given


def _some_value(feature: Feature) -> Any:
    """That a feature takes: the most frequent code, where there is a vocabulary."""
    if isinstance(feature, DenseFeature):
        return 0.0
    if isinstance(feature, SequenceFeature):
        return []
    return feature.vocabulary[0] if isinstance(feature, CategoricalFeature) and feature.vocabulary else "1"


def _spread(values: NDArray[np.float64], rows: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """(n,) the values at ``rows``, NaN elsewhere."""
    spread = np.full(n, np.nan)
    spread[rows] = values
    return spread
