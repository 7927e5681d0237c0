"""Bundles: what is saved is what is loaded, and a wrong bundle says what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayrec.bundle import BundleError
from rayrec.data.log import Log
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.bundle import load_bundle, save_bundle
from rayrec.families.ranker.task import RankingConfig, RankingTask


@pytest.fixture
def saved(small_log: Path, tmp_path: Path) -> tuple[Path, RankingTask, torch.nn.Module]:
    schema = Log.open(small_log).schema
    task = RankingTask(schema, RankingConfig())
    model = task.build().eval()
    folder = save_bundle(
        tmp_path / "bundle",
        model=model,
        model_config=task.model_config,
        schema=schema,
        metrics={"test": {"click": {"auc": 0.7, "normalized_entropy": None}}},
        run_config={"log": "somewhere"},
    )
    return folder, task, model


def test_a_loaded_model_gives_the_same_logits(saved, small_log: Path) -> None:
    folder, _, model = saved
    bundle = load_bundle(folder)
    with LogStream(Log.open(small_log), "test", StreamConfig(batch_size=256, reader="in_process")) as stream:
        batch = next(stream.epoch_batches())
    with torch.no_grad():
        assert torch.equal(bundle.model(batch), model(batch))
    assert bundle.schema == Log.open(small_log).schema
    assert bundle.metadata.metrics["test"]["click"] == {"auc": 0.7, "normalized_entropy": None}


@pytest.mark.parametrize("name", ["config.json", "schema.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name: str) -> None:
    (saved[0] / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(saved[0])


@pytest.mark.parametrize("name", ["schema.json", "model.safetensors"])
def test_a_changed_file_is_refused(saved, name: str) -> None:
    file = saved[0] / name
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    with pytest.raises(BundleError, match=f"{name}.*sha256"):
        load_bundle(saved[0])


def _resign(folder: Path) -> None:
    import hashlib

    config = json.loads((folder / "config.json").read_text())
    config["sha256"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(saved) -> None:
    weights = load_file(saved[0] / "model.safetensors")
    name = sorted(n for n, t in weights.items() if t.dim() == 2)[0]
    rows, columns = weights[name].shape
    weights[name] = torch.zeros(rows + 1, columns)
    save_file(weights, saved[0] / "model.safetensors")
    _resign(saved[0])
    with pytest.raises(BundleError, match=rf"{name}.*\({rows + 1}, {columns}\).*\({rows}, {columns}\)"):
        load_bundle(saved[0])


def test_an_unknown_config_field_is_named(saved) -> None:
    config = json.loads((saved[0] / "config.json").read_text())
    config["surprise"] = 1
    (saved[0] / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="surprise"):
        load_bundle(saved[0])


def test_a_bundle_that_exists_is_not_overwritten_by_accident(saved, small_log: Path) -> None:
    folder, task, model = saved
    with pytest.raises(BundleError, match="exists already"):
        save_bundle(folder, model=model, model_config=task.model_config, schema=task.schema, metrics={}, run_config={})
