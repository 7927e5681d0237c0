"""The one owner of a folder's files: a named Ray actor on the cluster's head node, which all replicas of all nodes ask.

It outlives who asked it first; when its process dies Ray starts it again, and it reads its files.
"""

import hashlib
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle

_NAMESPACE = "rayrec"
_HEAD = {"node:__internal_head__": 0.001}


def owner_of(kind: type, folder: str, *arguments: Any) -> ActorHandle[Any]:
    """The owner, ``kind(folder, *arguments)``, started where there is none. May wait for Ray."""
    actor: Any = ray.remote(kind)
    found: ActorHandle[Any] = actor.options(
        name=_name(kind, folder),
        namespace=_NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=10_000,
        num_cpus=0,
        resources=_HEAD,
    ).remote(folder, *arguments)
    return found


def end_owner(kind: type, folder: str) -> None:
    """Of a service that ends. Never raises: owners end by themselves too."""
    with suppress(Exception):
        ray.kill(ray.get_actor(_name(kind, folder), namespace=_NAMESPACE), no_restart=True)


def _name(kind: type, folder: str) -> str:
    return f"rayrec-{kind.__name__}-{hashlib.sha256(folder.encode()).hexdigest()[:16]}"
