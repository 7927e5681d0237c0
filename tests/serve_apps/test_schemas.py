"""Each application against its own OpenAPI document. (That of content rankers: tests/families/content/test_content_schema.py.)"""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from serve_apps.cascade.api import build_cascade_app
from serve_apps.cascade.application import CascadeService
from serve_apps.ranker.api import build_app
from serve_apps.ranker.application import RankerService
from serve_apps.ranker.served import ServedRanker
from serve_apps.retriever.api import build_retrieval_app
from serve_apps.retriever.application import RetrieverService
from serve_apps.service.metrics import ServingMetrics
from tests.serve_apps import test_retrieval_api
from tests.serve_apps.cascade_parts import PlainStages, served_cascade, small_parts
from tests.serve_apps.conftest import InProcess
from tests.serve_apps.local_items import LocalItems
from tests.serve_apps.local_traffic import LocalTraffic, WithTraffic
from tests.serve_apps.openapi import MANY, QUICK, conforms
from tests.serve_apps.retriever_bundle import small_encoder, small_retriever


@pytest.fixture(scope="module")
def ranker_app(ranker: ServedRanker) -> FastAPI:
    return build_app(InProcess(ranker), ServingMetrics(), RankerService())


@pytest.fixture(scope="module")
def retriever_app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    folder = tmp_path_factory.mktemp("retriever")
    bundle = small_retriever(folder / "liger", small_encoder(folder / "encoder"))
    items = LocalItems(folder / "items")
    service: Any = test_retrieval_api.InProcess(test_retrieval_api.served(bundle, items), items)
    return build_retrieval_app(service, ServingMetrics(), RetrieverService())


@pytest.fixture(scope="module")
def cascade_app(tmp_path_factory: pytest.TempPathFactory, small_log: Path) -> FastAPI:
    folder = tmp_path_factory.mktemp("cascade")
    references = small_parts(folder, small_log).references()
    stages = PlainStages(references, folder / "state")
    service = WithTraffic(served_cascade(references, stages), stages, LocalTraffic(folder / "traffic"))
    return build_cascade_app(service, ServingMetrics(), CascadeService(), feedback=True)


@pytest.mark.parametrize("name", ["ranker", "retriever", "cascade"])
def test_an_application_does_what_its_document_says(name: str, request: pytest.FixtureRequest) -> None:
    assert conforms(request.getfixturevalue(f"{name}_app"), QUICK) >= 2 * QUICK


@pytest.mark.slow
@pytest.mark.parametrize(("name", "operations"), [("ranker", 1), ("retriever", 3), ("cascade", 4)])
def test_an_application_does_what_its_document_says_in_many_cases(
    name: str, operations: int, request: pytest.FixtureRequest
) -> None:
    """operations: with a body."""
    asked = conforms(request.getfixturevalue(f"{name}_app"), MANY)
    print(f"{name}: {asked} cases")
    assert asked >= 1.5 * MANY * operations
