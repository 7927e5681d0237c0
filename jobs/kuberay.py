"""Manifests for the KubeRay operator (``ray.io/v1``, KubeRay 1.5.1 and newer) as plain dicts.

A cluster is a head, which takes no work (0 CPUs to Ray) but the job's own process, and one group of equal workers. All pods run
one image as a user that is not root, with what they ask for as their limit, and share one volume. Only addresses inside of the
Kubernetes cluster are listened on. No secret stands in a manifest: Ray's token is one that the operator makes, or in a Secret.
"""

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from rayrec.typed_json import ConfigError
from serve_apps.service.access import TOKEN_VARIABLE

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LONGEST_NAME = 47  # of a RayJob or RayService: the operator makes longer names of it
_ACCESS_KEY = "token"


@dataclass(frozen=True)
class ClusterOptions:
    """The pods of a Ray cluster on Kubernetes. Raises ConfigError."""

    image: str
    """Container image that holds this package, with `python` and `ray` on its path; with a tag (not latest) or a digest."""
    claim: str
    """Name of the PersistentVolumeClaim (ReadWriteMany) that all pods share: logs, runs and models lie there."""
    mount: str = "/shared"
    """Where pods see it: $RAYREC_RUNS is its folder runs, $RAYREC_DATA its folder data."""
    workers: int = 2
    """Worker pods."""
    cpus: int = 4
    """Cores of a worker pod."""
    memory_gib: int = 16
    """Memory of a worker pod."""
    gpus: int = 0
    """NVIDIA GPUs of a worker pod."""
    head_cpus: int = 2
    """Cores of the head pod."""
    head_memory_gib: int = 8
    """Memory of the head pod."""
    tracking_uri: str | None = None
    """Of the MLflow server, without a password; None = a file in the runs folder, which one job at a time should write."""
    secret: str | None = None
    """Secret whose keys all pods have as variables, such as MLFLOW_TRACKING_PASSWORD and RAYREC_LLM_KEY."""
    ray_token_secret: str | None = None
    """Secret with Ray's token as `auth_token` (KubeRay 1.6 and newer); None = the operator makes one for each cluster."""
    pull_secret: str | None = None
    """Secret to pull the image with."""
    namespace: str | None = None
    """Kubernetes namespace; None = that of the kubectl which applies the manifest."""
    user: int = 1000
    """User and group that all processes run as, not 0; the volume's files are the group's."""

    def __post_init__(self) -> None:
        name, _, tag = self.image.rpartition("/")[2].partition(":")
        if not name or re.search(r"\s", self.image) or (not tag and "@" not in name) or tag == "latest":
            raise ConfigError(f"image {self.image!r}: must be named with a tag other than latest, or a digest")
        for field in ("claim", "secret", "ray_token_secret", "pull_secret", "namespace"):
            check_name(field, getattr(self, field))
        if not re.fullmatch(r"(/[\w.-]+)+", self.mount):
            raise ConfigError(f"mount {self.mount!r}: must be an absolute path of letters, digits and _ . - only")
        for field in ("workers", "cpus", "memory_gib", "head_cpus", "head_memory_gib", "user"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1, not {getattr(self, field)}")
        if self.gpus < 0:
            raise ConfigError(f"gpus must be at least 0, not {self.gpus}")
        if self.tracking_uri is not None:
            uri = urlsplit(self.tracking_uri)
            if uri.scheme not in ("http", "https") or not uri.hostname or uri.username or uri.password:
                raise ConfigError(
                    "tracking_uri must be http(s)://HOST without user and password, which belong in the Secret"
                )


@dataclass(frozen=True)
class JobOptions:
    """How a job's cluster lives. Raises ConfigError."""

    retries: int = 1
    """How often the command is run again, on a new cluster, after it failed: it goes on where it stopped."""
    keep_s: int = 0
    """Seconds that the cluster stays once the command has ended, to look at its logs."""
    deadline_s: int | None = None
    """Seconds after which all is ended; None = none."""

    def __post_init__(self) -> None:
        for field, least in (("retries", 0), ("keep_s", 0), ("deadline_s", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ConfigError(f"{field} must be at least {least}, not {value}")


def check_name(field: str, name: str | None) -> None:
    """Raises ConfigError for what no Kubernetes object can be called."""
    if name is not None and (len(name) > 253 or not _OBJECT.fullmatch(name)):
        raise ConfigError(f"{field} {name!r}: must be a name of lower-case letters, digits, - and .")


def ray_job(name: str, entrypoint: str, cluster: ClusterOptions, options: JobOptions) -> dict[str, Any]:
    """A cluster that lives as long as one command. entrypoint: a shell command line, run in the head pod."""
    submitter = _container("ray-job-submitter", cluster, {"cpu": "1", "memory": "1Gi"})
    spec: dict[str, Any] = {
        "entrypoint": entrypoint,
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": {"spec": _pod(cluster, submitter) | {"restartPolicy": "Never"}},
        "backoffLimit": options.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": options.keep_s,
        "rayClusterSpec": _cluster(cluster),
    }
    if options.deadline_s is not None:
        spec["activeDeadlineSeconds"] = options.deadline_s
    return _object("RayJob", name, cluster, spec)


def ray_service(name: str, serve_config: str, port: int, access_secret: str, cluster: ClusterOptions) -> dict[str, Any]:
    """A service that the operator keeps up. serve_config: YAML of ``serve_apps.serve_config``. port: on which pods listen.

    access_secret: holds the bearer token of requests as ``token``; a pod without it does not start.
    """
    check_name("access_secret", access_secret)
    key = {"secretKeyRef": {"name": access_secret, "key": _ACCESS_KEY}}
    token = {"name": TOKEN_VARIABLE, "valueFrom": key}
    spec = {"serveConfigV2": serve_config, "rayClusterConfig": _cluster(cluster, (token,), {"serve": port})}
    return _object("RayService", name, cluster, spec)


def _object(kind: str, name: str, cluster: ClusterOptions, spec: dict[str, Any]) -> dict[str, Any]:
    if len(name) > _LONGEST_NAME or not _LABEL.fullmatch(name):
        raise ConfigError(
            f"name {name!r}: must be at most {_LONGEST_NAME} lower-case letters, digits and -, a letter first"
        )
    metadata = {"name": name} | ({"namespace": cluster.namespace} if cluster.namespace else {})
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _cluster(
    cluster: ClusterOptions, variables: tuple[dict[str, Any], ...] = (), ports: dict[str, int] | None = None
) -> dict[str, Any]:
    shared = [
        {"name": "RAYREC_RUNS", "value": f"{cluster.mount}/runs"},
        {"name": "RAYREC_DATA", "value": f"{cluster.mount}/data"},
        *([{"name": "MLFLOW_TRACKING_URI", "value": cluster.tracking_uri}] if cluster.tracking_uri else ()),
        *variables,
    ]
    secret = [{"secretRef": {"name": cluster.secret}}] if cluster.secret else []

    def ray_pod(role: str, cpus: int, memory_gib: int, gpus: int, own_ports: dict[str, int]) -> dict[str, Any]:
        resources = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
        container = _container(f"ray-{role}", cluster, resources) | {
            "env": shared,
            "envFrom": secret,
            "volumeMounts": [{"name": "shared", "mountPath": cluster.mount}],
            "ports": [{"name": name, "containerPort": port} for name, port in (own_ports | (ports or {})).items()],
        }
        volume = {"name": "shared", "persistentVolumeClaim": {"claimName": cluster.claim}}
        return {"spec": _pod(cluster, container) | {"volumes": [volume]}}

    token = {"mode": "token"} | ({"secretName": cluster.ray_token_secret} if cluster.ray_token_secret else {})
    return {
        "rayVersion": version("ray"),
        "authOptions": token,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0"},
            "template": ray_pod(
                "head", cluster.head_cpus, cluster.head_memory_gib, 0, {"gcs-server": 6379, "dashboard": 8265}
            ),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": cluster.workers,
                "minReplicas": cluster.workers,
                "maxReplicas": cluster.workers,
                "rayStartParams": {},
                "template": ray_pod("worker", cluster.cpus, cluster.memory_gib, cluster.gpus, {}),
            }
        ],
    }


def _container(name: str, cluster: ClusterOptions, resources: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": cluster.image,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _pod(cluster: ClusterOptions, container: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    return spec | ({"imagePullSecrets": [{"name": cluster.pull_secret}]} if cluster.pull_secret else {})
