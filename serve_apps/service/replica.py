"""What all served applications share: a replica that holds one version, takes over another, and answers in batches.

An application is its request, its answer and its model: a subclass of ``Replica`` (with ``serve.deployment`` and
``serve.ingress()`` on it) that says how a version is loaded and asked, an app of ``service.api.service_app`` with its own routes,
and ``build``. The model is the deployment's ``user_config``: a changed one is loaded beside the old one and takes over between
two batches, without a restart and without a dropped request.
"""

import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from ray import serve
from ray.serve.config import BackpressureConfig

from rayrec.typed_json import from_plain
from serve_apps.service.access import token_sha256
from serve_apps.service.api import ServedVersion
from serve_apps.service.batching import Batches
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.metrics import FOLDER_VARIABLE
from serve_apps.service.refusals import RequestError
from serve_apps.service.version_holder import VersionHolder

_CONNECTIONS = 4096  # of a replica
_ASKED_AT_ONCE = 256  # of a replica that is asked by handle; what waits there forms its batches
Served = TypeVar("Served", bound=ServedVersion)
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


L = TypeVar("L", bound=ServiceLimits)
Size = TypeVar("Size")


class Replica(VersionHolder[Size, Served], Generic[Size, Served, Asked, Answer]):
    """One replica that answers in batches: parses and answers in its event loop, runs the model in one thread beside it.

    A subclass gives ``load`` and the things below; ``at_once`` as in ``Batches``.
    """

    at_once: ClassVar[int] = 0

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

    def count_batch(self, requests: int) -> None:
        """In the metrics."""
        self.metrics.batch.observe(requests)

    def count_wait(self, seconds: float) -> None:
        """Of one request for its batch, in the metrics."""
        self.metrics.queue_seconds.observe(seconds)

    def __init__(self, limits: Size) -> None:
        super().__init__(limits)
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._batches: Batches[tuple[Served, Asked], Answer] = Batches(
            self._answer_all,
            self.thread,
            weight=lambda asked: self.weight(asked[1]),
            most=self.max_batch,
            at_once=self.at_once,
            waited=self.count_wait,
        )

    async def ask(self, served: Served, request: Asked) -> Answer:
        """The answer of the version that ``request`` was checked for. Raises RequestError."""
        return await self._batches.ask((served, request))

    def _answer_all(self, batch: Sequence[tuple[Served, Asked]]) -> list[Answer | RequestError]:
        """In order; one call for each version, of which there are two only during a change."""
        self.count_batch(len(batch))
        answers: dict[int, Answer | RequestError] = {}
        for served in {id(served): served for served, _ in batch}.values():
            rows = [i for i, (wanted, _) in enumerate(batch) if wanted is served]
            answers |= zip(rows, self.answer(served, [batch[i][1] for i in rows]), strict=True)
        return [answers[i] for i in range(len(batch))]


class Sized(Protocol):
    """replicas: processes that answer. max_queued: requests that may wait for a place, at each asker."""

    @property
    def replicas(self) -> int: ...

    @property
    def max_queued(self) -> int: ...


def application(deployment: Any, limits_type: type[L], args: dict[str, Any]) -> serve.Application:
    """An application; ``args``: fields of its limits. What it serves is set by ``user_config``."""
    limits = prepared(limits_type, args)
    bound: serve.Application = ingress(deployment, limits, replica_environment(limits)).bind(limits)
    return bound


def prepared(limits_type: type[L], args: dict[str, Any]) -> L:
    """The limits that ``args`` give, with the token of this environment and folders for what is kept. Raises ConfigError."""
    limits = from_plain(limits_type, args, f"args of the {limits_type.kind} application")
    limits = replace(limits, token_sha256=limits.token_sha256 or token_sha256())
    kept = limits.in_folder(Path(tempfile.gettempdir()) / f"rayrec-{limits.kind}-{uuid.uuid4().hex}")
    assert isinstance(kept, limits_type)
    return kept


def replica_environment(limits: ServiceLimits) -> dict[str, str]:
    """Variables of the replicas' processes."""
    assert limits.metrics_folder is not None  # prepared
    return {
        FOLDER_VARIABLE: limits.metrics_folder,
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the model has its own thread: one hop less
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",  # and two less on the way to another deployment
    }


def ingress(deployment: Any, limits: ServiceLimits, environment: dict[str, str]) -> Any:
    """The deployment that is reached over HTTP."""
    return deployment.options(
        num_replicas=limits.replicas,
        max_ongoing_requests=_CONNECTIONS,  # the replica itself counts requests, once their body is there
        max_queued_requests=limits.max_waiting,
        backpressure_config=BackpressureConfig(retry_after_s=limits.retry_after_s),
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": environment}},
        graceful_shutdown_timeout_s=10,
    )


def deployed_as(replica: type[Replica[Any, Any, Any, Any]], name: str, size: Sized, environment: dict[str, str]) -> Any:
    """A deployment that is asked by handle."""
    made: Any = serve.deployment(replica)
    return made.options(
        name=name,
        num_replicas=size.replicas,
        max_ongoing_requests=_ASKED_AT_ONCE,
        max_queued_requests=size.max_queued,
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": environment}},
        graceful_shutdown_timeout_s=10,
    )
