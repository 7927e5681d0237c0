"""The model registry, kept by MLflow: models, their versions (each a bundle folder) and the aliases that point at them.

The store is ``$MLFLOW_TRACKING_URI`` when set, else ``<runs>/mlflow.db`` with artifacts in ``<runs>/mlartifacts``, where
<runs> is ``$RAYREC_RUNS`` or ``./runs``.
"""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

# Read when mlflow is imported. A server that is away is told within seconds: MLflow's own seven retries take minutes.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from rayrec.errors import UserError, disk_trouble
from rayrec.local_store import default_uri, find_store, prepare, runs_folder, sqlite_file, use_fresh_connections

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

__all__ = ["Registry", "RegistryError", "ResolvedModel", "resolve_model", "runs_folder", "tracking_uri"]

SERVING_ALIAS = "serving"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


class RegistryError(UserError):
    """A model reference that names nothing."""


@dataclass(frozen=True)
class ResolvedModel:
    """A bundle folder on this machine and what the registry calls it; a plain folder has version "unregistered"."""

    path: Path
    name: str
    version: str


def tracking_uri() -> str:
    """The MLflow store in use."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri()


class Registry:
    """A thin client of the models in one MLflow store."""

    def __init__(self, uri: str | None = None, run_id: str | None = None) -> None:
        """uri: None = the store in use. run_id: a run that the store holds, by which it is found again in a runs folder that
        was moved or copied. Raises StoreError for a file that cannot be used."""
        self.uri = tracking_uri() if uri is None else find_store(uri, run_id)
        file = sqlite_file(self.uri)
        if self.uri == default_uri() and file is not None and file.is_file():
            prepare(file)

    @property
    def client(self) -> "MlflowClient":
        """MLflow's own client. Raises RegistryError when the store is a file that is not there, which MLflow would make."""
        file = sqlite_file(self.uri)
        if file is not None and not file.is_file():
            raise RegistryError(f"{file}: there is no tracking store; train a model first, or set RAYREC_RUNS")
        return self._client

    @cached_property
    def _client(self) -> "MlflowClient":
        from mlflow.tracking import (
            MlflowClient,  # two seconds of imports, which a job that trains spends beside its first steps
        )

        use_fresh_connections(self.uri)
        try:
            return MlflowClient(self.uri)
        except Exception as error:  # each store has its own client, with errors of its own
            raise RegistryError(f"the tracking store cannot be used: {self.trouble(error)}") from error

    def trouble(self, error: BaseException) -> str:
        """What is wrong with the store, in one line that names the command where one helps."""
        text = " ".join(str(error).split())
        if "out-of-date database schema" in text:
            return (
                f"{_safe(self.uri)} was made by another version of MLflow; if that was an older one, copy the store, then run: "
                f"mlflow db upgrade {_safe(self.uri)}; if a newer one: pip install --upgrade mlflow"
            )
        disk = disk_trouble(error)
        return f"{_safe(self.uri)}: {disk if disk is not None else text[:200]}"

    def get(self, run_id: str) -> "Run":
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            raise RegistryError(
                f"run {run_id!r} is not in the tracking store {_safe(self.uri)}: {error.message}"
            ) from None

    def register(self, run_id: str, name: str, *, alias: str | None = SERVING_ALIAS) -> ResolvedModel:
        """Make the run's logged ``bundle`` a new version of model ``name`` and point ``alias`` at it."""
        from mlflow.exceptions import MlflowException

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

    def version_made_of(self, run_id: str, name: str) -> str | None:
        """The newest version of model ``name`` that a run's bundle was registered as; None where there is none."""
        found = self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        return max((str(version.version) for version in found), key=int, default=None)

    def point_alias(self, name: str, alias: str, version: str) -> None:
        """Make ``models:/name@alias`` mean another version: how a new model goes live, or an old one comes back."""
        from mlflow.exceptions import MlflowException

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
        from mlflow.exceptions import MlflowException

        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise RegistryError(f"{reference!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
        name = match["name"]
        try:
            if match["alias"] is not None:
                version = str(self.client.get_model_version_by_alias(name, match["alias"]).version)
            else:
                version = str(self.client.get_model_version(name, match["version"]).version)
        except (MlflowException, RegistryError) as error:
            raise RegistryError(f"{reference} is not in the registry {_safe(self.uri)}: {error}") from None
        return name, version

    def _download(self, name: str, version: str) -> Path:
        import mlflow.artifacts

        try:
            source = self.client.get_model_version_download_uri(name, version)
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=self.uri))
        except Exception as error:  # each store has its own client, with errors of its own
            raise RegistryError(f"models:/{name}/{version} cannot be downloaded: {error}") from error


def resolve_model(reference: str) -> ResolvedModel:
    """A folder path, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` to a bundle folder on this machine.

    Raises RegistryError when it names nothing.
    """
    if not reference.startswith("models:"):
        folder = Path(reference).resolve()
        if not folder.is_dir():
            raise RegistryError(f"{reference!r} is neither a folder nor a models:/ reference")
        return ResolvedModel(folder, folder.name, "unregistered")
    return Registry().resolve(reference)


def _safe(uri: str) -> str:
    """A tracking URI without credentials."""
    return re.sub(r"//[^/@]+@", "//***@", uri)
