"""A trained bundle that scores rows: whole logs file by file (``log_scoring``), or batches on their way into training."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rayrec.batch import Batch
from rayrec.data.log import Log
from rayrec.data.log.schema import LogSchema, SchemaError, encoded_alike
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.ranker.bundle import Bundle, load_bundle
from rayrec.methods.calibration import Calibration, fit_isotonic, fit_platt
from rayrec.typed_json import ConfigError

_CALIBRATION_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class CalibrationConfig:
    """How scores are calibrated before use: fitted on the observed labels of one split of a labeled log."""

    log: Path
    """Folder of the labeled log on whose observed labels the map is fitted."""
    method: Literal["platt", "isotonic"] = "platt"
    """A logistic curve over logits (Platt), or a monotone step function (isotonic)"""
    split: Literal["train", "valid", "test"] = "valid"
    """The part of the log it is fitted on."""


@dataclass(frozen=True)
class Scorer:
    """A frozen model and the calibration of its tasks (those not named: none)."""

    bundle: Bundle
    calibrations: Mapping[str, Calibration]

    @staticmethod
    def load(
        folder: Path, calibration: CalibrationConfig | None = None, device: torch.device | str = "cpu"
    ) -> "Scorer":
        """Raises BundleError for a broken bundle, ConfigError for a log on which its calibration cannot be fitted."""
        bundle = load_bundle(folder, device)
        return Scorer(bundle, {} if calibration is None else fit_calibrations(bundle, calibration))

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.bundle.schema.task_names

    @torch.no_grad()
    def probabilities(self, batch: Batch) -> Tensor:
        """(B, T) float32 of a batch with the bundle's own features, on the model's device."""
        logits: Tensor = self.bundle.model(batch).float()
        columns = [
            self.calibrations[task](logits[:, i]) if task in self.calibrations else logits[:, i].sigmoid()
            for i, task in enumerate(self.tasks)
        ]
        return torch.stack(columns, dim=1).float()


def fit_calibrations(bundle: Bundle, config: CalibrationConfig) -> dict[str, Calibration]:
    """One calibration a task. Raises ConfigError naming the task that has no observed label of one kind in the split."""
    log = Log.open(config.log)
    absent = [name for name in bundle.schema.task_names if name not in log.schema.task_names]
    if absent:
        raise ConfigError(f"{log.path}: no labels of {', '.join(absent)} to calibrate on")
    view = Log(log.path, replace(features_of(bundle.schema, log.schema, log.path), tasks=bundle.schema.tasks))
    device = next(bundle.model.parameters()).device
    stream_config = StreamConfig(_CALIBRATION_BATCH_ROWS, shuffle=False, drop_last=False)
    rows: list[tuple[Tensor, Tensor, Tensor | None]] = []
    with closing(LogStream(view, config.split, stream_config)) as stream, torch.no_grad():
        for batch in stream.epoch_batches():
            rows.append((bundle.model(batch.to(device)).float().cpu(), batch.labels, batch.weights))
    logits, labels = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    weights = None if rows[0][2] is None else torch.cat([r[2] for r in rows if r[2] is not None])
    fit = fit_platt if config.method == "platt" else fit_isotonic
    calibrations: dict[str, Calibration] = {}
    for i, task in enumerate(bundle.schema.task_names):
        seen = ~labels[:, i].isnan()
        try:
            calibrations[task] = fit(logits[seen, i], labels[seen, i], None if weights is None else weights[seen])
        except ValueError as error:
            raise ConfigError(f"{log.path}, split {config.split!r}, task {task!r}: {error}") from None
    return calibrations


def features_of(wanted: LogSchema, found: LogSchema, where: Path) -> LogSchema:
    """``found`` with the features of ``wanted`` only. Raises SchemaError naming one that is absent or encoded otherwise."""
    by_name = {feature.name: feature for feature in found.features}
    for feature in wanted.features:
        if feature.name not in by_name:
            raise SchemaError(f"{where}: the model reads feature {feature.name!r}, which this log lacks")
        if not encoded_alike(by_name[feature.name], feature):
            raise SchemaError(
                f"{where}: feature {feature.name!r} is not encoded as the model was trained; use one schema for both"
            )
    return found.with_features(wanted.features)
