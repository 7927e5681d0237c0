"""Serve a model over HTTP, whichever its bundle holds: python -m jobs.serve [--model models:/ranker@serving | runs/first/bundle].
Or a retriever and two rankers one after the other: python -m jobs.serve cascade (see ``jobs.serve_cascade``).

Follows an alias: when models:/ranker@serving comes to mean another version, that one is loaded without a dropped request.
Ends with Ctrl-C.
"""

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, cast

from jobs.command_line import read
from rayrec.bundle import bundle_kind
from rayrec.errors import told
from rayrec.families.table import Family, family_of
from rayrec.registry import Registry, ResolvedModel, resolve_model
from rayrec.typed_json import ConfigError
from serve_apps.deploying import check_address, connect_to_serve, serving
from serve_apps.example_request import curl_command
from serve_apps.service.access import token_sha256
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import VersionError, refusing_version

MODEL = "models:/ranker@serving"
L = TypeVar("L", bound=ServiceLimits)


@dataclass(frozen=True)
class Serve(Generic[L]):
    """Serve a model of one family."""

    service: L
    """Limits and size of the family's application."""
    model: str = MODEL
    """models:/NAME@ALIAS, models:/NAME/VERSION, or a bundle folder."""
    host: str = "127.0.0.1"
    """Beyond loopback only with a token in $RAYREC_TOKEN."""
    port: int = 8000
    """To listen on."""
    follow_s: float = 5.0
    """How often the reference is looked up again, in seconds."""


class Application(Protocol):
    """What a module of ``serve_apps`` is to this job: its limits, and a request to try of a bundle (path and body), if any."""

    SERVICE: type[ServiceLimits]

    def example(self, bundle: Any) -> tuple[str, dict[str, Any]] | None: ...


def application_of(family: Family) -> Application:
    """Raises ConfigError for a family that is not served."""
    if family.service_path is None:
        raise ConfigError(f"a {family.name} is not served over HTTP")
    found: Application = cast(Application, import_module(family.service_path))
    return found


def run(command: Serve[Any], stop: threading.Event, connected: Callable[[], None] = lambda: None) -> None:
    """Serve until ``stop`` is set. connected: called once Ray is there, whose own signal handlers are set by then."""
    check_address(command.service, command.host, command.port)
    with refusing_version(command.model):
        resolved = resolve_model(command.model)
        family = family_of(bundle_kind(resolved.path))
        bundle = family.load_bundle(resolved.path)
    application = application_of(family)
    connect_to_serve()
    connected()
    with serving(command.service, command.host, command.port) as deployed:
        deployed.deploy(reference_to(resolved))
        print(f"serving {resolved.name}/{resolved.version} at {deployed.url}, try:", flush=True)
        print(f"  {try_line(deployed.url, application.example(bundle))}", flush=True)
        followed, told = FollowedModel(command.model, resolved, family.load_bundle), ""
        while not stop.wait(command.follow_s):
            problem = followed.look(deployed)
            if problem and problem != told:
                print(problem, file=sys.stderr, flush=True)
            told = problem


def reference_to(resolved: ResolvedModel) -> ModelReference:
    """By folder: replicas need not ask the registry again."""
    return ModelReference(str(resolved.path), resolved.name, resolved.version)


def try_line(url: str, request: tuple[str, dict[str, Any]] | None) -> str:
    """A command to paste: the example request, or what the service is where there is none."""
    token = token_sha256() is not None
    if request is None:
        return curl_command(f"{url}/v1/model", token=token)
    path, body = request
    return curl_command(f"{url}{path}", body, token=token)


def load_any(folder: Path) -> object:
    """A bundle of whatever family. Raises what the family's loader raises, ConfigError for a family that there is not."""
    loaded: object = family_of(bundle_kind(folder)).load_bundle(folder)
    return loaded


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
    load: Callable[[Path], object] = load_any
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

    def listen() -> None:
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)

    with told():
        if sys.argv[1:2] == ["cascade"]:
            from jobs.serve_cascade import ServeCascade, run_cascade

            cascade = read(ServeCascade, arguments=sys.argv[2:], prog="jobs.serve cascade")
            listen()
            run_cascade(cascade, stop, listen)
            return
        kind: Any = Serve[limits_of(sys.argv[1:])]  # type: ignore[misc]
        command: Serve[Any] = read(kind, description=__doc__)
        listen()
        run(command, stop, listen)


def limits_of(arguments: Sequence[str]) -> type[ServiceLimits]:
    """The limits that the command line may set: those of the family of ``--model``. With --help alone, what all have."""
    named = [value for option, value in pairwise(arguments) if option == "--model"]
    named += [argument.removeprefix("--model=") for argument in arguments if argument.startswith("--model=")]
    if not named and {"-h", "--help"} & set(arguments):
        return ServiceLimits
    with refusing_version(named[-1] if named else MODEL):
        kind = bundle_kind(resolve_model(named[-1] if named else MODEL).path)
    return application_of(family_of(kind)).SERVICE


if __name__ == "__main__":
    main()
