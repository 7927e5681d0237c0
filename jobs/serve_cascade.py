"""Serve a retriever, an early and a late ranker as one application: python -m jobs.serve cascade [--retriever ... --early ...].

Each reference is followed: when models:/late@serving comes to mean another version, that one is loaded beside the old one, and
checked against the others, without a dropped request. Ends with Ctrl-C.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.serve import FollowedModel, reference_to, try_line
from rayrec.errors import UserError
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.retriever.bundle import load_retriever
from rayrec.registry import resolve_model
from rayrec.typed_json import ConfigError, from_json
from serve_apps.cascade.application import CascadeService, example
from serve_apps.cascade.served import ServedCascade, load_served_cascade
from serve_apps.cascade.versions import PARTS, CascadeReferences, Experiment
from serve_apps.deploying import DeployedService, check_address, connect_to_serve, serving
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import one_line, refusing_version


@dataclass(frozen=True)
class ServeCascade:
    """Serve a retriever and two rankers one after the other, with a table of the items' features."""

    retriever: str = "models:/retriever@serving"
    """What finds candidates: models:/NAME@ALIAS, models:/NAME/VERSION, or a bundle folder; so the three others."""
    early: str = "models:/early@serving"
    """The ranker that cuts them."""
    late: str = "models:/late@serving"
    """The ranker that orders what is left."""
    features: str = "models:/item_features@serving"
    """The table of the items' features, of jobs.bundle_item_features."""
    experiment: Path | None = None
    """A JSON file of what is tried on users: arms and a shadow, see docs/traffic.md; looked at again like the references."""
    service: CascadeService = field(default_factory=CascadeService)
    """Limits and sizes."""
    host: str = "127.0.0.1"
    """Beyond loopback only with a token in $RAYREC_TOKEN."""
    port: int = 8000
    """To listen on."""
    follow_s: float = 5.0
    """How often the references are looked up again, in seconds."""


@dataclass
class Running:
    """The references in force of a deployed cascade; ``part`` of it is deployed like a model of its own."""

    deployed: DeployedService
    references: CascadeReferences

    def part(self, name: str) -> "Part":
        return Part(self, name)

    def with_part(self, name: str, reference: ModelReference) -> CascadeReferences:
        changed: dict[str, Any] = {name: reference}
        return replace(self.references, **changed)

    def load(self, changed: CascadeReferences) -> ServedCascade:
        """As far as can be told before any replica hears of it. Raises what is wrong."""
        service = self.deployed.service
        assert isinstance(service, CascadeService)
        service.check(changed)
        for stage in ("early", "late", "shadow"):
            for arm, reference in changed.rankers(stage).items():
                if arm or stage == "shadow":
                    load_bundle(Path(reference.resolve().model))
        return load_served_cascade(changed, service.mapped, service.logged_as)

    def deploy(self, changed: CascadeReferences) -> None:
        """Raises DeploymentError."""
        self.deployed.deploy(changed)
        self.references = changed


class ExperimentFile:
    """A file that says what is tried on users; a change of it is deployed, one that cannot be served changes nothing."""

    def __init__(self, path: Path) -> None:
        """Raises UserError."""
        self._path, self._text, self._told = path, b"", ""
        self.experiment = self._read()

    def look(self, running: Running) -> str:
        """Serve what it says by now. Returns what is wrong, "" if nothing; a text that was refused is not tried again."""
        try:
            if self._path.read_bytes() == self._text:
                return self._told
            experiment, self._told = self._read(), ""
            changed = replace(running.references, experiment=experiment)
            with refusing_version("the experiment is not served"):
                running.load(changed)
                try:
                    running.deploy(changed)
                except Exception:
                    with suppress(Exception):  # else the cluster goes on trying the refused one
                        running.deploy(running.references)
                    raise
            self.experiment = experiment
            print(f"the experiment is {experiment.name} now", flush=True)
        except (UserError, OSError) as error:
            self._told = f"{self._path}: the experiment stays as it was: {one_line(error)}"
            running.deployed.count_refused_version()
        return self._told

    def _read(self) -> Experiment:
        """With the versions that its references mean now, which an experiment stays with. Raises UserError."""
        try:
            self._text = self._path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror}") from None
        found = from_json(Experiment, self._text, str(self._path))
        with refusing_version(str(self._path)):
            return found.resolve()


@dataclass(frozen=True)
class Part:
    """One of the four, for ``FollowedModel``."""

    running: Running
    name: str

    def deploy(self, reference: ModelReference) -> None:
        """Raises DeploymentError."""
        self.running.deploy(self.running.with_part(self.name, reference))

    def count_refused_version(self) -> None:
        self.running.deployed.count_refused_version()

    def load(self, folder: Path) -> object:
        """What is wrong with a version is told before any replica hears of it. Raises BundleError, ItemFeaturesError."""
        if self.name == "retriever":
            return load_retriever(folder)
        if self.name != "features":
            load_bundle(folder)
        return self.running.load(self.running.with_part(self.name, ModelReference(str(folder))))


def run_cascade(command: ServeCascade, stop: threading.Event, connected: Callable[[], None] = lambda: None) -> None:
    """Serve until ``stop`` is set. connected: called once Ray is there, whose own signal handlers are set by then."""
    check_address(command.service, command.host, command.port)
    asked = {name: getattr(command, name) for name in PARTS}
    tried = None if command.experiment is None else ExperimentFile(command.experiment)
    resolved = {}
    for name, model in asked.items():
        with refusing_version(model):
            resolved[name] = resolve_model(model)
    parts = {name: reference_to(found) for name, found in resolved.items()}
    references = CascadeReferences(**parts, experiment=None if tried is None else tried.experiment)
    connect_to_serve()
    connected()
    with serving(command.service, command.host, command.port) as deployed:
        running = Running(deployed, references)
        with refusing_version("the cascade"):
            served = running.load(references)
        deployed.deploy(references)
        print(f"serving {references.label} at {deployed.url}, try:", flush=True)
        print(f"  {try_line(deployed.url, example(references, served))}", flush=True)
        followed = {name: FollowedModel(asked[name], resolved[name], running.part(name).load) for name in asked}
        told = dict.fromkeys(asked, "")
        while not stop.wait(command.follow_s):
            for name, part in followed.items():
                problem = part.look(running.part(name))
                if problem and problem != told[name]:
                    print(problem, file=sys.stderr, flush=True)
                told[name] = problem
            problem = "" if tried is None else tried.look(running)
            if problem and problem != told.get("experiment"):
                print(problem, file=sys.stderr, flush=True)
            told["experiment"] = problem
