"""Perplexity: the exponential of the mean negative log likelihood of a token."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PerplexityResult:
    """cross_entropy: nats a token; perplexity = exp of it. Both NaN when no token was judged."""

    tokens: int
    cross_entropy: float
    perplexity: float


class Perplexity:
    """A running sum of token losses; sums of several workers' ``state`` are the state of all their tokens."""

    def __init__(self) -> None:
        self._state = torch.zeros(2, dtype=torch.float64)  # sum of losses, tokens

    def update(self, losses: Tensor) -> None:
        """Add negative log likelihoods in nats, any shape, one a token."""
        total = losses.detach().sum(dtype=torch.float64).cpu()
        self._state += torch.stack((total, torch.tensor(float(losses.numel()), dtype=torch.float64)))

    def state(self) -> Tensor:
        """(2,) float64."""
        return self._state.clone()

    def load_state(self, state: Tensor) -> None:
        self._state = state.to("cpu", torch.float64, copy=True)

    def compute(self) -> PerplexityResult:
        total, tokens = self._state.tolist()
        mean = total / tokens if tokens else math.nan
        return PerplexityResult(int(tokens), mean, math.exp(mean) if mean < 700 else math.inf if tokens else math.nan)
