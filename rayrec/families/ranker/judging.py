"""How good a ranker is on rows: binary metrics by task, and by groups of rows."""

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from rayrec.batch import Batch
from rayrec.metrics import BinaryMetrics
from rayrec.metrics.by_group import GroupedMetrics, GroupedRows
from rayrec.training.task import Curves, Evaluation, LeftOut, Summary

COUNTED = ("rows", "positives")
QUALITIES = ("log_loss", "normalized_entropy", "auc", "ece", "calibration_ratio")
GROUPS = ("few_known", "many_known")


class RankerEvaluation(Evaluation[Batch]):
    """Logits (B, T) of tasks against labels.

    known_features_split: rows with fewer known features, and those with as many or more, are judged apart too; a group's metrics
    are those of further tasks, whose labels are observed on its rows only.
    user: place of the categorical feature whose rows are judged as one; None = every row for itself.
    request: name of the request id; where batches carry it, the order of the rows of each request is judged too.
    """

    def __init__(
        self, tasks: Sequence[str], *, known_features_split: int | None = None, user: int | None = None,
        request: str | None = None, by_group: bool = False,
    ) -> None:  # fmt: skip
        self._tasks, self._split, self._user, self._request = tuple(tasks), known_features_split, user, request
        self._rows = GroupedRows()
        judged = len(tasks) * (1 if self._split is None else 3)
        self.metrics: BinaryMetrics = BinaryMetrics(judged, by_group=by_group)

    def update(self, outputs: Tensor, batch: Batch) -> None:
        labels = batch.labels
        if self._request is not None and self._request in batch.extras:
            self._rows.update(batch.extras[self._request], outputs, labels)
        if self._split is not None:
            few = (batch.known_features() < self._split).unsqueeze(1)
            labels = torch.cat([labels, labels.masked_fill(~few, nan), labels.masked_fill(few, nan)], dim=1)
            outputs = outputs.repeat(1, 3)
        users = None if self._user is None else batch.categorical[:, self._user]
        self.metrics.update(outputs, labels, batch.weights, users)

    def summarize(self) -> Summary:
        """rows, positives, log_loss, normalized_entropy, auc, ece, calibration_ratio by task; None where undefined.

        Where rows came with their request, also how those of each are ordered: "auc_by_" and the request column's name, ...
        """
        results, judged = self.metrics.compute(), len(self._tasks)
        summary = {
            task: {name: _defined(getattr(result, name)) for name in (*COUNTED, *QUALITIES)}
            for task, result in zip(self._tasks, results, strict=False)
        }
        for place, group in enumerate(GROUPS, 1):
            for task, result in zip(self._tasks, results[place * judged :], strict=False):  # none without groups
                summary[task] |= {f"{name}_{group}": _defined(getattr(result, name)) for name in QUALITIES}
        for task, found in zip(self._tasks, self._rows.compute(), strict=False):  # none without requests
            summary[task] |= within_requests(found, str(self._request))
        return summary

    def gather(self) -> None:
        self._rows.gather()

    def left_out(self) -> LeftOut:
        if self.metrics.groups is None:
            return {}
        found, judged = self.metrics.groups.left_out(), len(self._tasks)
        values = dict(zip(self._tasks, found, strict=False))
        for place, group in enumerate(GROUPS, 1):
            for task, metrics in zip(self._tasks, found[place * judged :], strict=False):
                values[task] |= {f"{name}_{group}": rest for name, rest in metrics.items()}
        return values

    def calibration(self) -> Curves:
        """Of the tasks; groups of rows are left out."""
        return {
            task: tuple((b.mean_predicted, b.mean_observed, float(b.rows)) for b in result.calibration_curve)
            for task, result in zip(self._tasks, self.metrics.compute(), strict=False)
        }


def within_requests(found: GroupedMetrics, by: str) -> dict[str, float | None]:
    """Metrics of the rows of each request, or whatever the column ``by`` holds, by their names in tables."""
    ndcg = {f"ndcg@{k}_by_{by}": value for k, value in found.ndcg.items()}
    return {f"auc_by_{by}": found.auc, f"mrr_by_{by}": found.mrr, **ndcg}


def _defined(value: float) -> float | None:
    return None if value != value else float(value)
