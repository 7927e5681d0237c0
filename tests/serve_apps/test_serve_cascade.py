"""What ``jobs.serve cascade`` does when one of its four references comes to mean another version; no Ray."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from jobs.serve import FollowedModel
from jobs.serve_cascade import Running, ServeCascade
from rayrec.errors import UserError
from rayrec.families.ranker.task import RankingConfig
from rayrec.item_features import write_item_features
from rayrec.registry import resolve_model
from rayrec.training.tracking import Tracker
from rayrec.typed_json import from_plain
from serve_apps.cascade.application import CascadeService, build
from serve_apps.cascade.versions import CascadeReferences
from serve_apps.deploying import DeploymentError
from serve_apps.service.model_reference import ModelReference
from tests.serve_apps.cascade_parts import Parts, small_table

CONFIG = Path(__file__).parents[2] / "serve_apps" / "cascade.yaml"


@dataclass
class Deployed:
    """Notes what is deployed; refuses versions in ``unhealthy``."""

    service: CascadeService
    unhealthy: tuple[str, ...] = ()
    deployed: list[CascadeReferences] = field(default_factory=list)
    refusals: int = 0

    def deploy(self, references: CascadeReferences) -> None:
        self.deployed.append(references)
        if references.late.version in self.unhealthy:
            raise DeploymentError("the service is UNHEALTHY")

    def count_refused_version(self) -> None:
        self.refusals += 1


@pytest.fixture
def running(parts: Parts, tmp_path: Path) -> Running:
    deployed: Any = Deployed(CascadeService(state_folder=str(tmp_path / "state")))
    return Running(deployed, parts.references())


def test_an_alias_that_moves_changes_its_part_alone_and_a_refused_version_brings_the_old_one_back(
    running: Running, parts: Parts, runs: Path
) -> None:
    tracker = Tracker()
    for folder in (*parts.late, parts.late[0]):
        run = tracker.start("a-run", RankingConfig())
        tracker.log_folder(run, folder, "bundle")
        tracker.register(run, "late")
    tracker.point_alias("late", "serving", "1")
    part, reference, deployed = running.part("late"), "models:/late@serving", running.deployed
    followed = FollowedModel(reference, resolve_model(reference), part.load)
    assert followed.look(part) == ""
    assert deployed.deployed == []  # type: ignore[attr-defined]
    tracker.point_alias("late", "serving", "2")
    assert followed.look(part) == ""
    before = parts.references()
    assert replace(running.references, late=before.late) == before
    assert running.references.late.label == "late/2"
    deployed.unhealthy = ("3",)  # type: ignore[attr-defined]
    tracker.point_alias("late", "serving", "3")
    assert "late/3 is not served: the service is UNHEALTHY; late/2 stays" in followed.look(part)
    assert running.references.late.label == "late/2"
    assert [one.late.version for one in deployed.deployed] == ["2", "3", "2"]  # type: ignore[attr-defined]
    assert deployed.refusals == 1  # type: ignore[attr-defined]


def test_what_does_not_fit_the_other_parts_is_told_before_a_replica_hears_of_it(
    running: Running, parts: Parts, tmp_path: Path
) -> None:
    for name in ("retriever", "early", "late", "features"):
        running.part(name).load(getattr(parts, name)[1])
    texts = {**small_table(), "price": [str(price) for price in small_table()["price"]]}
    write_item_features(tmp_path / "texts", pa.table(texts), "item", run_config={})
    with pytest.raises(UserError, match="'price' of the items is of the kind 'code', the late ranker reads 'number'"):
        running.part("features").load(tmp_path / "texts")
    broken = shutil.copytree(parts.early[0], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        running.part("early").load(broken)


def test_the_config_file_gives_all_deployments_one_user_config() -> None:
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    assert [part["name"] for part in application["deployments"]] == list(CascadeService.deployments)
    found = {from_plain(CascadeReferences, part["user_config"], "user_config") for part in application["deployments"]}
    defaults = ServeCascade()
    assert found == {
        CascadeReferences(*(ModelReference(getattr(defaults, n)) for n in ("retriever", "early", "late", "features")))
    }
    assert build(application["args"]) is not None
