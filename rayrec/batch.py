"""The batch of a ranker: a few tensors, whatever the number of features. Knows torch and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of a log. Column orders are those of the schema.

    dense:        (B, D) float32, raw units (the model normalizes); NaN = missing.
    categorical:  (B, F) int64, ids inside each field, 0 = missing or unknown; no offsets between fields.
    sequences:    one (B, L_i) int64 matrix per sequence feature, ids padded with 0 at the end.
    labels:       (B, T) float32, one column a task; NaN = not observed on this row.
    weights:      (B,) float32 row weights, or None for all ones.
    extras:       further columns asked for by name, (B,) each (request ids, timestamps, true probabilities, teacher scores).
    """

    dense: Tensor
    categorical: Tensor
    labels: Tensor
    sequences: tuple[Tensor, ...] = ()
    weights: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.categorical.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """The given rows: a slice (views) or an int64 index tensor (copies)."""
        return Batch(
            dense=self.dense[rows],
            categorical=self.categorical[rows],
            labels=self.labels[rows],
            sequences=tuple(ids[rows] for ids in self.sequences),
            weights=None if self.weights is None else self.weights[rows],
            extras={name: column[rows] for name, column in self.extras.items()},
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on ``device``; the very same object when it is already there."""
        if self.categorical.device == torch.device(device):
            return self
        return Batch(
            dense=self.dense.to(device, non_blocking=non_blocking),
            categorical=self.categorical.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            sequences=tuple(ids.to(device, non_blocking=non_blocking) for ids in self.sequences),
            weights=None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
            extras={name: column.to(device, non_blocking=non_blocking) for name, column in self.extras.items()},
        )

    def known_features(self) -> Tensor:
        """(B,) int64 how many of a row's features are known: numbers observed, ids not 0, sequences not empty."""
        known = (~self.dense.isnan()).sum(1) + (self.categorical != 0).sum(1)
        for ids in self.sequences:
            known = known + (ids[:, 0] != 0)
        return known

    @staticmethod
    def concatenate(batches: Sequence["Batch"]) -> "Batch":
        """Rows of all batches in order; they must agree in columns."""
        first = batches[0]
        return Batch(
            dense=torch.cat([b.dense for b in batches]),
            categorical=torch.cat([b.categorical for b in batches]),
            labels=torch.cat([b.labels for b in batches]),
            sequences=tuple(torch.cat([b.sequences[i] for b in batches]) for i in range(len(first.sequences))),
            weights=None if first.weights is None else torch.cat([b.weights for b in batches if b.weights is not None]),
            extras={name: torch.cat([b.extras[name] for b in batches]) for name in first.extras},
        )
