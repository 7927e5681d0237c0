"""What ``jobs.serve`` does when an alias moves to a version that cannot be loaded; no Ray."""

import shutil
import sqlite3
from contextlib import closing
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
from serve_apps.service.model_reference import ModelReference

ALIAS = "models:/shop@serving"


@dataclass
class Deployed:
    """Notes what is deployed; refuses versions in ``unhealthy``."""

    unhealthy: tuple[str, ...] = ()
    versions: list[str | None] = field(default_factory=list)
    refusals: int = 0

    def deploy(self, reference: ModelReference) -> None:
        self.versions.append(reference.version)
        if reference.version in self.unhealthy:
            raise DeploymentError("the service is UNHEALTHY")

    def count_refused_version(self) -> None:
        self.refusals += 1


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
    assert deployed.refusals == 1
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


def move_alias(file: Path, version: str) -> None:
    """As another process would: this one's store must not be what brings the news."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("update registered_model_aliases set version = ? where alias = 'serving'", (version,))


def test_a_tracking_file_that_was_deleted_and_restored_is_followed_again(
    register: Any, bundle_folder: Path, runs: Path
) -> None:
    register(bundle_folder)
    register(bundle_folder)
    followed, deployed = FollowedModel(ALIAS, resolve_model(ALIAS)), Deployed()
    shutil.copy(runs / "mlflow.db", runs / "kept.db")
    (runs / "mlflow.db").unlink()
    assert "there is no tracking store" in followed.look(deployed)
    assert not (runs / "mlflow.db").exists()  # nor made, empty, by the look
    (runs / "kept.db").rename(runs / "mlflow.db")
    assert followed.look(deployed) == ""
    for version in ("1", "2"):
        move_alias(runs / "mlflow.db", version)
        assert followed.look(deployed) == ""
    shutil.copy(runs / "mlflow.db", runs / "second.db")
    move_alias(runs / "second.db", "1")
    (runs / "second.db").rename(runs / "mlflow.db")  # put in place between two looks
    assert followed.look(deployed) == ""
    assert (deployed.versions, followed.served.version) == (["1", "2", "1"], "1")


def test_a_registry_without_the_model_changes_nothing(register: Any, bundle_folder: Path) -> None:
    register(bundle_folder)
    followed = FollowedModel("models:/nobody@serving", resolve_model(ALIAS))
    assert "shop/1 stays" in followed.look(Deployed())
    assert FollowedModel(str(bundle_folder), resolve_model(str(bundle_folder))).look(Deployed()) == ""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:119]\nlong traceback"),
        MemoryError(),
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied", "model.safetensors"),
        TypeError("not a tensor"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("stage", ["look up", "download", "load", "deploy"])
def test_whatever_a_new_version_raises_is_told_and_counted_once_and_leaves_the_old_one(
    register: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    register(bundle_folder)
    followed = FollowedModel(ALIAS, resolve_model(ALIAS))
    register(bundle_folder)
    deployed = Deployed()

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        if stage == "load":
            patched.setattr(followed, "load", fail)
        else:
            where = {
                "look up": (Registry, "version_of"),
                "download": (Registry, "_download"),
                "deploy": (deployed, "deploy"),
            }
            patched.setattr(*where[stage], fail)
        problem = followed.look(deployed)
        assert type(error).__name__ in problem
        assert problem.endswith("shop/1 stays")
        assert "\n" not in problem
        followed.look(deployed)
    assert (followed.served.version, deployed.refusals) == ("1", 1)
    if stage in ("look up", "download"):  # a store that was away
        assert followed.look(deployed) == ""
        assert followed.served.version == "2"


def test_a_refused_version_is_tried_again_once_the_alias_has_meant_another_one(
    register: Any, bundle_folder: Path
) -> None:
    register(bundle_folder)
    followed = FollowedModel(ALIAS, resolve_model(ALIAS))
    register(bundle_folder)
    assert "UNHEALTHY" in followed.look(Deployed(unhealthy=("2",)))
    for version, served in (("1", "1"), ("2", "2")):
        Registry().point_alias("shop", "serving", version)
        assert followed.look(Deployed()) == ""
        assert followed.served.version == served
