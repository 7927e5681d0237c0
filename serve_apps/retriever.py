"""The retriever as a Ray Serve application: ``serve deploy serve_apps/retriever.yaml``.

The model is the deployment's ``user_config``, as the ranker's is: a changed one takes over between two batches. Items added by
``POST /v1/items`` go to a journal that the replicas of a machine share; each looks into it before it answers.
"""

import asyncio
import logging
import os
import tempfile
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from rayrec.bundle import BundleError
from rayrec.retrieval.index import IndexConfig
from rayrec.typed_json import from_plain, to_plain
from serve_apps.access import token_sha256
from serve_apps.ranking_request import RequestError
from serve_apps.retrieval_api import build_retrieval_app
from serve_apps.served_ranker import ModelReference
from serve_apps.served_retriever import (
    NewItem,
    Retrieved,
    RetrieveRequest,
    ServedRetriever,
    load_served_retriever,
)
from serve_apps.serving_metrics import FOLDER_VARIABLE, ServingMetrics

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class RetrieverService:
    """Limits and size of the service; the ``args`` of the application in a config file.

    replicas: processes that answer. max_batch: requests of one forward pass. beams: least width of the beam search.
    max_running, max_waiting, retry_after_s, token_sha256, metrics_folder: as the ranker's.
    items_folder: where added items are kept; default: a new folder among temporary files. max_added: how many a version takes.
    """

    replicas: int = 2
    max_body_bytes: int = 256 * 1024
    max_batch: int = 64
    beams: int = 20
    max_added: int = 10_000
    index: IndexConfig = field(default_factory=IndexConfig)
    max_running: int = 64
    max_waiting: int = 256
    retry_after_s: int = 1
    token_sha256: str | None = None
    metrics_folder: str | None = None
    items_folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("replicas", "max_body_bytes", "max_batch", "beams", "max_added", "max_running", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class _Waiting:
    """A request and the version that was in force when it came."""

    retriever: ServedRetriever
    request: RetrieveRequest


@serve.deployment
@serve.ingress()
class Retriever:
    """One replica: parses and answers in its event loop, runs the model and takes in new items in one thread beside it, and reads
    their text in another: its encoder is loaded by the first item."""

    def __init__(self, service: RetrieverService) -> None:
        self._service = service
        self._retriever: ServedRetriever | None = None
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._text_thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        if FOLDER_VARIABLE in os.environ:
            Path(os.environ[FOLDER_VARIABLE]).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._metrics = ServingMetrics()
        self._retrieve.set_max_batch_size(service.max_batch)  # type: ignore[attr-defined]

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_retrieval_app(
            self,
            self._metrics,
            max_body_bytes=self._service.max_body_bytes,
            token_sha256=self._service.token_sha256,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the version that ``user_config`` (a ModelReference) names and put it in force.

        A first version that cannot be loaded fails the deployment; a later one leaves the version in force.
        """
        service = self._service
        assert service.items_folder is not None
        try:
            reference = from_plain(ModelReference, user_config, "user_config")
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(
                None, load_served_retriever, reference, Path(service.items_folder), service.index, service.beams,
                service.max_added,
            )  # fmt: skip
        except (BundleError, ValueError) as error:
            if self._retriever is None:
                raise
            self._metrics.load_failures.inc()
            logger.error(f"{user_config} was not loaded, {self._retriever.label} stays in force: {error}")
            return
        if self._retriever is not None:
            self._metrics.model.labels(self._retriever.label).set(0)
        self._metrics.model.labels(loaded.label).set(1)
        self._retriever = loaded

    @property
    def current(self) -> ServedRetriever:
        assert self._retriever is not None  # Serve configures a replica before it gets requests
        return self._retriever

    async def retrieve(self, retriever: ServedRetriever, request: RetrieveRequest) -> Retrieved:
        answer = await self._retrieve(_Waiting(retriever, request))
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def add(self, retriever: ServedRetriever, item: NewItem) -> Mapping[str, Any]:
        loop = asyncio.get_running_loop()
        embedding = await loop.run_in_executor(self._text_thread, retriever.embed, item)
        return await loop.run_in_executor(self._thread, retriever.add, item, embedding)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def _retrieve(self, batch: list[_Waiting]) -> list[Retrieved | RequestError]:
        """All requests that came in during the last forward pass."""
        self._metrics.batch.observe(len(batch))
        return await asyncio.get_running_loop().run_in_executor(self._thread, _retrieve_all, batch)


def _retrieve_all(batch: list[_Waiting]) -> list[Retrieved | RequestError]:
    """Answers in order; one call for each version, of which there are two only during a change."""
    answers: dict[int, Retrieved | RequestError] = {}
    for retriever in {id(waiting.retriever): waiting.retriever for waiting in batch}.values():
        rows = [i for i, waiting in enumerate(batch) if waiting.retriever is retriever]
        answers |= zip(rows, retriever.retrieve([batch[i].request for i in rows]), strict=True)
    return [answers[i] for i in range(len(batch))]


def build(args: dict[str, Any]) -> serve.Application:
    """The application; ``args``: fields of RetrieverService. What it serves is set by ``user_config``."""
    service = from_plain(RetrieverService, args, "args of the retriever application")
    mark, temporary = uuid.uuid4().hex, Path(tempfile.gettempdir())
    metrics = service.metrics_folder or str(temporary / f"rayrec-metrics-{mark}")
    items = service.items_folder or str(temporary / f"rayrec-items-{mark}")
    token = service.token_sha256 or token_sha256()
    service = from_plain(
        RetrieverService,
        {**to_plain(service), "token_sha256": token, "metrics_folder": metrics, "items_folder": items},
    )
    environment = {
        FOLDER_VARIABLE: metrics,
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the model has its own thread: one hop less
    }
    return Retriever.options(  # type: ignore[attr-defined]
        num_replicas=service.replicas,
        max_ongoing_requests=service.max_running,
        max_queued_requests=service.max_waiting,
        backpressure_config=BackpressureConfig(retry_after_s=service.retry_after_s),
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": environment}},
        graceful_shutdown_timeout_s=10,
    ).bind(service)
