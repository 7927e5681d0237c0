"""The application of content rankers against its own OpenAPI document, slow clients and a changed bundle."""

from pathlib import Path

import pytest
from fastapi import FastAPI

from rayrec.families.content.experiment import ContentExperiment
from serve_apps.content.api import build_content_app
from serve_apps.content.application import ContentService
from serve_apps.content.served import load_served_content
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.model_reference import ModelReference
from tests.families.content.test_content_serving import InProcess, served_by, stored
from tests.families.content.test_embedding import untrained
from tests.serve_apps.hostile import assert_a_changed_byte_is_refused, assert_slow_bodies_are_cut
from tests.serve_apps.openapi import MANY, QUICK, conforms


def test_slow_bodies_are_cut(experiment: ContentExperiment, tmp_path: Path) -> None:
    bundle, out = stored(experiment, tmp_path)
    limits = ContentService(body_s=0.3)
    service = InProcess(served_by(bundle, out))
    app = build_content_app(service, ServingMetrics(), limits, max_candidates=40, max_encoded=20)
    assert_slow_bodies_are_cut(app, limits.body_s, routes=1)


def test_a_bundle_with_a_byte_changed_is_refused(experiment: ContentExperiment, tmp_path: Path) -> None:
    bundle = untrained(experiment, tmp_path / "bundle", "spar")
    assert_a_changed_byte_is_refused(
        bundle.path, tmp_path, lambda folder: load_served_content(ModelReference(str(folder)), None, lambda: None)
    )


@pytest.fixture
def app(experiment: ContentExperiment, tmp_path: Path) -> FastAPI:
    bundle, out = stored(experiment, tmp_path)
    limits = ContentService()
    return build_content_app(
        InProcess(served_by(bundle, out)), ServingMetrics(), limits, max_candidates=40, max_encoded=20
    )


def test_the_application_does_what_its_document_says(app: FastAPI) -> None:
    assert conforms(app, QUICK) >= 2 * QUICK


@pytest.mark.slow
def test_the_application_does_what_its_document_says_in_many_cases(app: FastAPI) -> None:
    assert conforms(app, MANY) >= 2 * MANY
