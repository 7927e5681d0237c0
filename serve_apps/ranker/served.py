"""A bundle ready to answer: many requests in one encode and one forward pass."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import logsigmoid

from rayrec.data.log.direct_encoding import DirectEncoder
from rayrec.data.log.encoding import EncodingError, LogEncoder
from rayrec.data.log.schema import CategoricalFeature, LogSchema, SequenceFeature
from rayrec.families.ranker.bundle import Bundle, load_bundle
from rayrec.models.layers.inference_layout import lay_out_for_inference
from rayrec.typed_json import to_plain
from serve_apps.ranker.request import RankRequest, RankRequests
from serve_apps.service.model_reference import ModelReference, refuse_non_finite
from serve_apps.service.refusals import Problem, RequestError


@dataclass(frozen=True)
class Ranked:
    """C candidates. probabilities: (C, T) float64. scores: (C,) float64. order: (C,) int64, best first.

    unknown: values of the candidates, by feature, that its vocabulary does not have; no entry where there are none.
    """

    probabilities: NDArray[np.float64]
    scores: NDArray[np.float64]
    order: NDArray[np.int64]
    unknown: dict[str, int]


class ServedRanker:
    """Immutable; the answers of one version."""

    def __init__(self, bundle: Bundle, name: str, version: str, max_candidates: int) -> None:
        self.bundle = bundle
        self.name = name
        self.version = version
        self.requests = RankRequests(bundle.schema, max_candidates)
        self._encoder = DirectEncoder(LogEncoder(bundle.schema))

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.bundle.schema.task_names

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranked | RequestError]:
        """An answer or what is wrong, for each request; their candidates go through the model together."""
        encoded = requests[0].encoded.keys()
        if any(
            request.encoded.keys() != encoded for request in requests
        ):  # only during a change of the items' features
            return [answer for request in requests for answer in self.rank([request])]
        shared: Set[str] = requests[0].shared.keys()
        if any(request.shared.keys() != shared for request in requests):
            shared = set(shared).intersection(*(request.shared for request in requests))
        columns = {
            name: [value for request in requests for value in request.column(name)]
            for name in (*requests[0].columns, *requests[0].shared)
            if name not in shared
        }
        once = {name: [request.shared[name] for request in requests] for name in shared}
        try:
            batch, unknown = self._encoder.encode(
                columns,
                once,
                [request.candidates for request in requests],
                {name: np.concatenate([request.encoded[name] for request in requests]) for name in encoded},
            )
        except EncodingError as error:
            if len(requests) > 1:  # only the one that is wrong shall fail
                return [answer for request in requests for answer in self.rank([request])]
            return [RequestError([Problem(("body", "candidates"), str(error), "value_error")])]
        with torch.inference_mode():
            logits = self.bundle.model(batch).double()
            logs, probabilities = logsigmoid(logits).numpy(), logits.sigmoid().numpy()  # (all candidates, T) each
        ends = np.cumsum([request.candidates for request in requests])[:-1]
        counts = [
            {name: int(n) for name, part in unknown.items() if (n := part[end - request.candidates : end].sum())}
            for request, end in zip(requests, [*ends, len(logs)], strict=True)
        ]
        return [
            _ranked(*parts)
            for parts in zip(requests, np.split(logs, ends), np.split(probabilities, ends), counts, strict=True)
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
    lay_out_for_inference(bundle.model)
    return ServedRanker(bundle, str(found.name), str(found.version), max_candidates)


def _ranked(
    request: RankRequest, logs: NDArray[np.float64], probabilities: NDArray[np.float64], unknown: dict[str, int]
) -> Ranked:
    log_scores = logs @ request.exponents
    return Ranked(probabilities, np.exp(log_scores.clip(-700, 700)), np.argsort(-log_scores, kind="stable"), unknown)


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
