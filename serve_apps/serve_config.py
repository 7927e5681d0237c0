"""A service as Ray Serve's config files have it: what ``jobs.serve`` deploys here, and what a RayService is given."""

from typing import Any

from rayrec.families.table import family_of
from rayrec.typed_json import to_plain
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.service.front import ANSWER_S
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.model_reference import ModelReference

Reference = ModelReference | CascadeReferences


def application_config(service: ServiceLimits, reference: Reference) -> dict[str, Any]:
    """The one application of a service: every deployment has the same ``user_config`` and takes its part of it."""
    path = service.path or family_of(service.kind).service_path
    return {
        "name": service.kind,
        "route_prefix": "/",
        "import_path": f"{path}:build",
        "args": to_plain(service),
        "deployments": [{"name": name, "user_config": to_plain(reference)} for name in service.deployed],
    }


def serve_config(service: ServiceLimits, reference: Reference, host: str, port: int) -> dict[str, Any]:
    """A whole config, fields as in ``serve_apps/*.yaml``, for a cluster of any number of nodes."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port, "request_timeout_s": ANSWER_S},
        "logging_config": {"enable_access_log": False},
        "applications": [application_config(service, reference)],
    }
