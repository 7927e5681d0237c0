"""The ranker as a Ray Serve application: ``serve deploy serve_apps/ranker.yaml``, or ``python -m jobs.serve``.

The model is the deployment's ``user_config``: a changed one is loaded beside the old one and takes over between two batches,
without a restart and without a dropped request.
"""

import asyncio
import logging
import os
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from rayrec.bundle import BundleError
from rayrec.typed_json import from_plain, to_plain
from serve_apps.access import token_sha256
from serve_apps.ranking_api import build_app
from serve_apps.ranking_request import RankRequest, RequestError
from serve_apps.served_ranker import ModelReference, Ranked, ServedRanker, load_ranker
from serve_apps.serving_metrics import FOLDER_VARIABLE, ServingMetrics

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class RankerService:
    """Limits and size of the service; the ``args`` of the application in a config file.

    replicas: processes that answer. max_candidates: of a request. max_body_bytes: of a request.
    max_batch_candidates: of one forward pass, over all requests in it; at least max_candidates.
    max_running: requests that a replica takes on at a time. max_waiting: further ones; beyond them 503.
    retry_after_s: in the Retry-After header of a 503.
    token_sha256: hex digest of the bearer token; default: of $RAYREC_TOKEN where the application is built.
    metrics_folder: where replicas of a machine share their metrics; default: a new one among temporary files.
    """

    replicas: int = 2
    max_candidates: int = 1000
    max_body_bytes: int = 4 * 1024 * 1024
    max_batch_candidates: int = 4096
    max_running: int = 64
    max_waiting: int = 256
    retry_after_s: int = 1
    token_sha256: str | None = None
    metrics_folder: str | None = None

    def __post_init__(self) -> None:
        counts = ("replicas", "max_candidates", "max_body_bytes", "max_batch_candidates", "max_running", "max_waiting")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_batch_candidates < self.max_candidates:
            raise ValueError("max_batch_candidates must be at least max_candidates")


@dataclass(frozen=True)
class _Waiting:
    """A request and the version that its columns were checked for."""

    ranker: ServedRanker
    request: RankRequest


def _candidates(batch: list[_Waiting]) -> int:
    return sum(waiting.request.candidates for waiting in batch)


@serve.deployment
@serve.ingress()
class Ranker:
    """One replica: parses and answers in its event loop, encodes and runs the model in one thread beside it."""

    def __init__(self, service: RankerService) -> None:
        self._service = service
        self._ranker: ServedRanker | None = None
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        if FOLDER_VARIABLE in os.environ:
            Path(os.environ[FOLDER_VARIABLE]).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._metrics = ServingMetrics()
        self._rank.set_max_batch_size(service.max_batch_candidates)  # type: ignore[attr-defined]

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(
            self,
            self._metrics,
            max_body_bytes=self._service.max_body_bytes,
            token_sha256=self._service.token_sha256,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the version that ``user_config`` (a ModelReference) names and put it in force.

        A first version that cannot be loaded fails the deployment. A later one leaves the version in force, which is told in the
        log and counted in the metrics.
        """
        try:
            reference = from_plain(ModelReference, user_config, "user_config")
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(None, load_ranker, reference, self._service.max_candidates)
        except (BundleError, ValueError) as error:
            if self._ranker is None:
                raise
            self._metrics.load_failures.inc()
            logger.error(f"{user_config} was not loaded, {self._ranker.label} stays in force: {error}")
            return
        if self._ranker is not None:
            self._metrics.model.labels(self._ranker.label).set(0)
        self._metrics.model.labels(loaded.label).set(1)
        self._ranker = loaded

    @property
    def current(self) -> ServedRanker:
        assert self._ranker is not None  # Serve configures a replica before it gets requests
        return self._ranker

    async def rank(self, ranker: ServedRanker, request: RankRequest) -> Ranked:
        answer = await self._rank(_Waiting(ranker, request))
        if isinstance(answer, RequestError):
            raise answer
        return answer

    @serve.batch(max_batch_size=4096, batch_wait_timeout_s=0.0, batch_size_fn=_candidates)
    async def _rank(self, batch: list[_Waiting]) -> list[Ranked | RequestError]:
        """All requests that came in during the last forward pass."""
        self._metrics.batch.observe(len(batch))
        return await asyncio.get_running_loop().run_in_executor(self._thread, _rank_all, batch)


def _rank_all(batch: list[_Waiting]) -> list[Ranked | RequestError]:
    """Answers in order; one forward pass for each version, of which there are two only during a change."""
    answers: dict[int, Ranked | RequestError] = {}
    for ranker in {id(waiting.ranker): waiting.ranker for waiting in batch}.values():
        rows = [i for i, waiting in enumerate(batch) if waiting.ranker is ranker]
        answers |= zip(rows, ranker.rank([batch[i].request for i in rows]), strict=True)
    return [answers[i] for i in range(len(batch))]


def build(args: dict[str, Any]) -> serve.Application:
    """The application; ``args``: fields of RankerService. What it serves is set by ``user_config``."""
    service = from_plain(RankerService, args, "args of the ranker application")
    folder = service.metrics_folder or str(Path(tempfile.gettempdir()) / f"rayrec-metrics-{uuid.uuid4().hex}")
    service = from_plain(
        RankerService,
        {**to_plain(service), "token_sha256": service.token_sha256 or token_sha256(), "metrics_folder": folder},
    )
    environment = {
        FOLDER_VARIABLE: folder,
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the model has its own thread: one hop less
    }
    return Ranker.options(  # type: ignore[attr-defined]
        num_replicas=service.replicas,
        max_ongoing_requests=service.max_running,
        max_queued_requests=service.max_waiting,
        backpressure_config=BackpressureConfig(retry_after_s=service.retry_after_s),
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": environment}},
        graceful_shutdown_timeout_s=10,
    ).bind(service)
