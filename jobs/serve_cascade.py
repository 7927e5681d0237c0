"""Serve a retriever, an early and a late ranker as one application: python -m jobs.serve cascade [--retriever ... --early ...].

Each reference is followed: when models:/late@serving comes to mean another version, that one is loaded beside the old one, and
checked against the others, without a dropped request. Ends with Ctrl-C.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from jobs.serve import FollowedModel, reference_to, try_line
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.retriever.bundle import load_retriever
from rayrec.registry import resolve_model
from serve_apps.cascade import CascadeService, example
from serve_apps.cascade_versions import CascadeReferences
from serve_apps.deploying import DeployedService, connect_to_serve, serving
from serve_apps.model_reference import ModelReference
from serve_apps.refusals import refusing_version
from serve_apps.served_cascade import load_served_cascade


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


@dataclass(frozen=True)
class Part:
    """One of the four, for ``FollowedModel``."""

    running: Running
    name: str

    def deploy(self, reference: ModelReference) -> None:
        """Raises DeploymentError."""
        changed = replace(self.running.references, **{self.name: reference})
        self.running.deployed.deploy(changed)
        self.running.references = changed

    def count_refused_version(self) -> None:
        self.running.deployed.count_refused_version()

    def load(self, folder: Path) -> object:
        """What is wrong with a version is told before any replica hears of it. Raises BundleError, ItemFeaturesError."""
        if self.name == "retriever":
            return load_retriever(folder)
        if self.name != "features":
            load_bundle(folder)
        service = self.running.deployed.service
        assert isinstance(service, CascadeService)
        changed = replace(self.running.references, **{self.name: ModelReference(str(folder))})
        return load_served_cascade(changed, service.mapped, service.logged_as)


def run_cascade(command: ServeCascade, stop: threading.Event, connected: Callable[[], None] = lambda: None) -> None:
    """Serve until ``stop`` is set. connected: called once Ray is there, whose own signal handlers are set by then."""
    asked = {part.name: getattr(command, part.name) for part in fields(CascadeReferences)}
    resolved = {}
    for name, model in asked.items():
        with refusing_version(model):
            resolved[name] = resolve_model(model)
    references = CascadeReferences(**{name: reference_to(found) for name, found in resolved.items()})
    connect_to_serve()
    connected()
    with serving(command.service, command.host, command.port) as deployed:
        service = deployed.service
        assert isinstance(service, CascadeService)
        with refusing_version("the cascade"):
            served = load_served_cascade(references, service.mapped, service.logged_as)
        deployed.deploy(references)
        print(f"serving {references.label} at {deployed.url}, try:", flush=True)
        print(f"  {try_line(deployed.url, example(references, served))}", flush=True)
        running = Running(deployed, references)
        followed = {name: FollowedModel(asked[name], resolved[name], running.part(name).load) for name in asked}
        told = dict.fromkeys(asked, "")
        while not stop.wait(command.follow_s):
            for name, part in followed.items():
                problem = part.look(running.part(name))
                if problem and problem != told[name]:
                    print(problem, file=sys.stderr, flush=True)
                told[name] = problem
