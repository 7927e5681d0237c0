"""A trained model on disk: a folder of JSON and safetensors that can be wrong, but can never run code.

<bundle>/config.json         kind, model config, metrics, the run's whole config, versions, sha256 of every other file
<bundle>/model.safetensors   weights and buffers

What else lies in it is the family's: ``rayrec.families.<family>.bundle``.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import rayrec
from rayrec.errors import UserError
from rayrec.files import check_replaceable, whole_folder, write_text_atomically
from rayrec.meta_device import on_meta_device
from rayrec.typed_json import ConfigError, from_json, to_json, to_plain

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

M = TypeVar("M", bound=nn.Module)
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Beyond what any model here has; within it, describing a model takes a second or two at most.
_LARGEST, _MOST_ELEMENTS = 2**31, 10_000
_MOST_MODULES, _COUNTS_OF_MODULES = 256, ("layers", "experts", "levels", "heads", "depth", "blocks")
_MOST_CONFIG_BYTES, _MOST_TEXT_BYTES, _MOST_HEADER_BYTES = 64 * 2**20, 2 * 2**30, 100 * 2**20


class BundleError(UserError):
    """A bundle that is incomplete, altered, of another version, or does not fit its own config."""


@dataclass(frozen=True)
class BundleMetadata:
    """What ``config.json`` holds.

    kind: the family's name. metrics: split -> task -> metric -> value (None where undefined).
    """

    kind: str
    model_config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    run_config: Mapping[str, Any]
    sha256: Mapping[str, str]
    created: str
    rayrec: str
    torch: str
    format: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Parts:
    """What a family puts into its bundles. model: what the weights are of, None where there is nothing to learn.

    texts: further JSON by file name. files: others by name, and what writes each.
    """

    kind: str
    model: nn.Module | None
    model_config: Any
    texts: Mapping[str, str]
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def write_bundle(
    folder: Path | str,
    parts: Parts,
    *,
    metrics: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    run_config: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a bundle of any kind, whole or not at all: ``config.json``, the weights, the texts and files.

    Raises BundleError when ``folder`` exists and ``overwrite`` is false, or is anything but a bundle.
    """
    folder = Path(folder)
    check_bundle_place(folder, overwrite=overwrite)
    with whole_folder(folder, CONFIG, overwrite=overwrite, error=BundleError) as partial:
        names = [*parts.texts, *parts.files]
        if parts.model is not None:
            names.insert(0, WEIGHTS)
            weights = {name: t.detach().cpu().contiguous() for name, t in parts.model.state_dict().items()}
            save_file(weights, partial / WEIGHTS)
        for name, text in parts.texts.items():
            write_text_atomically(partial / name, text)
        for name, write in parts.files.items():
            write(partial / name)
        metadata = BundleMetadata(
            kind=parts.kind,
            model_config=to_plain(parts.model_config),
            metrics=metrics,
            run_config=run_config,
            sha256={name: _sha256(partial / name) for name in names},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            rayrec=rayrec.__version__,
            torch=torch.__version__,
        )
        write_text_atomically(partial / CONFIG, to_json(metadata))
    return folder


def check_bundle_place(folder: Path, *, overwrite: bool) -> None:
    """Raises BundleError unless a bundle may be written there.

    With ``overwrite`` one of any kind and version may go, but no other folder with a config.json, as models of other libraries.
    """
    check_replaceable(folder, CONFIG, overwrite=overwrite, error=BundleError)
    if (file := folder / CONFIG).is_file():
        try:
            found = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            found = None
        if not (isinstance(found, dict) and {"kind", "sha256", "rayrec"} <= found.keys()):
            raise BundleError(f"{folder}: its {CONFIG} is no bundle's, so it is not overwritten; choose another name")


def read_metadata(
    folder: Path, kind: str, texts: Sequence[str], *, weights: bool = True, most_bytes: int = _MOST_TEXT_BYTES
) -> BundleMetadata:
    """A bundle's metadata after a check of its kind, the sizes it declares, and its ``texts`` (there, unchanged, not larger than
    ``most_bytes``).

    weights: whether it has some; they are looked at by ``load_model``. Raises BundleError.
    """
    metadata = _read_config(folder)
    if metadata.kind != kind:
        raise BundleError(f"{folder}: holds a {metadata.kind}, not a {kind}")
    _check_sizes(metadata.model_config, f"{folder / CONFIG}: model_config")
    for name in texts:
        _check_file(folder / name, most_bytes)
        _check_hash(folder / name, metadata)
    if weights and not (folder / WEIGHTS).is_file():
        raise BundleError(f"{folder}: {WEIGHTS} is missing")
    return metadata


def bundle_kind(folder: Path | str) -> str:
    """What a bundle holds: the name of a family, as "ranker"; nothing else of it is read. Raises BundleError."""
    return _read_config(Path(folder)).kind


def _read_config(folder: Path) -> BundleMetadata:
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle folder")
    _check_file(folder / CONFIG, _MOST_CONFIG_BYTES)
    try:
        return from_json(BundleMetadata, (folder / CONFIG).read_bytes(), str(folder / CONFIG))
    except ConfigError as error:
        raise BundleError(str(error)) from None


def load_model(build: Callable[[], M], folder: Path, metadata: BundleMetadata) -> M:
    """The model that ``build`` makes, with the bundle's weights. Raises BundleError.

    A bundle's word is not taken for its file: ``build`` runs first without memory (torch's "meta" device), and what it declares
    is compared with the header of the weights (names, shapes, dtypes, the file's size) before anything is allocated or hashed.
    So ``build`` may look at no values of its tensors, and a bundle takes no more memory than its weights have bytes.
    """
    file = folder / WEIGHTS
    with _building(folder), on_meta_device():
        expected = build().state_dict()
    _check_header(expected, file)
    _check_hash(file, metadata)
    with _building(folder):  # initial values are drawn now
        model = build()
    try:
        model.load_state_dict(load_file(file))
    except SafetensorError as error:
        raise BundleError(f"{file}: {error}") from None
    return model


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    """What a model's constructor raises becomes a BundleError."""
    try:
        yield
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / CONFIG}: no model can be made of its model_config: {error}") from None


def _check_sizes(value: Any, where: str) -> None:
    """Bounds whatever a config declares, so that a model of it can at least be described. Raises BundleError."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, int) and key.endswith(_COUNTS_OF_MODULES) and abs(inner) > _MOST_MODULES:
                raise BundleError(f"{where}.{key}: {inner:,} is more than {_MOST_MODULES:,}")
            _check_sizes(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        if len(value) > _MOST_ELEMENTS:
            raise BundleError(f"{where}: {len(value):,} elements are more than {_MOST_ELEMENTS:,}")
        for i, inner in enumerate(value):
            _check_sizes(inner, f"{where}[{i}]")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise BundleError(f"{where}: {value:,} is larger than {_LARGEST:,}")


def _check_file(file: Path, most_bytes: int) -> None:
    if not file.is_file():
        raise BundleError(f"{file.parent}: {file.name} is missing")
    if (size := file.stat().st_size) > most_bytes:
        raise BundleError(f"{file}: {size:,} bytes are more than {most_bytes:,}")


def _check_hash(file: Path, metadata: BundleMetadata) -> None:
    if _sha256(file) != metadata.sha256.get(file.name):
        raise BundleError(f"{file}: does not match the sha256 in {CONFIG}; it was changed or cut")


def _check_header(expected: Mapping[str, torch.Tensor], file: Path) -> None:
    found, size = _read_header(file)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise BundleError(f"{file}: tensor {name!r} is missing")
        if name not in expected:
            raise BundleError(f"{file}: tensor {name!r} is not part of this model")
        dtype, shape = found[name]
        if shape != tuple(expected[name].shape):
            wanted = tuple(expected[name].shape)
            raise BundleError(f"{file}: tensor {name!r} has shape {shape}, the model expects {wanted}")
        if dtype != expected[name].dtype:
            raise BundleError(f"{file}: tensor {name!r} is {dtype}, the model expects {expected[name].dtype}")
    whole = size + sum(tensor.numel() * tensor.itemsize for tensor in expected.values())
    if file.stat().st_size != whole:
        raise BundleError(
            f"{file}: has {file.stat().st_size:,} bytes, its header declares {whole:,}; it was changed or cut"
        )


def _read_header(file: Path) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...]]], int]:
    """dtype and shape of each tensor of a safetensors file, and the bytes before their values. Raises BundleError.

    The format: eight bytes (little endian) tell the length of a JSON object, which follows; the values lie behind it.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise BundleError(f"{file}: no safetensors file: a header of {length:,} bytes")
        header = stream.read(length)
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        return {name: (_DTYPES[t["dtype"]], tuple(map(int, t["shape"]))) for name, t in tensors.items()}, 8 + length
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{file}: no safetensors file of known dtypes: {type(error).__name__}: {error}") from None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
