"""What all served applications share: a replica that holds one version, takes over another, and answers in batches.

An application is its request, its answer and its model: a subclass of ``Replica`` (with ``serve.deployment`` and
``serve.ingress()`` on it) that says how a version is loaded and asked, an app of ``service_api.service_app`` with its own routes,
and ``build``. The model is the deployment's ``user_config``: a changed one is loaded beside the old one and takes over between
two batches, without a restart and without a dropped request.
"""

import asyncio
import logging
import os
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from rayrec.typed_json import from_plain
from serve_apps.access import token_sha256
from serve_apps.batching import Batches
from serve_apps.limits import ServiceLimits
from serve_apps.model_reference import ModelReference
from serve_apps.refusals import RequestError, VersionError, refusing_version
from serve_apps.service_api import ServedVersion
from serve_apps.serving_metrics import FOLDER_VARIABLE, ServingMetrics

logger = logging.getLogger("ray.serve")
_CONNECTIONS = 4096  # of a replica
Served = TypeVar("Served", bound=ServedVersion)
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


L = TypeVar("L", bound=ServiceLimits)


class Replica(Generic[L, Served, Asked, Answer]):
    """One replica: parses and answers in its event loop, runs the model in one thread beside it.

    A subclass gives the five things below; ``at_once`` as in ``Batches``.
    """

    at_once: ClassVar[int] = 0

    def load(self, reference: ModelReference) -> Served:
        """A version that can be asked. What it raises leaves the version in force."""
        raise NotImplementedError

    def answer(self, served: Served, requests: Sequence[Asked]) -> Sequence[Answer | RequestError]:
        """An answer or what is wrong, for each request."""
        raise NotImplementedError

    def weight(self, request: Asked) -> int:
        """What a request counts in a batch."""
        return 1

    @property
    def max_batch(self) -> int:
        """Weight of a batch of more than one request."""
        raise NotImplementedError

    def __serve_build_asgi_app__(self) -> FastAPI:
        raise NotImplementedError

    def __init__(self, limits: L) -> None:
        self.limits = limits
        self._served: Served | None = None
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        torch.set_num_threads(1)
        with suppress(OSError, KeyError):  # a full disk ends no service
            Path(os.environ[FOLDER_VARIABLE]).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.metrics = ServingMetrics()
        self._batches: Batches[tuple[Served, Asked], Answer] = Batches(
            self._answer_all,
            self.thread,
            weight=lambda asked: self.weight(asked[1]),
            most=self.max_batch,
            at_once=self.at_once,
        )

    @property
    def current(self) -> Served:
        assert self._served is not None  # Serve configures a replica before it gets requests
        return self._served

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the version that ``user_config`` (a ModelReference) names and put it in force.

        A first version that cannot be loaded fails the deployment. A later one, whatever is wrong with it, leaves the version in
        force, which is told in the log and counted in the metrics.
        """
        try:
            with refusing_version(str(user_config.get("model"))):
                reference = from_plain(ModelReference, user_config, "user_config")
                loaded = await asyncio.get_running_loop().run_in_executor(None, self.load, reference)
        except VersionError as error:
            if self._served is None:
                raise
            await self.count_refused_version()
            logger.error(f"{user_config} was not loaded, {self._served.label} stays in force: {error}")
            return
        if self._served is not None:
            self.metrics.model.labels(self._served.label).set(0)
        self.metrics.model.labels(loaded.label).set(1)
        self._served = loaded

    async def count_refused_version(self) -> None:
        """Called from outside too: by who refused a version before any replica heard of it."""
        self.metrics.load_failures.inc()

    async def ask(self, served: Served, request: Asked) -> Answer:
        """The answer of the version that ``request`` was checked for. Raises RequestError."""
        return await self._batches.ask((served, request))

    def _answer_all(self, batch: Sequence[tuple[Served, Asked]]) -> list[Answer | RequestError]:
        """In order; one call for each version, of which there are two only during a change."""
        self.metrics.batch.observe(len(batch))
        answers: dict[int, Answer | RequestError] = {}
        for served in {id(served): served for served, _ in batch}.values():
            rows = [i for i, (wanted, _) in enumerate(batch) if wanted is served]
            answers |= zip(rows, self.answer(served, [batch[i][1] for i in rows]), strict=True)
        return [answers[i] for i in range(len(batch))]


def application(deployment: Any, limits_type: type[L], args: dict[str, Any]) -> serve.Application:
    """An application; ``args``: fields of its limits. What it serves is set by ``user_config``."""
    limits = from_plain(limits_type, args, f"args of the {limits_type.kind} application")
    limits = replace(limits, token_sha256=limits.token_sha256 or token_sha256())
    kept = limits.in_folder(Path(tempfile.gettempdir()) / f"rayrec-{limits.kind}-{uuid.uuid4().hex}")
    environment = {
        FOLDER_VARIABLE: kept.metrics_folder,
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the model has its own thread: one hop less
    }
    bound: serve.Application = deployment.options(
        num_replicas=kept.replicas,
        max_ongoing_requests=_CONNECTIONS,  # the replica itself counts requests, once their body is there
        max_queued_requests=kept.max_waiting,
        backpressure_config=BackpressureConfig(retry_after_s=kept.retry_after_s),
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": environment}},
        graceful_shutdown_timeout_s=10,
    ).bind(kept)
    return bound
