"""A ranker's bundle: beside weights and config, ``schema.json``, the fitted schema of the log it was trained on."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rayrec.bundle import CONFIG, BundleError, BundleMetadata, Parts, load_model, read_metadata
from rayrec.data.log.schema import LogSchema, read_schema
from rayrec.families.ranker.task import RankerConfig, ranker_inputs
from rayrec.models.ranker import Ranker
from rayrec.typed_json import ConfigError, from_plain, to_json

SCHEMA = "schema.json"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; ``model`` is in evaluation mode."""

    path: Path
    kind: str
    schema: LogSchema
    model: Ranker
    metadata: BundleMetadata


def ranker_parts(model: Ranker, model_config: RankerConfig, schema: LogSchema) -> Parts:
    return Parts("ranker", model, model_config, {SCHEMA: to_json(schema)})


def load_bundle(folder: Path | str, device: torch.device | str = "cpu") -> Bundle:
    """Read and check a bundle: files, hashes, format version, schema against model, shapes.

    Raises BundleError that says what is wrong; nothing in a bundle is ever unpickled or executed.
    """
    folder = Path(folder)
    metadata = read_metadata(folder, "ranker", (SCHEMA,))
    try:
        schema = read_schema(folder / SCHEMA)
        config = from_plain(RankerConfig, dict(metadata.model_config), f"{folder / CONFIG}: model_config")
        if replace(config.inputs, auxiliary_heads=0) != ranker_inputs(schema):
            raise BundleError(f"{folder}: the model's inputs do not fit {SCHEMA}")
    except ConfigError as error:  # SchemaError is one
        raise BundleError(str(error)) from None
    model = load_model(lambda: Ranker(config.inputs, config.architecture), folder, metadata)
    return Bundle(folder, metadata.kind, schema, model.to(device).eval(), metadata)


def read_ranker_schema(folder: Path | str) -> LogSchema:
    """What a ranker's bundle reads, without its weights. Raises BundleError."""
    folder = Path(folder)
    read_metadata(folder, "ranker", (SCHEMA,))
    try:
        return read_schema(folder / SCHEMA)
    except ConfigError as error:
        raise BundleError(str(error)) from None
