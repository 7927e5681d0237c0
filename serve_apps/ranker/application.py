"""The ranker as a Ray Serve application: ``serve deploy serve_apps/ranker.yaml``, or ``python -m jobs.serve``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastapi import FastAPI
from ray import serve

from rayrec.data.log import Log, LogError
from rayrec.data.log.schema import SchemaError
from rayrec.families.ranker.bundle import Bundle
from serve_apps.example_request import example_request
from serve_apps.ranker.api import build_app
from serve_apps.ranker.request import RankRequest
from serve_apps.ranker.served import Ranked, ServedRanker, load_ranker
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError
from serve_apps.service.replica import Replica, application


@dataclass(frozen=True)
class RankerService(ServiceLimits):
    """As ``ServiceLimits``, for requests of candidates."""

    kind: ClassVar[str] = "ranker"
    max_candidates: int = 1000
    """Of a request."""
    max_batch_candidates: int = 4096
    """Of one forward pass, over all requests in it; at least max_candidates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least_one("max_candidates")
        if self.max_batch_candidates < self.max_candidates:
            raise ValueError("max_batch_candidates must be at least max_candidates")


@serve.deployment
@serve.ingress()
class Ranker(Replica[RankerService, ServedRanker, RankRequest, Ranked]):
    """A batch is counted in candidates."""

    at_once = 512

    def load(self, reference: ModelReference) -> ServedRanker:
        return load_ranker(reference, self.limits.max_candidates)

    def answer(self, served: ServedRanker, requests: Sequence[RankRequest]) -> list[Ranked | RequestError]:
        return served.rank(requests)

    def weight(self, request: RankRequest) -> int:
        return request.candidates

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch_candidates

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self, self.metrics, self.limits)


def build(args: dict[str, Any]) -> serve.Application:
    """The application; ``args``: fields of RankerService. What it serves is set by ``user_config``."""
    return application(Ranker, RankerService, args)


SERVICE = RankerService


def example(bundle: Bundle) -> tuple[str, dict[str, Any]] | None:
    """Rows of the log that it was trained on; None where that is not at hand (moved, or on another machine)."""
    try:
        log = Log.open(Path(str(bundle.metadata.run_config.get("log"))))
        return "/v1/rank", example_request(
            Log(log.path, bundle.schema), candidates=2
        )  # the log may have more than it reads
    except (LogError, SchemaError):
        return None
