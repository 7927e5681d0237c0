"""A retriever, an early and a late ranker as one Ray Serve application: ``serve deploy serve_apps/cascade.yaml``, or
``python -m jobs.serve cascade``.

Each stage is a deployment of its own, with its own replicas, batches and version; ``Cascade``, the one that is reached over HTTP,
holds the items' features and asks the stages by handle.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.retriever.bundle import load_retriever
from rayrec.traffic.earlier import Earlier
from rayrec.traffic.feedback import Feedback
from rayrec.traffic.ledger import Judged
from rayrec.typed_json import from_plain
from serve_apps.cascade.api import RECOMMEND, build_cascade_app
from serve_apps.cascade.ranker_stage import RankerStage, RankerStageSize
from serve_apps.cascade.request import RecommendRequest
from serve_apps.cascade.retriever_stage import RetrieverStage, RetrieverStageSize
from serve_apps.cascade.served import Recommended, ServedCascade, load_served_cascade
from serve_apps.cascade.stages import (
    Away,
    Candidates,
    NeedsColumns,
    RankAsk,
    RankingStage,
    Refused,
    RetrieveAsk,
    Scored,
    Stage,
    StageError,
)
from serve_apps.cascade.traffic import Recorder, TrafficOptions
from serve_apps.cascade.traffic_keeper import KeptTraffic
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.example_request import example_row
from serve_apps.items.journal import Availability, KeeperAway
from serve_apps.items.keeper import ItemFollower
from serve_apps.retriever.served import NewItem
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.refusals import RequestError, VersionError
from serve_apps.service.replica import deployed_as, ingress, prepared, replica_environment
from serve_apps.service.version_holder import VersionHolder

_ASKED_TWICE = (ray.exceptions.RayActorError, DeploymentUnavailableError)
_ALL_REPLICAS_S = 10.0


@dataclass(frozen=True)
class CascadeService(ServiceLimits):
    """As ``ServiceLimits`` for what is reached over HTTP. retriever, early, late: the sizes of the stages.

    deadline_ms: of requests that set none. state_folder: of each machine, where features are mapped from, and of the cluster's
    head node, where changes of items are kept; default: a new folder among temporary files. traffic: the log of decisions.
    """

    kind: ClassVar[str] = "cascade"
    path: ClassVar[str | None] = "serve_apps.cascade.application"
    deployments: ClassVar[tuple[str, ...]] = ("Cascade", "Retrieve", "Early", "Late")
    max_body_bytes: int = 256 * 1024
    deadline_ms: int = 10_000
    retriever: RetrieverStageSize = field(default_factory=RetrieverStageSize)
    early: RankerStageSize = field(default_factory=RankerStageSize)
    late: RankerStageSize = field(default_factory=RankerStageSize)
    state_folder: str | None = None
    traffic: TrafficOptions = field(default_factory=TrafficOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least_one("deadline_ms")

    def in_folder(self, folder: Path) -> "CascadeService":
        kept = super().in_folder(folder)
        assert isinstance(kept, CascadeService)
        traffic = self.traffic
        if traffic.folder is not None:
            traffic = replace(traffic, folder=str(Path(traffic.folder).resolve()))
        return replace(kept, state_folder=str(Path(self.state_folder or folder / "state").resolve()), traffic=traffic)

    @property
    def mapped(self) -> Path:
        """Folder of the files that replicas of a machine map into memory."""
        assert self.state_folder is not None
        return Path(self.state_folder) / "mapped"

    @property
    def deployed(self) -> tuple[str, ...]:
        return (*self.deployments, *(("Shadow",) if self.traffic.shadow_replicas else ()))

    @property
    def traffic_folder(self) -> str | None:
        return self.traffic.folder

    @property
    def logged_as(self) -> RankingStage | None:
        """The ranker in whose columns decisions are kept; None where none are."""
        return None if self.traffic.folder is None else self.traffic.ranker

    def check(self, references: CascadeReferences) -> None:
        """Raises VersionError for what this service has no processes for."""
        if references.rankers("shadow") and not self.traffic.shadow_replicas:
            raise VersionError(
                "the experiment names a shadow ranker, and there is no process for it: set traffic.shadow_replicas"
            )

    @property
    def kept_items(self) -> str:
        assert self.state_folder is not None
        return str(Path(self.state_folder) / "items")


class HandledStages:
    """The stages as deployments. Asking changes nothing there, so that what a dying replica took along is asked once more."""

    def __init__(
        self,
        retrieve: DeploymentHandle[Any],
        early: DeploymentHandle[Any],
        late: DeploymentHandle[Any],
        shadow: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._handles: dict[Stage, DeploymentHandle[Any]] = {"retrieve": retrieve, "early": early, "late": late}
        if shadow is not None:
            self._handles["shadow"] = shadow
        self._quick = {stage: _straight(handle) for stage, handle in self._handles.items()}

    async def retrieve(self, ask: RetrieveAsk) -> Candidates | Refused:
        found: Candidates | Refused = await self._ask("retrieve", "retrieve", ask)
        return found

    async def rank(self, stage: RankingStage, ask: RankAsk) -> Scored | Refused | NeedsColumns:
        found: Scored | Refused | NeedsColumns = await self._ask(stage, "rank", ask)
        return found

    async def add(self, item: NewItem) -> dict[str, Any] | Refused | Away:
        """By the retriever. What a dying replica takes along may be added or not, and is not asked again. Raises StageError."""
        try:
            found: dict[str, Any] | Refused | Away = await self._told(
                "retrieve", self._handles["retrieve"].add.remote(item)
            )
        except _ASKED_TWICE:
            raise StageError("retrieve", "died") from None
        return found

    async def labels(self) -> dict[str, dict[str, int]]:
        """By stage: how many replicas serve each version. Raises StageError."""
        asked = [self._labels(stage, handle) for stage, handle in self._handles.items()]
        return dict(zip(self._handles, await asyncio.gather(*asked), strict=True))

    async def _ask(self, stage: Stage, method: str, asked: Any) -> Any:
        handle = getattr(self._quick[stage], method)
        try:
            return await self._told(stage, handle.remote(asked))
        except _ASKED_TWICE:
            pass
        try:
            return await self._told(stage, handle.remote(asked))
        except _ASKED_TWICE:
            raise StageError(stage, "died") from None

    @staticmethod
    async def _told(stage: Stage, answer: Any) -> Any:
        try:
            return await answer
        except asyncio.CancelledError:  # the deadline came: no batch shall hold it any more
            answer.cancel()
            raise
        except BackPressureError:
            raise StageError(stage, "full") from None
        except _ASKED_TWICE:
            raise
        except (ray.exceptions.RayError, RayServeException) as error:
            raise StageError(stage, "failed") from error

    @staticmethod
    async def _labels(stage: Stage, handle: DeploymentHandle[Any]) -> dict[str, int]:
        try:
            return dict(Counter(await handle.broadcast("label").results_async(timeout_s=_ALL_REPLICAS_S)))
        except (ray.exceptions.RayError, RayServeException, TimeoutError) as error:
            raise StageError(stage, "died") from error


def _straight(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Asks the replica's own gRPC server, which Serve starts in any case, and not through Ray's objects: 2.4 ms a call in place
    of 5.6 (one by one in turn, on a busy machine)."""
    return handle.options(_by_reference=False, request_serialization="pickle", response_serialization="pickle")


@serve.deployment
@serve.ingress()
class Cascade(VersionHolder[CascadeService, ServedCascade]):
    """What is reached over HTTP."""

    def __init__(
        self,
        limits: CascadeService,
        retrieve: DeploymentHandle[Any],
        early: DeploymentHandle[Any],
        late: DeploymentHandle[Any],
        shadow: DeploymentHandle[Any] | None = None,
    ) -> None:
        super().__init__(limits)
        self._stages = HandledStages(retrieve, early, late, shadow)
        self.items = ItemFollower(limits.kept_items)
        traffic = limits.traffic
        self.recorder = (
            None if traffic.folder is None else Recorder(KeptTraffic(traffic.folder, traffic.window_s), traffic.wait_ms)
        )

    def load_configured(self, user_config: dict[str, Any]) -> ServedCascade:
        """The table of features, mapped, and what the rankers read, but not the rankers."""
        references = from_plain(CascadeReferences, user_config, "user_config")
        self.limits.check(references)
        return load_served_cascade(references, self.limits.mapped, self.limits.logged_as)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """A replica that does not know which items are out answers nobody."""
        await self.items.start()
        if self.recorder is not None:
            await self.recorder.start()
        await super().reconfigure(user_config)

    async def add(self, item: NewItem) -> dict[str, Any]:
        """Raises RequestError, StageError, KeeperAway."""
        found = await self._stages.add(item)
        if isinstance(found, Refused):
            raise RequestError(found.problems)
        if isinstance(found, Away):
            raise KeeperAway(found.why)
        return found

    async def set_available(self, change: Availability) -> bool:
        """Whether all replicas of all stages have it. Raises ItemRefused, KeeperAway."""
        return await self.items.set_available(change)

    async def ask(self, served: ServedCascade, request: RecommendRequest) -> Recommended:
        """Raises RequestError, StageError, NothingInTime."""
        found = await served.recommend(request, self._stages, self.items.changes, self.limits.deadline_ms)
        if self.recorder is None:
            return found
        recorded = await self.recorder.recorded(found)
        self.recorder.watch(served.shadow, recorded, lambda outcome: self.metrics.shadow.labels(outcome).inc())
        return recorded

    async def feedback(self, event: Feedback) -> Judged:
        """Raises FeedbackError, Away."""
        assert self.recorder is not None  # else there is no such route
        return await self.recorder.accept(event)

    async def earlier(self, user: str | None, asked: str, most: int) -> Earlier:
        """Raises Away."""
        assert self.recorder is not None  # else there is no such route
        return await self.recorder.earlier(user, asked, most)

    async def stages(self) -> Mapping[str, Mapping[str, int]]:
        """Raises StageError."""
        return await self._stages.labels()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_cascade_app(self, self.metrics, self.limits, feedback=self.recorder is not None)


def build(args: dict[str, Any]) -> serve.Application:
    """The application; ``args``: fields of CascadeService. What all deployments serve is set by their ``user_config``."""
    limits = prepared(CascadeService, args)
    environment = replica_environment(limits)
    retrieve = deployed_as(RetrieverStage, "Retrieve", limits.retriever, environment).bind(
        limits.retriever, limits.kept_items, str(limits.mapped)
    )
    early, late = (
        deployed_as(RankerStage, name.capitalize(), size, environment).bind(name, size, str(limits.mapped))
        for name, size in (("early", limits.early), ("late", limits.late))
    )
    stages = [retrieve, early, late]
    if limits.traffic.shadow_replicas:
        size = replace(limits.late, replicas=limits.traffic.shadow_replicas)
        shadow = deployed_as(RankerStage, "Shadow", size, environment).bind("shadow", size, str(limits.mapped))
        stages.append(shadow)
    bound: serve.Application = ingress(Cascade, limits, environment).bind(limits, *stages)
    return bound


SERVICE = CascadeService


def example(references: CascadeReferences, served: ServedCascade) -> tuple[str, dict[str, Any]] | None:
    """Two of the retriever's items, and a row of the logs that the rankers were trained on; None where these are not at hand."""
    found = references.resolve()
    context: dict[str, Any] = {}
    for ranker in (load_bundle(found.early.model), load_bundle(found.late.model)):
        row = example_row(ranker)
        if row is None:
            return None
        context |= {name: value for name, value in row.items() if name in served.context}
    history = list(load_retriever(found.retriever.model).names[:2])
    return RECOMMEND, {"history": history, "context": context, "k": 5}
