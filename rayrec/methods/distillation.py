"""Knowledge distillation from a teacher's scores on labeled and unlabeled rows: UKDSL (arXiv 2502.06834).

L = mean_L CE(z, y) + labeled_weight * mean_L d(z_kd, p) + unlabeled_weight * mean_U d(z_kd, p)      means over an update's rows

z: student logit, y: label, p: the teacher's probability; z_kd is z itself ("shared": cross-stage distillation) or the logit of a
head of its own on the same trunk ("auxiliary": the multi-task form, whose main head sees real labels only and is what serves).
Teacher probabilities are columns of the logs (``jobs.score_log``) or come from a teacher in the training loop.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rayrec.batch import Batch
from rayrec.methods.method import Method, MethodConfig, Rows, Sizes, Tasks, Term
from rayrec.typed_json import ConfigError

_EDGE = 1e-6  # probabilities are kept that far from 0 and 1 where their logits are needed


@dataclass(frozen=True)
class DistillationConfig(MethodConfig):
    """Where the student learns from a teacher, and how."""

    labeled_weight: float = 0.0
    """Weight w of the loss above on labeled rows."""
    unlabeled_weight: float = 1.0
    """w on unlabeled rows; both 0 is plain training. To count an unlabeled row like a labeled one: the unlabeled
    ratio."""
    tasks: tuple[str, ...] = ()
    """Those that are distilled; empty = all, with target "negative" all whose label does not hang on another task's."""
    head: Literal["shared", "auxiliary"] = "shared"
    """Which head learns from the teacher: the task's own, or one beside it that serving leaves out."""
    target: Literal["teacher", "negative"] = "teacher"
    """From whom: "teacher"; or "negative": unlabeled rows count as label 0, the shortcut that breaks calibration, to compare
    with."""
    loss: Literal["cross_entropy", "squared_logit"] = "cross_entropy"
    """d: cross-entropy, or half the squared difference of logits."""
    temperature: float = 1.0
    """Both logits are divided by it; the loss is multiplied by its square, so that gradients keep their size."""
    confidence: float = 0.0
    """A row's loss is multiplied by |2 p - 1| ** confidence; 0 = all alike."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The teacher's column of a task; those not named: ``teacher_<task>``."""

    def __post_init__(self) -> None:
        for name in ("labeled_weight", "unlabeled_weight", "confidence"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, not {self.temperature}")
        if self.target == "negative" and (self.labeled_weight or self.loss != "cross_entropy"):
            raise ValueError("target negative is a cross-entropy on unlabeled rows: labeled_weight must be 0")

    def method(self, tasks: Tasks) -> "Distillation":
        return Distillation(self, tasks)

    def column(self, task: str) -> str:
        """The column that holds the teacher's probability for a task."""
        return self.columns.get(task, teacher_column(task))

    def acts(self, unlabeled_ratio: float) -> bool:
        """Whether any row gets a term: if not, training is plain."""
        return self.labeled_weight > 0 or (self.unlabeled_weight > 0 and unlabeled_ratio > 0)


class Distillation(Method):
    """Adds the teacher's terms to the losses of the heads that learn from it.

    distilled: names of those tasks. teacher_columns: the extra that holds the teacher's probability, for each of them.
    """

    places: Tensor

    def __init__(self, config: DistillationConfig, tasks: Tasks) -> None:
        super().__init__()
        self.config = config
        self.distilled = _distilled(config, tasks)
        self.teacher_columns = () if config.target == "negative" else tuple(map(config.column, self.distilled))
        places: Iterable[int] = map(tasks.names.index, self.distilled)
        if config.head == "auxiliary":
            self.own_heads = {f"{name}_teacher": name for name in self.distilled}
            places = range(tasks.heads, tasks.heads + len(self.distilled))
        self.num_sizes = len(self.distilled) * ((config.labeled_weight > 0) + (config.unlabeled_weight > 0))
        self.register_buffer("places", torch.tensor(list(places), dtype=torch.int64), persistent=False)

    def labeled_columns(self, *, taught: bool) -> tuple[str, ...]:
        return self.teacher_columns if self.config.labeled_weight > 0 and not taught else ()

    def unlabeled_columns(self, *, taught: bool) -> tuple[str, ...]:
        return self.teacher_columns if self.config.unlabeled_weight > 0 and not taught else ()

    def sizes(self, batch: Batch, unlabeled: Batch | None) -> Tensor:
        """Weight of the scored rows, for each task that is distilled: of the labeled rows, of the unlabeled ones."""
        counts = [self._counts(some) for _, weight, some in self._taught(batch, unlabeled) if weight > 0]
        return torch.cat([batch.labels.new_zeros(0), *counts])

    def term(self, rows: Rows, batch: Batch, unlabeled: Batch | None, sizes: Sizes) -> Term:
        """Rows: all unlabeled ones, where they count."""
        taught = [part for part in self._taught(batch, unlabeled) if part[1] > 0]
        places = [None if some is None else rows.whole(some) for _, _, some in taught]

        def add(losses: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
            named = {}
            own = sizes.own.split(len(self.distilled)) if taught else ()
            for (name, weight, some), place, size in zip(taught, places, own, strict=True):
                if some is None or place is None:
                    continue
                named[f"distillation_{name}"] = self.means(outputs[place], some, size)
                losses = losses + weight * named[f"distillation_{name}"]
            return losses, named

        return add

    def means(self, outputs: Tensor, batch: Batch, sizes: Tensor) -> Tensor:
        """(H,) sums of losses over sizes (A,) at the heads that learn from the teacher, 0 at the others. outputs (n, H).

        Raises ConfigError for a score outside of [0, 1], naming its column."""
        places, probabilities = self.places.to(outputs.device), self._probabilities(batch)
        outside = (probabilities < 0) | (probabilities > 1)
        if bool(outside.any()):
            row, task = outside.nonzero()[0].tolist()
            raise ConfigError(
                f"column {self.teacher_columns[task]!r}: a teacher's scores must be probabilities in [0, 1], found "
                f"{float(probabilities[row, task]):g}"
            )
        losses, _ = distillation_terms(self.config, outputs[:, places], probabilities)
        if batch.weights is not None:
            losses = losses * batch.weights.unsqueeze(1)
        means = losses.sum(0) / sizes.to(losses.dtype).clamp_min(1e-12)
        return means.new_zeros(outputs.shape[1]).index_copy(0, places, means)

    def _taught(self, batch: Batch, unlabeled: Batch | None) -> tuple[tuple[str, float, Batch | None], ...]:
        config = self.config
        return ("labeled", config.labeled_weight, batch), ("unlabeled", config.unlabeled_weight, unlabeled)

    def _counts(self, batch: Batch | None) -> Tensor:
        """(A,) weight of the rows with a score."""
        if batch is None:
            return self.places.new_zeros(len(self.distilled), dtype=torch.float32)
        scored = ~self._probabilities(batch).isnan()
        return (scored.float() if batch.weights is None else scored * batch.weights.unsqueeze(1)).sum(0)

    def _probabilities(self, batch: Batch) -> Tensor:
        """(n, A) float32, NaN = no score. Raises ConfigError when the batch lacks them."""
        if self.config.target == "negative":
            return batch.labels.new_zeros(len(batch), len(self.distilled))
        absent = [name for name in self.teacher_columns if name not in batch.extras]
        if absent:
            raise ConfigError(f"distillation needs a teacher's scores: batches lack {', '.join(absent)}")
        return torch.stack([batch.extras[name] for name in self.teacher_columns], dim=1).float()


def _distilled(config: DistillationConfig, tasks: Tasks) -> tuple[str, ...]:
    unknown = sorted({*config.tasks, *config.columns} - set(tasks.names))
    if unknown:
        raise ConfigError(f"distillation names no task: {', '.join(unknown)}; tasks: {', '.join(tasks.names)}")
    if config.tasks:
        return tuple(name for name in tasks.names if name in config.tasks)
    return tasks.names if config.target == "teacher" else tasks.independent


def teacher_column(task: str) -> str:
    """The column that ``jobs.score_log`` writes for a task by default."""
    return f"teacher_{task}"


def distillation_terms(config: DistillationConfig, logits: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and what they count, both (n, A), of student logits (n, A) against teacher probabilities (n, A), NaN = no score.

    A row without a score has loss and count 0. Losses bear the confidence already, so that their mean is over scored rows and
    not over the sum of confidences.
    """
    scored = ~probabilities.isnan()
    targets = probabilities.nan_to_num(0.5).to(logits.dtype)
    softened = logits / config.temperature
    if config.loss == "squared_logit":
        wanted = torch.logit(targets, eps=_EDGE) / config.temperature
        losses = 0.5 * (softened - wanted).square()
    else:
        softened_targets = targets
        if config.temperature != 1.0:
            softened_targets = torch.sigmoid(torch.logit(targets, eps=_EDGE) / config.temperature)
        losses = binary_cross_entropy_with_logits(softened, softened_targets, reduction="none")
    if config.confidence > 0:
        losses = losses * (2 * targets - 1).abs() ** config.confidence
    counts = scored.to(logits.dtype)
    return losses * counts * config.temperature**2, counts
