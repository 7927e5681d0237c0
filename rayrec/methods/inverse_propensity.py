"""Inverse propensity scoring (Schnabel et al. 2016, "Recommendations as Treatments"): weights of one over the chance to be seen.

Unbiased where that chance is known and depends only on what is logged; UKDSL's spec names it as a baseline.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayrec.batch import Batch
from rayrec.methods.method import Method, MethodConfig, Tasks
from rayrec.typed_json import ConfigError


@dataclass(frozen=True)
class InversePropensity(MethodConfig):
    """Losses are divided by the sum of the weights of a batch (self-normalized, SNIPS), so that the scale of
    propensities is free."""

    column: str = "propensity"
    """The log's column of propensities in (0, 1]."""
    floor: float = 0.01
    """Smaller ones count as this, which bounds the variance."""

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must lie in (0, 1], not {self.floor}")

    def weights(self, propensities: Tensor) -> Tensor:
        """(n,) float32 row weights. Raises ConfigError for a propensity that is missing (NaN) or outside of (0, 1]."""
        wrong = ~((propensities > 0) & (propensities <= 1))
        if bool(wrong.any()):
            found = float(propensities[wrong][0])
            raise ConfigError(
                f"column {self.column!r}: propensities must lie in (0, 1], found "
                + ("a missing one" if math.isnan(found) else f"{found:g}")
            )
        return propensities.clamp_min(self.floor).reciprocal().to(torch.float32)

    def method(self, tasks: Tasks) -> "Weighing":
        return Weighing(self)


class Weighing(Method):
    """Multiplies the row weights of labeled rows."""

    def __init__(self, config: InversePropensity) -> None:
        super().__init__()
        self.config = config

    def labeled_columns(self, *, taught: bool) -> tuple[str, ...]:
        return (self.config.column,)

    def weighed(self, batch: Batch) -> Batch:
        weights = self.config.weights(batch.extras[self.config.column])
        return replace(batch, weights=weights if batch.weights is None else weights * batch.weights)
