"""Puts a service on the Ray that this process is connected to, as ``serve deploy`` does it, without a dashboard."""

import errno
import logging
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from rayrec.errors import UserError
from rayrec.runs.cluster import connect, joined_cluster
from rayrec.typed_json import ConfigError
from serve_apps.cascade.stages import StageError
from serve_apps.cascade.traffic_keeper import end_traffic_keeper
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.items.keeper import end_keeper
from serve_apps.serve_config import application_config
from serve_apps.service.access import TOKEN_VARIABLE, is_loopback, token_sha256
from serve_apps.service.front import READY_S, listen_options, prepare_front
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import one_line

_LOGGING = {"log_level": "ERROR", "enable_access_log": False}  # requests are counted in the metrics
_SHUTDOWN_S = 30


class DeploymentError(UserError):
    """A service that did not come up; says why."""


@dataclass(frozen=True)
class DeployedService:
    """A running service. ``url``: of its root."""

    url: str
    service: ServiceLimits

    def deploy(self, reference: ModelReference | CascadeReferences, timeout_s: float = 120) -> None:
        """Serve this version; returns when all replicas do. Raises DeploymentError, also when they refused it and keep the old.

        A running service loads it beside the old one and drops no request; only the first call starts replicas.
        """
        kind = self.service.kind
        wanted = application_config(self.service, reference) | {"logging_config": _LOGGING}
        config = ServeDeploySchema.model_validate({"applications": [wanted]})
        client = _get_global_client()
        assert client is not None  # serving() has started Serve
        client.deploy_apps(config)
        deadline = time.monotonic() + timeout_s
        while True:
            # serve.status() would pickle a router for each deployment at each call: a whole core while replicas start
            now = client.get_serve_status(kind)
            if now.app_status.status == ApplicationStatus.RUNNING:
                break
            if now.app_status.status == ApplicationStatus.DEPLOY_FAILED or time.monotonic() > deadline:
                reasons = [now.app_status.message, *(d.message for d in now.deployment_statuses)]
                raise DeploymentError(
                    f"the service is {now.app_status.status.value}: {'; '.join(filter(None, reasons))}"
                )
            time.sleep(0.05)
        client.wait_for_proxies_serving()
        self._check_served(reference.label, deadline)
        if isinstance(reference, CascadeReferences):
            self._check_stages(reference, deadline)

    def count_refused_version(self) -> None:
        """In the metrics of one replica, and so of all. Never raises: telling of a refusal must not end the service."""
        with suppress(Exception):
            serve.get_app_handle(self.service.kind).count_refused_version.remote().result(timeout_s=10)

    def _check_stages(self, wanted: CascadeReferences, deadline: float) -> None:
        """Every replica of every stage tells what it serves; one that is just started again is waited for until the deadline."""
        handle = serve.get_app_handle(self.service.kind)
        while True:
            try:
                found: dict[str, dict[str, int]] = handle.stages.remote().result(timeout_s=30)
                break
            except (StageError, ray.exceptions.RayError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise DeploymentError(f"a stage does not tell what it serves: {one_line(error)}") from None
                time.sleep(0.5)
        for stage, labels in found.items():
            label = wanted.stage_label(stage)
            if label and labels.keys() != {label}:
                others = ", ".join(sorted(labels.keys() - {label}))
                raise DeploymentError(
                    f"replicas of the stage {stage!r} refused {label} and go on with {others}; their logs say why"
                )

    def _check_served(self, wanted: str | None, deadline: float) -> None:
        """Ask until, most likely, every replica has told what it serves; busy ones are asked again until the deadline."""
        answers = 4 * self.service.replicas
        with httpx.Client(trust_env=False, timeout=30) as client:  # a proxy for the web knows nothing of this service
            while answers:
                try:
                    served = client.get(f"{self.url}/healthz").raise_for_status().json()["model"]
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    if time.monotonic() > deadline:
                        raise DeploymentError(f"the service does not tell what it serves: {error!r}") from None
                    time.sleep(0.2)
                    continue
                if wanted not in (None, served):  # only the replicas' logs know why
                    raise DeploymentError(f"replicas refused {wanted} and go on with {served}; their logs say why")
                answers -= 1


@contextmanager
def serving(service: ServiceLimits, host: str, port: int) -> Iterator[DeployedService]:
    """Serve's proxy on ``host:port`` while the context is open. Raises ConfigError for an open host without a token, and for an
    address that cannot be had."""
    check_address(service, host, port)
    _start_serve(host, port)
    with tempfile.TemporaryDirectory(prefix="rayrec-serving-", ignore_cleanup_errors=True) as folder:
        own = replace(service, token_sha256=_token_of(service)).in_folder(Path(folder))
        try:
            yield DeployedService(f"http://{f'[{host}]' if ':' in host else host}:{port}", own)
        finally:
            _shut_down()
            if own.kept_items is not None:
                end_keeper(own.kept_items)
            if own.traffic_folder is not None:
                end_traffic_keeper(own.traffic_folder)


def check_address(service: ServiceLimits, host: str, port: int) -> None:
    """What ``serving`` refuses, before anything is connected or loaded. Raises ConfigError."""
    if _token_of(service) is None and not is_loopback(host):
        raise ConfigError(
            f"host {host} can be reached from other machines: set {TOKEN_VARIABLE}, or serve on 127.0.0.1"
        )
    if not 1 <= port <= 65_535:
        raise ConfigError(f"port must lie in 1..65535, not {port}")
    if not joined_cluster():
        _refuse_taken(host, port)


def _token_of(service: ServiceLimits) -> str | None:
    return service.token_sha256 or token_sha256()


def _refuse_taken(host: str, port: int) -> None:
    """HAProxy and Serve's proxy would share a port with whoever else shares it, and each get a part of the requests. Waits a
    little for a service that is just ending. Raises ConfigError."""
    deadline = time.monotonic() + _SHUTDOWN_S / 3
    while True:
        try:
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"{host}:{port} cannot be listened on: {error.strerror}") from None
            if time.monotonic() > deadline:
                raise ConfigError(f"{host}:{port} is in use; end what listens there, or choose another port") from None
        time.sleep(0.2)


def connect_to_serve(*, num_cpus: int | None = None) -> None:
    """Like ``connect``; a Ray that is started for it has HAProxy before the replicas where that runs. Idempotent.

    A cluster of ``$RAY_ADDRESS`` has its own settings, which say what stands there.
    """
    if not ray.is_initialized() and not joined_cluster():
        prepare_front()
    connect(num_cpus=num_cpus)


def _start_serve(host: str, port: int) -> None:
    """Raises DeploymentError when Serve does not come up at the second attempt either."""
    logging.getLogger("ray.serve").setLevel(
        logging.WARNING
    )  # of this process: "Started Serve in namespace", and the like
    for last in (False, True):
        try:
            serve.start(http_options=listen_options(host, port), logging_config=_LOGGING)
            return
        except Exception as error:  # Ray tells a proxy that is not ready in time by several errors
            with suppress(Exception):
                _shut_down()
            if last:
                raise DeploymentError(
                    f"Ray Serve does not come up on {host}:{port} within {READY_S} s: {one_line(error)}"
                ) from error


def _shut_down() -> None:
    """``serve.shutdown``, but a controller that is dead already is not asked again to end, which Ray would tell the user."""
    client = _get_global_client()
    if client is not None and ray.is_initialized():
        ended = client._controller.graceful_shutdown.options(max_task_retries=0)
        with suppress(ray.exceptions.RayActorError, TimeoutError):
            ray.get(ended.remote(), timeout=_SHUTDOWN_S)
        client._shutdown = True
    serve.shutdown()
