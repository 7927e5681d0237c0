"""The application of content rankers against its own OpenAPI document."""

from pathlib import Path

import pytest
from fastapi import FastAPI

from rayrec.families.content.experiment import ContentExperiment
from serve_apps.content import ContentService
from serve_apps.content_api import build_content_app
from serve_apps.serving_metrics import ServingMetrics
from tests.families.content.test_content_serving import InProcess, served_by, stored
from tests.serve_apps.openapi import MANY, QUICK, conforms


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
