"""What a replica serves: one version in force, which another one takes over from between two requests."""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from fastapi import FastAPI

from rayrec.typed_json import from_plain
from serve_apps.service.api import ServedVersion
from serve_apps.service.metrics import FOLDER_VARIABLE, ServingMetrics
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import VersionError, refusing_version

logger = logging.getLogger("ray.serve")
Size = TypeVar("Size")
Served = TypeVar("Served", bound=ServedVersion)


class VersionHolder(Generic[Size, Served]):
    """One replica and the version that it serves; a subclass says how one is loaded. limits: size of the deployment."""

    def load(self, reference: ModelReference) -> Served:
        """A version that can be asked. What it raises leaves the version in force."""
        raise NotImplementedError

    def load_configured(self, user_config: dict[str, Any]) -> Served:
        """The version that a ``user_config`` names. What it raises leaves the version in force."""
        return self.load(from_plain(ModelReference, user_config, "user_config"))

    def __serve_build_asgi_app__(self) -> FastAPI:
        raise NotImplementedError

    def __init__(self, limits: Size) -> None:
        self.limits = limits
        self._served: Served | None = None
        torch.set_num_threads(1)
        with suppress(OSError, KeyError):  # a full disk ends no service
            Path(os.environ[FOLDER_VARIABLE]).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.metrics = ServingMetrics()

    @property
    def current(self) -> Served:
        assert self._served is not None  # Serve configures a replica before it gets requests
        return self._served

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the version that ``user_config`` names and put it in force.

        A first version that cannot be loaded fails the deployment. A later one, whatever is wrong with it, leaves the version in
        force, which is told in the log and counted in the metrics.
        """
        try:
            with refusing_version(str(user_config.get("model", "user_config"))):
                loaded = await asyncio.get_running_loop().run_in_executor(None, self.load_configured, user_config)
        except VersionError as error:
            if self._served is None:
                raise
            await self.count_refused_version()
            logger.error(f"{user_config} was not loaded, {self._served.label} stays in force: {error}")
            return
        if self._served is not None:
            self.metrics.model.labels(self._served.label).set(0)
        self.metrics.model.labels(loaded.label).set(1)
        self._served = loaded

    async def count_refused_version(self) -> None:
        """Called from outside too: by who refused a version before any replica heard of it."""
        self.metrics.load_failures.inc()
