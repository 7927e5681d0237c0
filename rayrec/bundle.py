"""A trained model on disk: a folder of JSON and safetensors that can be wrong, but can never run code.

<bundle>/config.json         kind, model config, metrics, the run's whole config, versions, sha256 of every other file
<bundle>/model.safetensors   weights and buffers

What else lies in it is the family's: ``rayrec.families.<family>.bundle``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import rayrec
from rayrec.errors import UserError
from rayrec.files import whole_folder, write_text_atomically
from rayrec.typed_json import ConfigError, from_json, to_json, to_plain

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class BundleError(UserError):
    """A bundle that is incomplete, altered, of another version, or does not fit its own config."""


@dataclass(frozen=True)
class BundleMetadata:
    """What ``config.json`` holds. ``metrics``: split -> task -> metric -> value (None where undefined)."""

    kind: Literal["ranker", "language_model", "retriever"]
    model_config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    run_config: Mapping[str, Any]
    sha256: Mapping[str, str]
    created: str
    rayrec: str
    torch: str
    format: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def write_model(
    folder: Path | str,
    *,
    kind: Literal["ranker", "language_model", "retriever"],
    model: nn.Module,
    model_config: Any,
    texts: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    run_config: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a bundle of any kind, whole or not at all: ``config.json``, the weights, and further JSON ``texts`` by file name."""
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise BundleError(f"{folder}: exists already")
    with whole_folder(folder) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}, partial / WEIGHTS)
        for name, text in texts.items():
            write_text_atomically(partial / name, text)
        metadata = BundleMetadata(
            kind=kind,
            model_config=to_plain(model_config),
            metrics=metrics,
            run_config=run_config,
            sha256={name: _sha256(partial / name) for name in (WEIGHTS, *texts)},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            rayrec=rayrec.__version__,
            torch=torch.__version__,
        )
        write_text_atomically(partial / CONFIG, to_json(metadata))
    return folder


def read_metadata(folder: Path, kind: str, texts: Sequence[str]) -> BundleMetadata:
    """A bundle's metadata after a check of its files (weights and ``texts``), hashes and kind. Raises BundleError."""
    metadata = _read_config(folder)
    if metadata.kind != kind:
        raise BundleError(f"{folder}: holds a {metadata.kind}, not a {kind}")
    for name in (WEIGHTS, *texts):
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: {name} is missing")
        if _sha256(folder / name) != metadata.sha256.get(name):
            raise BundleError(f"{folder / name}: does not match the sha256 in {CONFIG}; it was changed or cut")
    return metadata


def bundle_kind(folder: Path | str) -> str:
    """What a bundle holds: "ranker", "language_model" or "retriever"; nothing else of it is read. Raises BundleError."""
    return _read_config(Path(folder)).kind


def _read_config(folder: Path) -> BundleMetadata:
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle folder")
    if not (folder / CONFIG).is_file():
        raise BundleError(f"{folder}: {CONFIG} is missing")
    try:
        return from_json(BundleMetadata, (folder / CONFIG).read_bytes(), str(folder / CONFIG))
    except ConfigError as error:
        raise BundleError(str(error)) from None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a bundle's weights into a model of exactly their names and shapes. Raises BundleError."""
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise BundleError(f"{folder / WEIGHTS}: {error}") from None
    _check_shapes(model, weights, folder / WEIGHTS)
    model.load_state_dict(weights)


def _check_shapes(model: nn.Module, weights: Mapping[str, torch.Tensor], file: Path) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise BundleError(f"{file}: tensor {name!r} is missing")
        if name not in expected:
            raise BundleError(f"{file}: tensor {name!r} is not part of this model")
        if weights[name].shape != expected[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(expected[name].shape)
            raise BundleError(f"{file}: tensor {name!r} has shape {found}, the model expects {wanted}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
