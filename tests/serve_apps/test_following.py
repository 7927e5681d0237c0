"""What ``jobs.serve`` does when an alias moves to a version that cannot be loaded; no Ray."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest

from jobs.serve import FollowedModel
from rayrec.families.ranker.task import RankingConfig
from rayrec.registry import Registry, resolve_model
from rayrec.training.tracking import Tracker
from serve_apps.deploying import DeploymentError
from serve_apps.served_ranker import ModelReference

ALIAS = "models:/shop@serving"


@dataclass
class Deployed:
    """Notes what is deployed; refuses versions in ``unhealthy``."""

    unhealthy: tuple[str, ...] = ()
    versions: list[str | None] = field(default_factory=list)

    def deploy(self, reference: ModelReference) -> None:
        self.versions.append(reference.version)
        if reference.version in self.unhealthy:
            raise DeploymentError("the service is UNHEALTHY")


@pytest.fixture
def bundle_folder(bundles: tuple[Path, Path]) -> Path:
    return bundles[0]


@pytest.fixture
def register(runs: Path) -> Any:
    tracker = Tracker()

    def one(folder: Path) -> None:
        run = tracker.start("a-run", RankingConfig())
        tracker.log_folder(run, folder, "bundle")
        tracker.register(run, "shop")

    return one


def test_a_broken_version_is_told_once_and_the_next_good_one_is_served(
    register: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(bundle_folder)
    deployed = Deployed()
    followed = FollowedModel(ALIAS, resolve_model(ALIAS))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "readme.txt").write_text("no bundle")
    register(tmp_path / "broken")
    problem = followed.look(deployed)
    assert "shop/1 stays" in problem
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "_download", None)  # the broken version is not downloaded again
        assert followed.look(deployed) == ""
    assert (deployed.versions, followed.served.version) == ([], "1")
    register(bundle_folder)
    assert followed.look(deployed) == ""
    assert (deployed.versions, followed.served.version) == (["3"], "3")


def test_a_version_that_does_not_come_up_leaves_the_old_one(register: Any, bundle_folder: Path) -> None:
    register(bundle_folder)
    followed = FollowedModel(ALIAS, resolve_model(ALIAS))
    register(bundle_folder)
    deployed = Deployed(unhealthy=("2",))
    assert "UNHEALTHY" in followed.look(deployed)
    assert followed.look(deployed) == ""
    assert (deployed.versions, followed.served.version) == (["2", "1"], "1")


def test_a_store_that_cannot_be_reached_is_asked_again(
    register: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(bundle_folder)
    followed = FollowedModel(ALIAS, resolve_model(ALIAS))
    register(bundle_folder)
    deployed = Deployed()

    class StoreError(Exception):
        """As that of a store's own client."""

    def fail(**_: Any) -> str:
        raise StoreError("connection reset")

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.artifacts, "download_artifacts", fail)
        assert "models:/shop/2 cannot be downloaded: connection reset" in followed.look(deployed)
    assert followed.look(deployed) == ""
    assert (deployed.versions, followed.served.version) == (["2"], "2")


def test_a_registry_without_the_model_changes_nothing(register: Any, bundle_folder: Path) -> None:
    register(bundle_folder)
    followed = FollowedModel("models:/nobody@serving", resolve_model(ALIAS))
    assert "shop/1 stays" in followed.look(Deployed())
    assert FollowedModel(str(bundle_folder), resolve_model(str(bundle_folder))).look(Deployed()) == ""
