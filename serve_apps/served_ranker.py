"""A bundle ready to answer: many requests in one encode and one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import logsigmoid

from rayrec.bundle import BundleError
from rayrec.data.log.collate import collate
from rayrec.data.log.encoding import EncodingError, LogEncoder
from rayrec.data.log.schema import CategoricalFeature, LogSchema, SequenceFeature
from rayrec.families.ranker.bundle import Bundle, load_bundle
from rayrec.typed_json import to_plain
from serve_apps.ranking_request import Problem, RankRequest, RankRequests, RequestError


@dataclass(frozen=True)
class ModelReference:
    """What to serve. model: a bundle folder, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

    name, version: what replies call it; default: what the registry says, or the folder's name and "unregistered".
    """

    model: str
    name: str | None = None
    version: str | None = None

    @property
    def label(self) -> str | None:
        """What replies call it; None where only the registry can say."""
        if self.name is not None and self.version is not None:
            return f"{self.name}/{self.version}"
        return None if self.model.startswith("models:") else self.resolve().label

    def resolve(self) -> "ModelReference":
        """With a folder as its model, and name and version filled in. Raises RegistryError."""
        name, version, path = Path(self.model).name, "unregistered", self.model
        if self.model.startswith("models:"):
            from rayrec.registry import resolve_model  # mlflow: 2 s and 100 MB, only where the registry is asked

            found = resolve_model(self.model)
            name, version, path = found.name, found.version, str(found.path)
        return ModelReference(path, self.name or name, self.version or version)


@dataclass(frozen=True)
class Ranked:
    """C candidates. probabilities: (C, T) float64. scores: (C,) float64. order: (C,) int64, best first."""

    probabilities: NDArray[np.float64]
    scores: NDArray[np.float64]
    order: NDArray[np.int64]


class ServedRanker:
    """Immutable; the answers of one version."""

    def __init__(self, bundle: Bundle, name: str, version: str, max_candidates: int) -> None:
        self.bundle = bundle
        self.name = name
        self.version = version
        self.requests = RankRequests(bundle.schema, max_candidates)
        self._encoder = LogEncoder(bundle.schema)

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.bundle.schema.task_names

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranked | RequestError]:
        """An answer or what is wrong, for each request; their candidates go through the model together."""
        columns = {
            feature.name: [value for request in requests for value in request.columns[feature.name]]
            for feature in self.bundle.schema.features
        }
        try:
            table = self._encoder.encode_values(columns)
        except EncodingError as error:
            if len(requests) > 1:  # only the one that is wrong shall fail
                return [answer for request in requests for answer in self.rank([request])]
            return [RequestError([Problem(("body", "candidates"), str(error), "value_error")])]
        with torch.inference_mode():
            logits = self.bundle.model(collate(table, self.bundle.schema, labels=False)).double()
            logs, probabilities = logsigmoid(logits).numpy(), logits.sigmoid().numpy()  # (all candidates, T) each
        ends = np.cumsum([request.candidates for request in requests])[:-1]
        return [
            _ranked(*parts) for parts in zip(requests, np.split(logs, ends), np.split(probabilities, ends), strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Version, features and tasks (without vocabularies), metrics."""
        metadata = self.bundle.metadata
        return {
            "name": self.name,
            "version": self.version,
            "kind": metadata.kind,
            "created": metadata.created,
            "rayrec": metadata.rayrec,
            "features": _features(self.bundle.schema),
            "tasks": to_plain(self.bundle.schema)["tasks"],
            "metrics": metadata.metrics,
        }


def load_ranker(reference: ModelReference, max_candidates: int) -> ServedRanker:
    """Raises BundleError or RegistryError when there is nothing that can be served."""
    found = reference.resolve()
    bundle = load_bundle(found.model)
    refuse_non_finite(bundle.model, found.model)
    return ServedRanker(bundle, str(found.name), str(found.version), max_candidates)


def refuse_non_finite(model: nn.Module, path: str) -> None:
    """Raises BundleError for weights that a diverged training left."""
    for parameter, values in model.named_parameters():
        if not values.isfinite().all():
            raise BundleError(f"{path}: {parameter} has values that are not finite; its training diverged")


def _ranked(request: RankRequest, logs: NDArray[np.float64], probabilities: NDArray[np.float64]) -> Ranked:
    log_scores = logs @ request.exponents
    return Ranked(probabilities, np.exp(log_scores.clip(-700, 700)), np.argsort(-log_scores, kind="stable"))


def _features(schema: LogSchema) -> list[dict[str, Any]]:
    """As declared; a vocabulary, which may have a million values, is told by its size."""
    described = []
    for feature, plain in zip(schema.features, to_plain(schema)["features"], strict=True):
        plain.pop("vocabulary", None)
        if isinstance(feature, CategoricalFeature):
            plain["ids"] = feature.size
        elif isinstance(feature, SequenceFeature):
            plain["ids"] = schema.encoder_of(feature).size
        described.append(plain)
    return described
