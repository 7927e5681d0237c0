"""Serve a ranker or a retriever over HTTP: python -m jobs.serve [--model models:/ranker@serving | --model runs/first/bundle].

Follows an alias: when models:/ranker@serving comes to mean another version, that one is loaded without a dropped request.
Ends with Ctrl-C.
"""

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

import tyro

from jobs.example_request import curl_command, example_request
from rayrec.bundle import bundle_kind
from rayrec.data.log import Log, LogError
from rayrec.data.log.schema import SchemaError
from rayrec.errors import told
from rayrec.families.ranker.bundle import Bundle, load_bundle
from rayrec.families.retriever.bundle import RetrieverBundle, load_retriever
from rayrec.registry import Registry, ResolvedModel, resolve_model
from serve_apps.access import token_sha256
from serve_apps.deploying import connect_to_serve, serving
from serve_apps.limits import ServiceLimits
from serve_apps.model_reference import ModelReference
from serve_apps.ranker import RankerService
from serve_apps.refusals import VersionError, refusing_version
from serve_apps.retriever import RetrieverService


@dataclass(frozen=True)
class Serve:
    """Serve a ranker or a retriever, whichever the bundle holds.

    model: models:/NAME@ALIAS, models:/NAME/VERSION, or a bundle folder.
    host: beyond loopback only with a token in $RAYREC_TOKEN.
    follow_s: how often the reference is looked up again, in seconds.
    service: limits of a ranker. retriever: those of a retriever.
    """

    model: str = "models:/ranker@serving"
    host: str = "127.0.0.1"
    port: int = 8000
    follow_s: float = 5.0
    service: RankerService = field(default_factory=RankerService)
    retriever: RetrieverService = field(default_factory=RetrieverService)


def run(command: Serve, stop: threading.Event) -> None:
    """Serve until ``stop`` is set."""
    limits: ServiceLimits = command.service
    load: Callable[[Path], Bundle | RetrieverBundle] = load_bundle
    with refusing_version(command.model):
        resolved = resolve_model(command.model)
        if bundle_kind(resolved.path) == "retriever":
            limits, load = command.retriever, load_retriever
        bundle = load(resolved.path)
    connect_to_serve()
    with serving(limits, command.host, command.port) as deployed:
        deployed.deploy(reference_to(resolved))
        print(f"serving {resolved.name}/{resolved.version} at {deployed.url}, try:", flush=True)
        print(f"  {try_line(deployed.url, bundle)}", flush=True)
        followed, told = FollowedModel(command.model, resolved, load), ""
        while not stop.wait(command.follow_s):
            problem = followed.look(deployed)
            if problem and problem != told:
                print(problem, file=sys.stderr, flush=True)
            told = problem


def reference_to(resolved: ResolvedModel) -> ModelReference:
    """By folder: replicas need not ask the registry again."""
    return ModelReference(str(resolved.path), resolved.name, resolved.version)


def try_line(url: str, bundle: Bundle | RetrieverBundle) -> str:
    """A command to paste: a history of items, or rows of the log that the ranker was trained on, else what the service is."""
    token = token_sha256() is not None
    if isinstance(bundle, RetrieverBundle):
        return curl_command(f"{url}/v1/retrieve", {"history": list(bundle.names[:2]), "k": 5}, token=token)
    try:
        log = Log.open(Path(str(bundle.metadata.run_config.get("log"))))
        body = example_request(
            Log(log.path, bundle.schema), candidates=2
        )  # what the model reads may be less than the log has
    except (LogError, SchemaError):  # moved, or on another machine
        return curl_command(f"{url}/v1/model", token=token)
    return curl_command(f"{url}/v1/rank", body, token=token)


class Deploys(Protocol):
    """A service that can be told what to serve."""

    def deploy(self, reference: ModelReference) -> None:
        """Raises DeploymentError."""

    def count_refused_version(self) -> None:
        """In the service's own metrics; never raises."""


@dataclass
class FollowedModel:
    """What ``model`` means now is served; a version that cannot be served, for whatever reason, changes nothing.

    served: the version in force. load: reads a bundle of the served kind.
    refused: name and version of the last one that could not be served; it is not tried again before the reference has meant
    another one. told: what was wrong at the last look, "" for nothing.
    """

    model: str
    served: ResolvedModel
    load: Callable[[Path], object] = load_bundle
    refused: tuple[str, str] | None = None
    told: str = ""

    def look(self, deployed: Deploys) -> str:
        """Serve another version if the registry means one by now. Returns what is wrong, "" if nothing; counts it when it is new.

        A registry or store that cannot be reached is asked again by the next call.
        """
        if not self.model.startswith("models:"):
            return ""
        try:
            self._look(deployed)
        except VersionError as error:
            problem = f"{error}; {self.served.name}/{self.served.version} stays"
            if problem != self.told:
                deployed.count_refused_version()
            self.told = problem
        else:
            self.told = ""
        return self.told

    def _look(self, deployed: Deploys) -> None:
        """Raises VersionError, and nothing else."""
        with refusing_version(f"{self.model} is not loaded"):
            version = Registry().version_of(self.model)
            if version == self.refused:
                return
            self.refused = None
            if version == (self.served.name, self.served.version):
                return
            found = resolve_model(self.model)
        try:
            with refusing_version(f"{found.name}/{found.version} is not served"):
                self.load(found.path)
                try:
                    deployed.deploy(reference_to(found))
                except Exception:
                    with suppress(Exception):  # else the cluster goes on trying the refused version
                        deployed.deploy(reference_to(self.served))
                    raise
        except VersionError:
            self.refused = found.name, found.version
            raise
        self.served, self.refused = found, None
        print(f"serving {found.name}/{found.version} now", flush=True)


def main() -> None:
    stop = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        stop.set()

    command = tyro.cli(Serve, description=__doc__)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with told():
        run(command, stop)


if __name__ == "__main__":
    main()
