"""Bundles: what is saved is what is loaded, and a wrong bundle says what is wrong."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayrec.bundle import BundleError, load_model, read_metadata, write_bundle
from rayrec.data.log import Log
from rayrec.data.log.schema import DenseFeature, LogSchema, SchemaError, TaskLabel
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.bundle import load_bundle, ranker_parts
from rayrec.families.ranker.task import RankingConfig, RankingTask


@pytest.fixture
def saved(small_log: Path, tmp_path: Path) -> tuple[Path, RankingTask, torch.nn.Module]:
    schema = Log.open(small_log).schema
    task = RankingTask(schema, RankingConfig())
    model = task.build().eval()
    folder = write_bundle(
        tmp_path / "bundle",
        ranker_parts(model, task.model_config, schema),
        metrics={"test": {"click": {"auc": 0.7, "normalized_entropy": None}}},
        run_config={"log": "somewhere"},
    )
    return folder, task, model


def test_a_loaded_model_gives_the_same_logits(saved, small_log: Path) -> None:
    folder, _, model = saved
    bundle = load_bundle(folder)
    with LogStream(Log.open(small_log), "test", StreamConfig(batch_size=256)) as stream:
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


def _resign(folder: Path, *names: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in names or ("model.safetensors",):
        config["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
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
        write_bundle(folder, ranker_parts(model, task.model_config, task.schema), metrics={}, run_config={})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.bfloat16], ids=str)
def test_a_tensor_of_another_dtype_is_named_with_both_dtypes(saved, dtype: torch.dtype) -> None:
    weights = load_file(saved[0] / "model.safetensors")
    name = sorted(n for n, t in weights.items() if t.dim() == 2)[0]
    weights[name] = weights[name].to(dtype)
    save_file(weights, saved[0] / "model.safetensors")
    _resign(saved[0])
    with pytest.raises(BundleError, match=rf"{name}.* is {dtype}, the model expects torch.float32"):
        load_bundle(saved[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            ("architecture", "trunk"),
            [2**30, 2**30],
            r"has shape \(2, 128, 64\), the model expects \(2, 1073741824, 64\)",
        ),
        (("architecture", "embedding_dim"), 2**31, "no model can be made of its model_config: Storage size"),
        (("architecture", "trunk"), [2**40], r"model_config.architecture.trunk\[0\]: 1,099,511,627,776 is larger than"),
        (("architecture", "cross_layers"), 10**9, "cross_layers: 1,000,000,000 is more than 256"),
        (("architecture", "experts"), 10**9, "experts: 1,000,000,000 is more than 256"),
        (("architecture", "trunk"), [1] * 20_000, "trunk: 20,000 elements are more than 10,000"),
    ],
)
def test_a_config_of_absurd_sizes_is_refused_before_anything_is_allocated(
    saved, monkeypatch: pytest.MonkeyPatch, field: tuple[str, str], value: object, message: str
) -> None:
    config = json.loads((saved[0] / "config.json").read_text())
    config["model_config"][field[0]][field[1]] = value
    (saved[0] / "config.json").write_text(json.dumps(config))
    normal = torch.nn.init.normal_

    def described_only(tensor: torch.Tensor, *args: float, **options: float) -> torch.Tensor:
        assert tensor.is_meta
        return normal(tensor, *args, **options)

    monkeypatch.setattr(torch.nn.init, "normal_", described_only)
    with pytest.raises(BundleError, match=message) as refused:
        load_bundle(saved[0])
    assert "\n" not in str(refused.value)


def test_initial_values_that_cannot_be_drawn_are_refused_in_one_line(saved) -> None:
    folder, task, _ = saved

    def build() -> torch.nn.Module:
        model = task.build()
        torch.nn.init.normal_(next(model.parameters()), std=-1.0)
        return model

    metadata = read_metadata(folder, "ranker", ("schema.json",))
    with pytest.raises(BundleError, match=r"no model can be made of its model_config: .*std"):
        load_model(build, folder, metadata)


@pytest.mark.parametrize("name", ["config.json", "schema.json", "model.safetensors"])
def test_a_huge_sparse_file_is_refused_without_reading_it(saved, name: str) -> None:
    os.truncate(saved[0] / name, 2**40)
    with pytest.raises(BundleError, match=rf"{name}.* 1,099,511,627,776 bytes"):
        load_bundle(saved[0])


@pytest.mark.parametrize(
    "header", [b"[" * 200_000, b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}']
)
def test_a_header_that_no_json_reader_gets_through_is_refused(saved, header: bytes) -> None:
    (saved[0] / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    _resign(saved[0])
    with pytest.raises(BundleError, match=r"model\.safetensors: no safetensors file"):
        load_bundle(saved[0])


def test_a_header_that_declares_a_huge_header_is_refused(saved) -> None:
    (saved[0] / "model.safetensors").write_bytes((2**50).to_bytes(8, "little"))
    _resign(saved[0])
    with pytest.raises(BundleError, match="no safetensors file: a header of 1,125,899,906,842,624 bytes"):
        load_bundle(saved[0])


def test_a_schema_of_too_many_features_is_refused_by_their_number_alone(saved) -> None:
    schema = json.loads((saved[0] / "schema.json").read_text())
    schema["features"] = [{"name": f"f{i}", "kind": "dense", "transform": "none"} for i in range(100_000)]
    (saved[0] / "schema.json").write_text(json.dumps(schema))
    _resign(saved[0], "schema.json")
    with pytest.raises(BundleError, match=r"features: .* at most 10000 items.* \(given: 100,000 values\)"):
        load_bundle(saved[0])


def test_columns_of_a_wide_schema_are_compared_in_linear_time() -> None:
    compared = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return str.__eq__(self, other)

    features = tuple(DenseFeature(Name(f"f{i}"), transform="none") for i in range(10_000))
    LogSchema("wide", features, (TaskLabel("click"),))
    with pytest.raises(SchemaError, match=r"columns used twice: f7$"):
        LogSchema("wide", (*features, DenseFeature(Name("f7"), transform="none")), (TaskLabel("click"),))
    assert 0 < len(compared) < 20 * len(features)
