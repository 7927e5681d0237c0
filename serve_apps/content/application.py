"""The content ranker as a Ray Serve application: ``serve deploy serve_apps/content.yaml``, or ``python -m jobs.serve``.

Embeddings are those of jobs.embed_content_items and jobs.embed_users; each replica looks before it answers whether others have
been put in force, and opens them beside those that go on answering.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fastapi import FastAPI
from ray import serve

from rayrec.data.content import ContentError, read_content
from rayrec.families.content.bundle import ContentBundle
from serve_apps.content.api import RANK, build_content_app
from serve_apps.content.request import ContentRequest, RankedContent
from serve_apps.content.served import ServedContent, load_served_content
from serve_apps.service.limits import ServiceLimits
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError
from serve_apps.service.replica import Replica, application


@dataclass(frozen=True)
class ContentService(ServiceLimits):
    """As ``ServiceLimits``, for contents."""

    kind: ClassVar[str] = "content"
    max_candidates: int = 1000
    """Of a request."""
    max_encoded: int = 100
    """Texts of items among a request's candidates and history that are read on demand."""
    max_batch: int = 16_384
    """Stored candidates of one pass; a text that is read on demand counts as 200, a user as 1000."""
    embeddings: str | None = None
    """What the jobs write to by ``--out``; None = nothing is stored: users come by history, candidates by text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_candidates", "max_encoded", "max_batch"):
            self._check_at_least_one(name)

    def in_folder(self, folder: Path) -> "ContentService":
        kept = super().in_folder(folder)
        assert isinstance(kept, ContentService)
        return replace(kept, embeddings=None if self.embeddings is None else str(Path(self.embeddings).resolve()))


@serve.deployment
@serve.ingress()
class Content(Replica[ContentService, ServedContent, ContentRequest, RankedContent]):
    """A batch is counted in stored candidates."""

    at_once = 256

    def load(self, reference: ModelReference) -> ServedContent:
        root = None if self.limits.embeddings is None else Path(self.limits.embeddings)
        return load_served_content(reference, root, self.metrics.load_failures.inc)

    def answer(self, served: ServedContent, requests: Sequence[ContentRequest]) -> list[RankedContent | RequestError]:
        return served.rank(requests)

    def weight(self, request: ContentRequest) -> int:
        return request.weight

    @property
    def max_batch(self) -> int:
        return self.limits.max_batch

    def __serve_build_asgi_app__(self) -> FastAPI:
        limits = self.limits
        return build_content_app(
            self, self.metrics, limits, max_candidates=limits.max_candidates, max_encoded=limits.max_encoded
        )


def build(args: dict[str, Any]) -> serve.Application:
    """The application; ``args``: fields of ContentService. What it serves is set by ``user_config``."""
    return application(Content, ContentService, args)


SERVICE = ContentService


def example(bundle: ContentBundle) -> tuple[str, dict[str, Any]] | None:
    """Texts of the log that it was trained on; None where that is not at hand (moved, or on another machine)."""
    try:
        items = read_content(Path(str(bundle.metadata.run_config.get("content")))).items
    except ContentError:
        return None
    some = range(min(4, len(items)))
    texts = [{f.name: text for f in items.fields if (text := items.texts[f.name][row].as_py())} for row in some]
    given = [{"item": items.names[row].as_py(), "texts": texts[row]} for row in some if texts[row]]
    return RANK, {"history": given[:1], "candidates": given[1:] or given}
