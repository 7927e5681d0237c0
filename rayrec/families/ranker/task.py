"""The ranking task: masked multi-task cross-entropy on a log, judged by normalized entropy, AUC and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.batch import Batch
from rayrec.data.log.schema import LogSchema
from rayrec.families.ranker.balancing_json import AnyBalancing
from rayrec.methods.balancing import Balancer
from rayrec.methods.distillation import DistillationConfig, distillation_terms
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.methods.perturbation import Perturbation, PerturbationConfig, PerturbedPair, divergence, perturbed_loss
from rayrec.metrics import BinaryMetrics
from rayrec.models.ranker import Ranker, RankerArchitecture, RankerInputs
from rayrec.training.task import Evaluation, Loss
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
    balancing: MultiBalance or another way to combine the tasks' gradients; None = the sum.
    perturbation: SCR or LSPR; None = none.
    distillation: UKDSL: learn from a teacher's scores, on unlabeled rows too; None = not.
    inverse_propensity: weigh labeled rows by their propensities; None = not.
    known_features_split: also judge apart the rows with fewer known features than that, and those with as many or more: metrics
    ``<metric>_few_known`` and ``<metric>_many_known`` of each task; None = not.
    """

    architecture: RankerArchitecture = field(default_factory=RankerArchitecture)
    task_weights: Mapping[str, float] = field(default_factory=dict)
    objective: Literal["normalized_entropy", "log_loss", "auc"] = "normalized_entropy"
    balancing: AnyBalancing | None = None
    perturbation: PerturbationConfig | None = None
    distillation: DistillationConfig | None = None
    inverse_propensity: InversePropensity | None = None
    known_features_split: int | None = None


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
    """Ties a ranker to a log's schema. Raises ConfigError when the config names no task of the schema.

    distilled: names of the tasks that learn from a teacher. heads: a name for each of the model's heads: the tasks, and with
    auxiliary heads ``<task>_teacher`` for each distilled one.
    """

    curve_metrics = ("normalized_entropy", "auc", "log_loss")

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
        self.distilled = _distilled_tasks(schema, config.distillation)
        auxiliary = config.distillation is not None and config.distillation.head == "auxiliary"
        own_heads = self.distilled if auxiliary else ()
        self.heads = (*schema.task_names, *(f"{name}_teacher" for name in own_heads))
        inputs = replace(ranker_inputs(schema), auxiliary_heads=len(own_heads))
        self.model_config = RankerConfig(inputs, config.architecture)
        self._weights = torch.tensor([config.task_weights.get(name, 1.0) for name in (*schema.task_names, *own_heads)])
        first = len(schema.tasks)
        places = range(first, first + len(own_heads)) if auxiliary else map(schema.task_names.index, self.distilled)
        self._distilled_heads = torch.tensor(list(places), dtype=torch.int64)
        self.balancer: Balancer | None = None
        if config.balancing is not None:
            try:
                self.balancer = config.balancing.balancer(len(self.heads), self._representation_width())
            except ValueError as error:
                raise ConfigError(f"balancing: {error}") from None
        self.perturbation: Perturbation | None = None
        if config.perturbation is not None and config.perturbation.strength > 0:
            self.perturbation = Perturbation(config.perturbation)
        methods = {"balancer": self.balancer, "perturbation": self.perturbation}
        self.methods: nn.Module = nn.ModuleDict(
            {name: method for name, method in methods.items() if method is not None}
        )

    def build(self) -> Ranker:
        return Ranker(self.model_config.inputs, self.model_config.architecture)

    def labeled_extras(self, *, taught: bool = False) -> tuple[str, ...]:
        """Columns that labeled batches need beside features and labels; taught: a teacher in the loop brings its own."""
        distillation, weighing = self.config.distillation, self.config.inverse_propensity
        scores = (
            self.teacher_columns if distillation is not None and distillation.labeled_weight > 0 and not taught else ()
        )
        return (*scores, *(() if weighing is None else (weighing.column,)))

    def unlabeled_extras(self, *, taught: bool = False) -> tuple[str, ...]:
        """The same of unlabeled batches."""
        distillation = self.config.distillation
        return (
            self.teacher_columns
            if distillation is not None and distillation.unlabeled_weight > 0 and not taught
            else ()
        )

    def sizes(self, model: nn.Module, batch: Batch) -> Tensor:
        """(T,) weight of the rows where the task's label is observed; a method's means run over the rows of all workers."""
        return observed_weights(batch.labels, self._row_weights(batch)).sum(0)

    def loss(
        self, model: nn.Module, batch: Batch, unlabeled: Batch | None = None, joint_sizes: Tensor | None = None
    ) -> Loss:
        """Sum over heads of weight * mean cross-entropy on the rows where the task's label is observed; with methods, theirs.

        All rows that a method adds go through the towers in one pass, behind those of ``batch``.
        """
        assert isinstance(model, Ranker)
        weights = self._row_weights(batch)
        batch = replace(batch, weights=weights)
        x = model.embed(batch)
        pairs = [] if self.perturbation is None else self.perturbation.pairs(model, batch, x, unlabeled)
        blocks = [x, *(block for pair in pairs for block in pair.blocks)]
        scored = self._scored_block(model, unlabeled, pairs, blocks)
        h = _represent(model, blocks)
        inputs = h if self.balancer is None else self.balancer.branch(h)
        outputs = model.heads(inputs).float()  # (all rows, H)
        predicted = outputs.split([len(block) for block in blocks]) if len(blocks) > 1 else (outputs,)
        logits, *others = (block[:, : len(self.schema.tasks)] for block in predicted)  # (rows, T) each
        per_task = masked_cross_entropy(logits, batch.labels, weights, joint_sizes)  # (T,)
        named = {"loss": per_task}
        losses = per_task
        if self.perturbation is not None:
            named["perturbed"] = _perturbed(self.perturbation.config, pairs, batch, logits, others)
            losses = perturbed_loss(self.perturbation.config, per_task, named["perturbed"])
        distillation = self.config.distillation
        if distillation is not None:
            losses = torch.cat([losses, losses.new_zeros(len(self.heads) - len(losses))])  # (H,)
            parts = (
                ("labeled", distillation.labeled_weight, predicted[0], batch),
                ("unlabeled", distillation.unlabeled_weight, None if scored is None else predicted[scored], unlabeled),
            )
            for name, weight, student, rows in parts:
                if weight > 0 and student is not None and rows is not None:
                    named[f"distillation_{name}"] = self._distillation(distillation, student, rows)  # (H,)
                    losses = losses + weight * named[f"distillation_{name}"]
        losses = losses * self._weights.to(losses.device)
        if self.balancer is None:
            total = losses.sum()
        else:
            total = self.balancer.total(losses, h, inputs, model.parameters())
            named["balance"] = self.balancer.shares
        parts_by_name = {
            f"{name}/{head}": value
            for name, values in named.items()
            for head, value in zip(self.heads, values.detach().unbind(), strict=False)  # some are (T,), some (H,)
        }
        return Loss(total, {"loss": total.detach(), **parts_by_name}, logits.detach())

    def _row_weights(self, batch: Batch) -> Tensor | None:
        """(B,) the log's weights times inverse propensities; None = all 1."""
        weighing = self.config.inverse_propensity
        if weighing is None:
            return batch.weights
        weights = weighing.weights(batch.extras[weighing.column])
        return weights if batch.weights is None else weights * batch.weights

    def _scored_block(
        self, model: Ranker, unlabeled: Batch | None, pairs: list[PerturbedPair], blocks: list[Tensor]
    ) -> int | None:
        """Place in ``blocks`` of all unlabeled rows, appended unless a perturbation predicts them anyway; None = not needed."""
        distillation = self.config.distillation
        if unlabeled is None or distillation is None or distillation.unlabeled_weight == 0:
            return None
        if len(pairs) > 1 and pairs[1].copy.rows is None:
            return 2  # labeled, its copy, unlabeled, its copy
        blocks.append(model.embed(unlabeled))
        return len(blocks) - 1

    def _distillation(self, config: DistillationConfig, outputs: Tensor, batch: Batch) -> Tensor:
        """(H,) mean distillation losses at the heads that learn from the teacher, 0 at the others. outputs (n, H)."""
        places = self._distilled_heads.to(outputs.device)
        if config.target == "negative":
            probabilities = outputs.new_zeros(len(batch), len(places))
        else:
            absent = [name for name in self.teacher_columns if name not in batch.extras]
            if absent:
                raise ConfigError(f"distillation needs a teacher's scores: batches lack {', '.join(absent)}")
            probabilities = torch.stack([batch.extras[name] for name in self.teacher_columns], dim=1).float()
        losses, counts = distillation_terms(config, outputs[:, places], probabilities)
        if batch.weights is not None:
            losses, counts = losses * batch.weights.unsqueeze(1), counts * batch.weights.unsqueeze(1)
        means = joint_mean(losses, counts)
        return means.new_zeros(len(self.heads)).index_copy(0, places, means)

    @property
    def teacher_columns(self) -> tuple[str, ...]:
        """The extra that holds the teacher's probability, for each distilled task."""
        config = self.config.distillation
        if config is None or config.target == "negative":
            return ()
        return tuple(config.column(name) for name in self.distilled)

    def _representation_width(self) -> int:
        with torch.device("meta"):
            return self.build().representation_width

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(batch)
        return logits.float()

    def observe(self, evaluation: Evaluation, outputs: Tensor, batch: Batch) -> None:
        assert isinstance(evaluation, BinaryMetrics)
        labels, split = batch.labels, self.config.known_features_split
        if (
            split is not None
        ):  # a group's metrics are those of further tasks, whose labels are observed on its rows only
            few = (batch.known_features() < split).unsqueeze(1)
            labels = torch.cat([labels, labels.masked_fill(~few, nan), labels.masked_fill(few, nan)], dim=1)
            outputs = outputs.repeat(1, 3)
        evaluation.update(outputs, labels, batch.weights)

    def new_evaluation(self) -> BinaryMetrics:
        return BinaryMetrics(len(self.schema.tasks) * (1 if self.config.known_features_split is None else 3))

    def summarize(self, evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
        """rows, positives, log_loss, normalized_entropy, auc, ece, calibration_ratio by task; None where undefined."""
        assert isinstance(evaluation, BinaryMetrics)
        counts, qualities = ("rows", "positives"), ("log_loss", "normalized_entropy", "auc", "ece", "calibration_ratio")
        results, tasks = evaluation.compute(), self.schema.task_names
        summary = {
            task: {name: _defined(getattr(result, name)) for name in (*counts, *qualities)}
            for task, result in zip(tasks, results, strict=False)
        }
        for group, start in (("few_known", len(tasks)), ("many_known", 2 * len(tasks))):
            for task, result in zip(tasks, results[start:], strict=False):  # none without groups
                summary[task] |= {f"{name}_{group}": _defined(getattr(result, name)) for name in qualities}
        return summary

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


def _represent(model: Ranker, blocks: list[Tensor]) -> Tensor:
    """h of all rows of the embedded blocks. On a GPU in one pass; on a CPU one after the other, which is faster: the activations
    of a larger batch outgrow what the allocator keeps, and each new page costs a fault."""
    if len(blocks) == 1 or blocks[0].is_cuda:
        return model.represent_embedded(blocks[0] if len(blocks) == 1 else torch.cat(blocks))
    return torch.cat([model.represent_embedded(block) for block in blocks])


def masked_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, joint_sizes: Tensor | None = None
) -> Tensor:
    """Per-task mean binary cross-entropy (T,) over observed rows: logits (B, T), labels (B, T) with NaN = unobserved.

    A task observed on no row gives 0. joint_sizes: (T,) what to divide by; None = the observed weight, under torch.distributed
    the mean of all workers', so that averaging gradients over workers equals one worker with the joint batch, however unevenly
    the observed rows fall.
    """
    row_weights = observed_weights(labels, weights)
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none") * row_weights
    if joint_sizes is not None:
        return losses.sum(0) / joint_sizes.to(losses.dtype).clamp_min(1e-12)
    return joint_mean(losses, row_weights)


def observed_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    """(B, T) weights of the rows, 0 where the task's label is NaN."""
    observed = ~labels.isnan()
    return observed.float() if weights is None else observed * weights.unsqueeze(1)


def joint_mean(losses: Tensor, counts: Tensor) -> Tensor:
    """(T,) sums of losses (B, T) over the sums of counts (B, T) of *all* workers' rows, scaled so that the mean of the workers'
    gradients is the joint gradient. 0 where nothing counts."""
    totals = counts.sum(0)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(totals)
        totals = totals / dist.get_world_size()
    return losses.sum(0) / totals.clamp_min(1e-12)


def _distilled_tasks(schema: LogSchema, config: DistillationConfig | None) -> tuple[str, ...]:
    if config is None:
        return ()
    unknown = sorted({*config.tasks, *config.columns} - set(schema.task_names))
    if unknown:
        raise ConfigError(f"distillation names no task: {', '.join(unknown)}; tasks: {', '.join(schema.task_names)}")
    if config.tasks:
        return tuple(name for name in schema.task_names if name in config.tasks)
    if config.target == "teacher":
        return schema.task_names
    return tuple(task.name for task in schema.tasks if task.observed_when is None)


def _perturbed(
    config: PerturbationConfig, pairs: list[PerturbedPair], batch: Batch, logits: Tensor, others: list[Tensor]
) -> Tensor:
    """By task (T,): LSPR's cross-entropy of the perturbed rows, or SCR's mean divergence over labeled and unlabeled rows."""
    copy = pairs[0].copy
    if config.loss == "lspr":
        weights = None if batch.weights is None else copy.of(batch.weights)
        return masked_cross_entropy(others[0], copy.of(batch.labels), weights)
    differences = [divergence(config.divergence, copy.of(logits), others[0])]
    if len(pairs) > 1:
        differences.append(divergence(config.divergence, others[1], others[2]))
    each = torch.cat(differences)
    return joint_mean(each, torch.ones_like(each))


def _defined(value: float) -> float | None:
    return None if value != value else float(value)
