"""The ranking task: masked multi-task cross-entropy on a log, judged by normalized entropy, AUC and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.batch import Batch
from rayrec.data.schema import LogSchema
from rayrec.metrics import BinaryMetrics
from rayrec.models.ranker import Ranker, RankerArchitecture, RankerInputs
from rayrec.tasks.task import Evaluation, Loss
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class RankerConfig:
    """All that is needed to build a ranker again: what goes in, and how it is made."""

    inputs: RankerInputs
    architecture: RankerArchitecture


@dataclass(frozen=True)
class RankingConfig:
    """What is learned.

    task_weights: weight of a task's loss by task name; tasks not named weigh 1.
    objective: what early stopping and sweeps watch: the mean over tasks on the validation split.
    """

    architecture: RankerArchitecture = field(default_factory=RankerArchitecture)
    task_weights: Mapping[str, float] = field(default_factory=dict)
    objective: Literal["normalized_entropy", "log_loss", "auc"] = "normalized_entropy"


def ranker_inputs(schema: LogSchema) -> RankerInputs:
    """The model's input layer as a fitted schema declares it. Raises SchemaError when the schema is not fitted."""
    statistics = [feature.statistics for feature in schema.dense]
    fields = [feature.name for feature in schema.categorical]
    return RankerInputs(
        dense_mean=tuple(s.mean if s else 0.0 for s in statistics),
        dense_std=tuple(s.std if s else 1.0 for s in statistics),
        dense_log1p=tuple(feature.transform == "log1p" for feature in schema.dense),
        dense_missing=tuple(s is not None and s.missing_share > 0 for s in statistics),
        categorical_sizes=tuple(feature.size for feature in schema.categorical),
        sequence_sizes=tuple(schema.encoder_of(sequence).size for sequence in schema.sequences),
        sequence_shares=tuple(fields.index(s.shares) if s.shares is not None else None for s in schema.sequences),
        num_tasks=len(schema.tasks),
    )


class RankingTask:
    """Ties a ranker to a log's schema. Raises ConfigError when a task weight names no task of the schema."""

    def __init__(self, schema: LogSchema, config: RankingConfig) -> None:
        unknown = sorted(set(config.task_weights) - set(schema.task_names))
        if unknown:
            raise ConfigError(
                f"task_weights names no task: {', '.join(unknown)}; tasks: {', '.join(schema.task_names)}"
            )
        negative = sorted(name for name, weight in config.task_weights.items() if not weight >= 0)
        if negative:
            raise ConfigError(f"task_weights must be at least 0: {', '.join(negative)}")
        self.schema = schema
        self.config = config
        self.model_config = RankerConfig(ranker_inputs(schema), config.architecture)
        self._weights = torch.tensor([config.task_weights.get(name, 1.0) for name in schema.task_names])

    def build(self) -> Ranker:
        return Ranker(self.model_config.inputs, self.model_config.architecture)

    def loss(self, model: nn.Module, batch: Batch, unlabeled: Batch | None = None) -> Loss:
        """Sum over tasks of weight * mean cross-entropy on the rows where the task's label is observed."""
        logits = model(batch).float()  # (B, T)
        per_task = masked_cross_entropy(logits, batch.labels, batch.weights)  # (T,)
        total = (per_task * self._weights.to(per_task.device)).sum()
        parts = dict(zip((f"loss/{name}" for name in self.schema.task_names), per_task.detach().unbind(), strict=True))
        return Loss(total, {"loss": total.detach(), **parts}, logits.detach())

    def new_evaluation(self) -> BinaryMetrics:
        return BinaryMetrics(len(self.schema.tasks))

    def summarize(self, evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
        """rows, positives, log_loss, normalized_entropy, auc, ece, calibration_ratio by task; None where undefined."""
        assert isinstance(evaluation, BinaryMetrics)
        names = ("rows", "positives", "log_loss", "normalized_entropy", "auc", "ece", "calibration_ratio")
        return {
            task: {name: _defined(getattr(result, name)) for name in names}
            for task, result in zip(self.schema.task_names, evaluation.compute(), strict=True)
        }

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        """Mean of the chosen metric over the tasks where it is defined. Raises ConfigError when it is nowhere."""
        values = [value for task in summary.values() if (value := task[self.config.objective]) is not None]
        if not values:
            raise ConfigError(f"{self.config.objective} is undefined for every task: no task has both labels observed")
        return sum(values) / len(values)

    @property
    def objective_name(self) -> str:
        return f"valid/mean_{self.config.objective}"

    @property
    def objective_mode(self) -> Literal["min", "max"]:
        return "max" if self.config.objective == "auc" else "min"


def masked_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Per-task mean binary cross-entropy (T,) over observed rows: logits (B, T), labels (B, T) with NaN = unobserved.

    A task observed on no row gives 0. Under torch.distributed the mean is over the rows of *all* workers, so that averaging
    gradients over workers equals one worker with the joint batch, however unevenly the observed rows fall.
    """
    observed = ~labels.isnan()
    row_weights = observed.float() if weights is None else observed * weights.unsqueeze(1)
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    counts = row_weights.sum(0)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts)
        counts = counts / dist.get_world_size()
    return (losses * row_weights).sum(0) / counts.clamp_min(1e-12)


def _defined(value: float) -> float | None:
    return None if value != value else float(value)
