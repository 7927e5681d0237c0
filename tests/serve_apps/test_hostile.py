"""Slow clients and changed bundles, application by application. (That of content rankers: tests/families/content.)"""

from pathlib import Path
from typing import Any

import pytest

from rayrec.retrieval.index import IndexConfig
from serve_apps.cascade.api import build_cascade_app
from serve_apps.cascade.application import CascadeService
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.items.changes import ItemChanges
from serve_apps.ranker.api import build_app
from serve_apps.ranker.application import RankerService
from serve_apps.ranker.served import ServedRanker, load_ranker
from serve_apps.retriever.api import build_retrieval_app
from serve_apps.retriever.application import RetrieverService
from serve_apps.retriever.served import load_served_retriever
from serve_apps.service.metrics import ServingMetrics
from serve_apps.service.model_reference import ModelReference
from tests.serve_apps import test_retrieval_api
from tests.serve_apps.cascade_parts import Parts, PlainStages, served_cascade
from tests.serve_apps.conftest import InProcess
from tests.serve_apps.hostile import assert_a_changed_byte_is_refused, assert_slow_bodies_are_cut
from tests.serve_apps.local_items import LocalItems
from tests.serve_apps.local_traffic import LocalTraffic, WithTraffic

BODY_S = 0.3


def test_a_ranker_cuts_slow_bodies(ranker: ServedRanker) -> None:
    app = build_app(InProcess(ranker), ServingMetrics(), RankerService(body_s=BODY_S))
    assert_slow_bodies_are_cut(app, BODY_S, routes=1)


def test_a_retriever_cuts_slow_bodies(parts: Parts, tmp_path: Path) -> None:
    items = LocalItems(tmp_path / "items")
    service: Any = test_retrieval_api.InProcess(test_retrieval_api.served(parts.retriever[0], items), items)
    assert_slow_bodies_are_cut(
        build_retrieval_app(service, ServingMetrics(), RetrieverService(body_s=BODY_S)), BODY_S, routes=3
    )


def test_a_cascade_cuts_slow_bodies(parts: Parts, stages: PlainStages, tmp_path: Path) -> None:
    service = WithTraffic(served_cascade(parts.references(), stages), stages, LocalTraffic(tmp_path / "traffic"))
    app = build_cascade_app(service, ServingMetrics(), CascadeService(body_s=BODY_S), feedback=True)
    assert_slow_bodies_are_cut(app, BODY_S, routes=5)


def test_the_time_for_a_body_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="body_s must be above 0"):
        RankerService(body_s=0)


def test_a_ranker_with_a_byte_changed_is_refused(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    assert_a_changed_byte_is_refused(bundles[0], tmp_path, lambda folder: load_ranker(ModelReference(str(folder)), 50))


def test_a_retriever_with_a_byte_changed_is_refused(parts: Parts, tmp_path: Path) -> None:
    assert_a_changed_byte_is_refused(
        parts.retriever[0],
        tmp_path,
        lambda folder: load_served_retriever(ModelReference(str(folder)), ItemChanges(), IndexConfig()),
    )


@pytest.mark.parametrize("part", ["retriever", "early", "late", "features"])
def test_a_cascade_with_a_byte_changed_in_any_of_its_parts_is_refused(parts: Parts, tmp_path: Path, part: str) -> None:
    whole = parts.references()

    def load(folder: Path) -> None:
        references = CascadeReferences(
            **{p: getattr(whole, p) for p in ("retriever", "early", "late", "features")}
            | {part: ModelReference(str(folder))}
        )
        state = tmp_path / "state" / str(len(list(tmp_path.glob("state/*"))))  # nothing of it is mapped already
        served_cascade(references, PlainStages(references, state))

    assert_a_changed_byte_is_refused(getattr(parts, part)[0], tmp_path, load)
