"""Runs, metrics and the model registry in MLflow: a SQLite file by default, any tracking URI by environment.

The store is ``$MLFLOW_TRACKING_URI`` when set, else ``<runs>/mlflow.db`` with artifacts in ``<runs>/mlartifacts``, where
<runs> is ``$RAYREC_RUNS`` or ``./runs``. A model version's artifacts are a bundle folder.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # read when mlflow is imported

import mlflow.artifacts
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rayrec.typed_json import to_plain

EXPERIMENT = "rayrec"
SERVING_ALIAS = "serving"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


class RegistryError(ValueError):
    """A model reference that names nothing."""


@dataclass(frozen=True)
class ResolvedModel:
    """A bundle folder on this machine and what the registry calls it; a plain folder has version "unregistered"."""

    path: Path
    name: str
    version: str


def runs_folder() -> Path:
    """Where runs, the tracking file and artifacts go: ``$RAYREC_RUNS``, else ``./runs``; absolute."""
    return Path(os.environ.get("RAYREC_RUNS", "runs")).resolve()


def tracking_uri() -> str:
    """The MLflow store in use; makes the folder of the default SQLite file."""
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    if configured:
        return configured
    runs_folder().mkdir(parents=True, exist_ok=True)
    return _default_uri()


def _default_uri() -> str:
    return f"sqlite:///{runs_folder() / 'mlflow.db'}"


class Tracker:
    """A thin client of one MLflow store: explicit run ids, no global active run."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or tracking_uri()
        self.client = MlflowClient(self.uri)

    def start(self, name: str, config: Any, *, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """Open a run, log its whole config (as parameters and as ``config.json``) and return its id."""
        all_tags = {"mlflow.runName": name, **(tags or {})}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        run_id: str = self.client.create_run(self._experiment_id(), tags=all_tags).info.run_id
        plain = to_plain(config)
        params = [Param(key, value[:6000]) for key, value in sorted(_flatten(plain).items())]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        self.client.log_dict(run_id, plain, "config.json")
        return run_id

    def log_metrics(self, run_id: str, metrics: Mapping[str, float | None], step: int) -> None:
        """Log the numbers that are defined (not None, not NaN) at a step."""
        now = int(time.time() * 1000)
        entries = [
            Metric(_metric_key(key), float(value), now, step)
            for key, value in metrics.items()
            if value is not None and value == value
        ]
        for start in range(0, len(entries), 1000):
            self.client.log_batch(run_id, metrics=entries[start : start + 1000])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_folder(self, run_id: str, folder: Path, artifact_path: str) -> None:
        self.client.log_artifacts(run_id, str(folder), artifact_path)

    def finish(self, run_id: str, *, failed: bool = False) -> None:
        self.client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def get(self, run_id: str) -> Run:
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            raise RegistryError(
                f"run {run_id!r} is not in the tracking store {_safe(self.uri)}: {error.message}"
            ) from None

    def config_text(self, run_id: str) -> str:
        """The ``config.json`` that a run logged: enough to repeat it."""
        self.get(run_id)
        return Path(self.client.download_artifacts(run_id, "config.json")).read_text(encoding="utf-8")

    def register(self, run_id: str, name: str, *, alias: str | None = SERVING_ALIAS) -> ResolvedModel:
        """Make the run's logged ``bundle`` a new version of model ``name`` and point ``alias`` at it."""
        run = self.get(run_id)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{run.info.artifact_uri}/bundle"
        version = str(self.client.create_model_version(name, source, run_id=run_id).version)
        if alias is not None:
            self.client.set_registered_model_alias(name, alias, version)
        return ResolvedModel(self._download(name, version), name, version)

    def point_alias(self, name: str, alias: str, version: str) -> None:
        """Make ``models:/name@alias`` mean another version: how a new model goes live, or an old one comes back."""
        try:
            self.client.set_registered_model_alias(name, alias, version)
        except MlflowException as error:
            raise RegistryError(f"models:/{name}/{version} does not exist: {error.message}") from None

    def resolve(self, reference: str) -> ResolvedModel:
        """A ``models:/`` reference to a bundle folder; see ``resolve_model``."""
        name, version = self.version_of(reference)
        return ResolvedModel(self._download(name, version), name, version)

    def version_of(self, reference: str) -> tuple[str, str]:
        """Name and version that a ``models:/`` reference means now; downloads nothing. Raises RegistryError."""
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise RegistryError(f"{reference!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
        name = match["name"]
        try:
            if match["alias"] is not None:
                version = str(self.client.get_model_version_by_alias(name, match["alias"]).version)
            else:
                version = str(self.client.get_model_version(name, match["version"]).version)
        except MlflowException as error:
            raise RegistryError(f"{reference} is not in the registry {_safe(self.uri)}: {error.message}") from None
        return name, version

    def _download(self, name: str, version: str) -> Path:
        try:
            source = self.client.get_model_version_download_uri(name, version)
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=self.uri))
        except Exception as error:  # each store has its own client, with errors of its own
            raise RegistryError(f"models:/{name}/{version} cannot be downloaded: {error}") from error

    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = (runs_folder() / "mlartifacts").as_uri() if self.uri == _default_uri() else None
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException:  # another process was first
            raced = self.client.get_experiment_by_name(EXPERIMENT)
            if raced is None:
                raise
            return str(raced.experiment_id)


def resolve_model(reference: str) -> ResolvedModel:
    """A folder path, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` to a bundle folder on this machine.

    Raises RegistryError when it names nothing.
    """
    if not reference.startswith("models:"):
        folder = Path(reference).resolve()
        if not folder.is_dir():
            raise RegistryError(f"{reference!r} is neither a folder nor a models:/ reference")
        return ResolvedModel(folder, folder.name, "unregistered")
    return Tracker().resolve(reference)


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        merged: dict[str, str] = {}
        for key, inner in value.items():
            merged |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return merged
    return {prefix: str(value)}


def _metric_key(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", key)


def _safe(uri: str) -> str:
    """A tracking URI without credentials."""
    return re.sub(r"//[^/@]+@", "//***@", uri)
