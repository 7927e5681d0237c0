"""The ranking task: masked multi-task cross-entropy on a log, judged by normalized entropy, AUC and calibration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.data.log.schema import QUANTILE_STEPS, LogSchema
from rayrec.families.ranker.balancing_json import AnyBalancing
from rayrec.families.ranker.judging import RankerEvaluation
from rayrec.meta_device import on_meta_device
from rayrec.methods.balancing import Balancer
from rayrec.methods.distillation import Distillation, DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.methods.means import joint, masked_cross_entropy, observed_weights
from rayrec.methods.method import Method, MethodConfig, Rows, Sizes, Tasks
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.models.ranker import Ranker, RankerArchitecture, RankerInputs
from rayrec.training.task import Loss
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class RankerConfig:
    """All that is needed to build a ranker again: what goes in, and how it is made."""

    inputs: RankerInputs
    architecture: RankerArchitecture


@dataclass(frozen=True)
class RankingConfig:
    """What is learned."""

    architecture: RankerArchitecture = field(default_factory=RankerArchitecture)
    """The ranker's layers."""
    task_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of a task's loss by task name; tasks not named weigh 1."""
    objective: Literal["normalized_entropy", "log_loss", "auc"] = "normalized_entropy"
    """What early stopping and sweeps watch: the mean over tasks on the validation split."""
    balancing: AnyBalancing | None = None
    """MultiBalance or another way to combine the tasks' gradients, named by ``method``; None = the sum."""
    perturbation: PerturbationConfig | None = None
    """SCR or LSPR; None = none."""
    distillation: DistillationConfig | None = None
    """UKDSL: learn from a teacher's scores, on unlabeled rows too; None = not."""
    inverse_propensity: InversePropensity | None = None
    """Weigh labeled rows by their propensities; None = not. Methods act in the order of their fields."""
    known_features_split: int | None = None
    """Also judge apart the rows with fewer known features than that, and those with as many or more: metrics
    ``<metric>_few_known`` and ``<metric>_many_known`` of each task; None = not."""
    user: str | None = None
    """A categorical feature, whose rows are judged as one when it comes to how much a metric hangs on who was judged;
    None = every row for itself."""


def ranker_inputs(schema: LogSchema) -> RankerInputs:
    """The model's input layer as a fitted schema declares it. Raises SchemaError when the schema is not fitted."""
    statistics = [feature.statistics for feature in schema.dense]
    fields = [feature.name for feature in schema.categorical]
    quantiles = tuple(s.quantiles if s else () for s in statistics)
    return RankerInputs(
        dense_mean=tuple(s.mean if s else 0.0 for s in statistics),
        dense_std=tuple(s.std if s else 1.0 for s in statistics),
        dense_log1p=tuple(feature.transform == "log1p" for feature in schema.dense),
        dense_missing=tuple(s is not None and s.missing_share > 0 for s in statistics),
        dense_quantiles=quantiles if all(quantiles) else (),
        categorical_sizes=tuple(feature.size for feature in schema.categorical),
        sequence_sizes=tuple(schema.encoder_of(sequence).size for sequence in schema.sequences),
        sequence_shares=tuple(fields.index(s.shares) if s.shares is not None else None for s in schema.sequences),
        num_tasks=len(schema.tasks),
    )


class RankingTask:
    """Ties a ranker to a log's schema. Raises ConfigError when the config names no task of the schema.

    heads: a name for each of the model's heads: the tasks, then those that methods train beside them (with an auxiliary head for
    distillation, ``<task>_teacher`` for each task that learns from a teacher).
    distillation: that method, None = not asked for.
    """

    curve_metrics = ("normalized_entropy", "auc", "log_loss")

    def __init__(self, schema: LogSchema, config: RankingConfig) -> None:
        unknown = sorted(set(config.task_weights) - set(schema.task_names))
        if unknown:
            raise ConfigError(
                f"task_weights names no task: {', '.join(unknown)}; tasks: {', '.join(schema.task_names)}"
            )
        wrong = sorted(name for name, weight in config.task_weights.items() if not 0 <= weight < math.inf)
        if wrong:
            raise ConfigError(f"task_weights must be finite and at least 0: {', '.join(wrong)}")
        users = [feature.name for feature in schema.categorical]
        if config.user is not None and config.user not in users:
            raise ConfigError(
                f"user names no categorical feature: {config.user!r}; there are {', '.join(users) or 'none'}"
            )
        unmeasured = [f.name for f in schema.dense if f.statistics is None or not f.statistics.quantiles]
        bins = config.architecture.dense_bins
        if bins > QUANTILE_STEPS:
            raise ConfigError(f"architecture.dense_bins: at most {QUANTILE_STEPS}, not {bins}")
        if bins and unmeasured:
            raise ConfigError(
                f"architecture.dense_bins: schema {schema.name!r} has no quantiles of {', '.join(unmeasured)}; import the log "
                "again, without its fitted schema, or leave this at 0"
            )
        self._user = None if config.user is None else users.index(config.user)
        self.schema = schema
        self.config = config
        independent = tuple(task.name for task in schema.tasks if task.observed_when is None)
        own_heads: dict[str, str] = {}
        self._methods: dict[str, Method] = {}
        for name, part in ((part.name, getattr(config, part.name)) for part in fields(config)):
            if isinstance(part, MethodConfig):
                tasks = Tasks(schema.task_names, independent, len(schema.tasks) + len(own_heads))
                if (method := part.method(tasks)) is not None:
                    self._methods[name] = method
                    own_heads |= method.own_heads
        found = self._methods.get("distillation")
        self.distillation = found if isinstance(found, Distillation) else None
        self.heads = (*schema.task_names, *own_heads)
        inputs = replace(ranker_inputs(schema), auxiliary_heads=len(own_heads))
        self.model_config = RankerConfig(inputs, config.architecture)
        weighed = (*schema.task_names, *own_heads.values())
        self._weights = torch.tensor([config.task_weights.get(name, 1.0) for name in weighed])
        self.balancer: Balancer | None = None
        if config.balancing is not None:
            try:
                self.balancer = config.balancing.balancer(len(self.heads), self._representation_width())
            except ValueError as error:
                raise ConfigError(f"balancing: {error}") from None
        balancer = {} if self.balancer is None else {"balancer": self.balancer}
        self.methods: nn.Module = nn.ModuleDict({**balancer, **self._methods})

    def build(self) -> Ranker:
        return Ranker(self.model_config.inputs, self.model_config.architecture)

    @property
    def evaluation_extras(self) -> tuple[str, ...]:
        """Columns that batches need beside features and labels when the model is judged."""
        return () if self.schema.request_id is None else (self.schema.request_id,)

    def labeled_extras(self, *, taught: bool = False) -> tuple[str, ...]:
        """Columns that labeled batches need beside features and labels; taught: a teacher in the loop brings its own."""
        return tuple(column for method in self._methods.values() for column in method.labeled_columns(taught=taught))

    def unlabeled_extras(self, *, taught: bool = False) -> tuple[str, ...]:
        """The same of unlabeled batches."""
        return tuple(column for method in self._methods.values() for column in method.unlabeled_columns(taught=taught))

    def sizes(self, model: Ranker, batch: Batch, unlabeled: Batch | None = None) -> Tensor:
        """(P,) weight of the rows where the task's label is observed, then the methods' own sizes, in their order."""
        return self._sizes(self._weighed(batch), unlabeled)

    def _sizes(self, weighed: Batch, unlabeled: Batch | None) -> Tensor:
        own = [method.sizes(weighed, unlabeled) for method in self._methods.values()]
        return torch.cat([observed_weights(weighed.labels, weighed.weights).sum(0), *own])

    def _weighed(self, batch: Batch) -> Batch:
        for method in self._methods.values():
            batch = method.weighed(batch)
        return batch

    def loss(
        self, model: Ranker, batch: Batch, unlabeled: Batch | None = None, joint_sizes: Tensor | None = None
    ) -> Loss:
        """Sum over heads of weight * mean cross-entropy on the rows where the task's label is observed; with methods, theirs.

        All rows that a method adds go through the towers in one pass, behind those of ``batch``.
        """
        batch = self._weighed(batch)
        sizes = joint(self._sizes(batch, unlabeled)) if joint_sizes is None else joint_sizes
        methods = self._methods.values()
        of_tasks, *own = sizes.split([len(self.schema.tasks), *(method.num_sizes for method in methods)])
        rows = Rows(model)
        rows.whole(batch)
        terms = [
            method.term(rows, batch, unlabeled, Sizes(of_tasks, some))
            for method, some in zip(methods, own, strict=True)
        ]
        h = _represent(model, rows.blocks)
        inputs = h if self.balancer is None else self.balancer.branch(h)
        outputs = model.heads(inputs).float().split([len(block) for block in rows.blocks])  # (rows, H) each
        logits = outputs[0][:, : len(self.schema.tasks)]  # (B, T)
        per_task = masked_cross_entropy(logits, batch.labels, batch.weights, of_tasks)  # (T,)
        named: dict[str, Tensor] = {"loss": per_task}
        losses = torch.cat([per_task, per_task.new_zeros(len(self.heads) - len(per_task))])  # (H,)
        for term in terms:
            if term is not None:
                losses, added = term(losses, outputs)
                named |= added
        losses = losses * self._weights.to(losses.device)
        if self.balancer is None:
            total = losses.sum()
        else:
            # In float32: balancers' running means do not take what autocast's products give, and eight bits of a Gram matrix are
            # too few to weigh tasks by.
            with torch.autocast(h.device.type, enabled=False):
                total = self.balancer.total(losses, h, inputs, model.parameters())
            named["balance"] = self.balancer.shares
        parts_by_name = {
            f"{name}/{head}": value
            for name, values in named.items()
            for head, value in zip(self.heads, values.detach().unbind(), strict=False)  # some are (T,), some (H,)
        }
        return Loss(total, {"loss": total.detach(), **parts_by_name}, logits.detach())

    def _representation_width(self) -> int:
        with on_meta_device():
            return self.build().representation_width

    def predict(self, model: Ranker, batch: Batch) -> Tensor:
        logits: Tensor = model(batch)
        return logits.float()

    def evaluation(self, *, by_group: bool = False) -> RankerEvaluation:
        return RankerEvaluation(
            self.schema.task_names,
            known_features_split=self.config.known_features_split,
            user=self._user,
            request=self.schema.request_id,
            by_group=by_group,
        )

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
