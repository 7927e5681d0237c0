"""Runs and their metrics in MLflow, in the store that ``rayrec.registry`` names."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayrec.errors import UserError
from rayrec.local_store import EXPERIMENT, artifacts_uri, default_uri, prepare, sqlite_file
from rayrec.registry import Registry, RegistryError
from rayrec.typed_json import to_plain


class Tracker(Registry):
    """The runs of one MLflow store, and its models: explicit run ids, no global active run."""

    def start(self, name: str, config: Any, *, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """Open a run, log its whole config (as parameters and as ``config.json``) and return its id."""
        file = sqlite_file(self.uri)
        if file is not None:
            prepare(file)
        try:
            return self._start(name, to_plain(config), parent, tags or {})
        except UserError:
            raise
        except Exception as error:  # each store has its own client, with errors of its own
            raise RegistryError(f"no run can be begun in the tracking store: {self.trouble(error)}") from error

    def _start(self, name: str, plain: Any, parent: str | None, tags: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        all_tags = {"mlflow.runName": name, **tags}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        run_id: str = self.client.create_run(self._experiment_id(), tags=all_tags).info.run_id
        params = [Param(key, value[:6000]) for key, value in sorted(_flatten(plain).items())]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        self.client.log_dict(run_id, plain, "config.json")
        return run_id

    def log_metrics(self, run_id: str, metrics: Mapping[str, float | None], step: int) -> None:
        """Log the numbers that are defined (not None, not NaN) at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(_metric_key(key), float(value), now, step)
            for key, value in metrics.items()
            if value is not None and value == value
        ]
        for start in range(0, len(entries), 1000):
            self.client.log_batch(run_id, metrics=entries[start : start + 1000])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_folder(self, run_id: str, folder: Path, artifact_path: str) -> None:
        self.client.log_artifacts(run_id, str(folder), artifact_path)

    def finish(self, run_id: str, *, failed: bool = False) -> None:
        self.client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    @contextmanager
    def told(self, kept: str) -> Iterator[None]:
        """At the end of a job, when all is written: a store that is away is one line. kept: what there is all the same.

        Raises UserError; the same command then finds all done and only tells the store again.
        """
        try:
            yield
        except Exception as error:  # each store has its own client, with errors of its own
            raise UserError(
                f"{kept}, but the tracking store did not take it: {self.trouble(error)}; "
                "run the same command again to log it there"
            ) from error

    def config_text(self, run_id: str) -> str:
        """The ``config.json`` that a run logged: enough to repeat it."""
        self.get(run_id)
        return Path(self.client.download_artifacts(run_id, "config.json")).read_text(encoding="utf-8")

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        try:
            location = artifacts_uri() if self.uri == default_uri() else None
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException:  # another process was first
            raced = self.client.get_experiment_by_name(EXPERIMENT)
            if raced is None:
                raise
            return str(raced.experiment_id)


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        merged: dict[str, str] = {}
        for key, inner in value.items():
            merged |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return merged
    return {prefix: str(value)}


def _metric_key(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", key)
