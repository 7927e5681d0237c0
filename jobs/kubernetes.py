"""Write a manifest for the KubeRay operator of a command that runs here:

    python -m jobs.kubernetes job --name first --out first.yaml --image IMAGE:TAG --claim CLAIM -- python -m jobs.train ...
    python -m jobs.kubernetes service --name ranker --out ranker.yaml --image IMAGE:TAG --claim CLAIM -- python -m jobs.serve ...

The command behind ``--`` is read by its own job's parser: what would be refused here is refused, and nothing is written.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from jobs.command_line import command_of, read_one_of
from jobs.kuberay import ClusterOptions, JobOptions, ray_job, ray_service
from jobs.serve import Serve
from jobs.serve_cascade import ServeCascade
from rayrec.errors import told
from rayrec.files import check_file_place, write_text_atomically
from rayrec.training.experiment import ScalingOptions
from rayrec.typed_json import ConfigError, from_json
from serve_apps.cascade.versions import PARTS, CascadeReferences, Experiment
from serve_apps.serve_config import Reference, serve_config
from serve_apps.service.model_reference import ModelReference

_SERVES = "jobs.serve"
_ANY = "0.0.0.0"  # of a pod; its port is reached through a Service inside of the Kubernetes cluster
_PATH_IN_TEXT = re.compile(r"(?:folder|request_log|^service\.embeddings)$")  # of services: fields that are texts
_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]+@")


@dataclass(frozen=True)
class Job:
    """A RayJob: a Ray cluster for one command, which ends with it."""

    name: str
    """Of the RayJob."""
    out: Path
    """File to write."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")]
    """Its pods."""
    living: Annotated[JobOptions, tyro.conf.arg(name="")] = field(default_factory=JobOptions)
    """How long it lives."""


@dataclass(frozen=True)
class Service:
    """A RayService: a Ray cluster with a service that the operator keeps up."""

    name: str
    """Of the RayService."""
    out: Path
    """File to write."""
    access_secret: str
    """Secret with the bearer token of requests as `token`: pods are reached by others than themselves, so there must be one."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")]
    """Its pods."""


def manifest(command: Job | Service, words: list[str]) -> str:
    """YAML of ``words``, the command line of a job as it runs here. Raises ConfigError, and ends the process where it would."""
    if words[:2] != ["python", "-m"] or not words[2:] or not words[2].startswith("jobs."):
        raise ConfigError(f"behind -- a command is needed that runs here: python -m jobs.NAME ..., not {words}")
    module, *options = words[2:]
    if (module == _SERVES) != isinstance(command, Service):
        kind = "service" if module == _SERVES else "job"
        raise ConfigError(f"{module} is a {kind}: python -m jobs.kubernetes {kind}")
    asked = command_of(module, options)
    for name, value in _values(asked):
        if isinstance(value, Path) or (isinstance(value, str) and _PATH_IN_TEXT.search(name)):
            _check_path(name, value)
        if isinstance(value, ScalingOptions):
            check_room(value, command.cluster)
    if isinstance(command, Job):
        found = ray_job(command.name, shlex.join(words), command.cluster, command.living)
    else:
        config = yaml.dump(_service_config(asked), Dumper=_Blocks, sort_keys=False)
        found = ray_service(command.name, config, asked.port, command.access_secret, command.cluster)
    text = f"# Of: {shlex.join(words)}\n" + yaml.dump(found, Dumper=_Blocks, sort_keys=False, width=1000)
    if _PASSWORD.search(text):
        raise ConfigError("an address of the command holds a password; it would stand in the manifest")
    return text


def check_room(scaling: ScalingOptions, cluster: ClusterOptions) -> None:
    """Raises ConfigError for workers that would be waited for in vain."""
    each = scaling.cpus_per_worker or min(0.5, cluster.cpus / 2)
    room = cluster.workers * int(cluster.cpus / each)
    pods = f"{cluster.workers} pods of {cluster.cpus} cores and {cluster.gpus} GPUs"
    if scaling.workers > room or scaling.workers * each >= cluster.workers * cluster.cpus:
        raise ConfigError(
            f"{scaling.workers} workers of {each:g} cores, and the tasks that read, do not fit in {pods}: give more"
        )
    if scaling.device == "gpu" and scaling.workers > cluster.workers * cluster.gpus:
        raise ConfigError(f"{scaling.workers} workers with a GPU each do not fit in {pods}")


def _service_config(asked: Serve[Any] | ServeCascade) -> dict[str, Any]:
    """Of Ray Serve, as ``serve deploy`` takes it."""
    for name in ("host", "follow_s"):
        if getattr(asked, name) != getattr(type(asked), name):
            raise ConfigError(
                f"{name} has no meaning on Kubernetes: pods listen for its Services, and a manifest that is applied again says "
                "which version is served"
            )
    if asked.port < 1024:
        raise ConfigError(f"port {asked.port}: pods are not root, and listen at 1024 or above")
    if asked.service.token_sha256 is not None:
        raise ConfigError("service.token_sha256 would stand in the manifest: the token is in the --access-secret")
    return serve_config(asked.service, _reference(asked), _ANY, asked.port)


def _reference(asked: Serve[Any] | ServeCascade) -> Reference:
    """By name: the pods ask the registry. Raises VersionError, ConfigError."""
    if not isinstance(asked, ServeCascade):
        return _named("model", asked.model)
    tried = None
    if asked.experiment is not None:
        try:
            tried = from_json(Experiment, asked.experiment.read_bytes(), str(asked.experiment))
        except OSError as error:
            raise ConfigError(f"{asked.experiment}: cannot be read: {error.strerror}") from None
    references = CascadeReferences(**{part: _named(part, getattr(asked, part)) for part in PARTS}, experiment=tried)
    asked.service.check(references)
    return references


def _named(part: str, model: str) -> ModelReference:
    if not model.startswith("models:"):
        _check_path(part, model)
    return ModelReference(model)


def _check_path(name: str, path: str | Path) -> None:
    """Raises ConfigError for what pods would look for below whatever folder they start in."""
    if not Path(path).is_absolute():
        raise ConfigError(f"{name} {path}: must be an absolute path, on the volume that all pods share")


def _values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a command that its pods are to read, with its dotted name."""
    yield name, value
    if isinstance(value, ServeCascade):
        value = replace(value, experiment=None)  # which is read here
    if is_dataclass(value):
        for each in fields(value):
            yield from _values(getattr(value, each.name), f"{name}.{each.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _values(each, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _values(each, name)


class _Blocks(yaml.SafeDumper):
    """Texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Blocks.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def main() -> None:
    words = sys.argv[1:]
    own, local = (words[: (at := words.index("--"))], words[at + 1 :]) if "--" in words else (words, [])
    with told():
        command = read_one_of({"job": Job, "service": Service}, description=__doc__, arguments=own)
        check_file_place(command.out)
        write_text_atomically(command.out, manifest(command, local))
        print(f"{command.out}: kubectl apply -f {shlex.quote(str(command.out))}")


if __name__ == "__main__":
    main()
