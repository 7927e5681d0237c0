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
        self._total = torch.zeros((), dtype=torch.float64)
        self._tokens = 0.0

    def update(self, losses: Tensor) -> None:
        """Add negative log likelihoods in nats, any shape, one a token. The sum stays on their device: no synchronization."""
        self._total = self._total.to(losses.device) + losses.detach().sum(dtype=torch.float64)
        self._tokens += losses.numel()

    def state(self) -> Tensor:
        """(2,) float64 on the CPU: sum of losses, tokens."""
        return torch.tensor([float(self._total), self._tokens], dtype=torch.float64)

    def load_state(self, state: Tensor) -> None:
        self._total, self._tokens = state[0].to("cpu", torch.float64, copy=True), float(state[1])

    def compute(self) -> PerplexityResult:
        total, tokens = self.state().tolist()
        mean = total / tokens if tokens else math.nan
        return PerplexityResult(int(tokens), mean, math.exp(mean) if mean < 700 else math.inf if tokens else math.nan)
