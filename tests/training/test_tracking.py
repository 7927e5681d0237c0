"""MLflow tracking and registry on an own SQLite file."""

from pathlib import Path

import pytest

from rayrec.families.ranker.task import RankingConfig
from rayrec.registry import RegistryError, resolve_model
from rayrec.training.tracking import Tracker
from rayrec.typed_json import from_json


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_run_holds_its_whole_config_and_metrics(runs: Path) -> None:
    tracker = Tracker()
    config = RankingConfig(task_weights={"click": 2.0})
    run = tracker.start("a-run", config)
    tracker.log_metrics(run, {"valid/click/auc": 0.7, "undefined": None, "nan": float("nan")}, step=3)
    stored = tracker.get(run).data
    assert stored.params["task_weights.click"] == "2.0"
    assert stored.metrics == {"valid/click/auc": 0.7}
    assert from_json(RankingConfig, tracker.config_text(run)) == config


def test_an_alias_follows_the_newest_registration_and_can_go_back(runs: Path, bundle_folder: Path) -> None:
    tracker = Tracker()
    for _ in range(2):
        run = tracker.start("a-run", RankingConfig())
        tracker.log_folder(run, bundle_folder, "bundle")
        tracker.register(run, "ranker")
    assert resolve_model("models:/ranker@serving").version == "2"
    assert (resolve_model("models:/ranker/1").path / "config.json").is_file()
    tracker.point_alias("ranker", "serving", "1")
    assert resolve_model("models:/ranker@serving").version == "1"


def test_a_folder_resolves_to_itself(bundle_folder: Path) -> None:
    resolved = resolve_model(str(bundle_folder))
    assert (resolved.path, resolved.version) == (bundle_folder, "unregistered")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/ranker", "not of the form"),
        ("models:/nobody@serving", "not in the registry"),
        ("models:/nobody/1", "not in the registry"),
        ("no/such/folder", "neither a folder nor"),
    ],
)
def test_a_reference_to_nothing_is_one_clear_error(runs: Path, reference: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        resolve_model(reference)
