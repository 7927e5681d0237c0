"""Perplexity: the exponential of the mean negative log likelihood of a token."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrec.metrics.binary_groups import GROUPS, group_of


@dataclass(frozen=True)
class PerplexityResult:
    """cross_entropy: nats a token; perplexity = exp of it. Both NaN when no token was judged."""

    tokens: int
    cross_entropy: float
    perplexity: float


class Perplexity:
    """Running sums of token losses by group of blocks; sums of several workers' ``state`` are the state of all their tokens."""

    def __init__(self) -> None:
        self._state = torch.zeros(GROUPS, 2, dtype=torch.float64)
        self._blocks = 0

    def update(self, losses: Tensor) -> None:
        """Add negative log likelihoods in nats (B, ...), one a token, of B blocks. Sums stay on their device: no synchronization.

        A block is in a group by its place in the pass, the same for all models that are judged with as many workers.
        """
        blocks = losses.detach().double().flatten(1) if losses.dim() > 1 else losses.detach().double().unsqueeze(1)
        places = torch.arange(self._blocks, self._blocks + len(blocks), device=losses.device)
        self._blocks += len(blocks)
        sums = torch.stack([blocks.sum(1), torch.full_like(blocks[:, 0], blocks.shape[1])], dim=1)  # (B, 2)
        self._state = self._state.to(losses.device).index_add(0, group_of(places), sums)

    def state(self) -> Tensor:
        """(64, 2) float64 on the CPU: sum of losses, tokens."""
        return self._state.cpu()

    def load_state(self, state: Tensor) -> None:
        self._state = state.to("cpu", torch.float64, copy=True)

    def left_out(self) -> dict[str, tuple[float, ...]]:
        """By metric the 64 values without each group of blocks; nothing where one group has all of them."""
        rest = self.state().sum(0) - self.state()
        if bool((rest[:, 1] <= 0).any()):
            return {}
        means = rest[:, 0] / rest[:, 1]
        found = {"cross_entropy": means, "perplexity": means.exp()}
        return {name: tuple(values.tolist()) for name, values in found.items() if bool(values.isfinite().all())}

    def compute(self) -> PerplexityResult:
        total, tokens = self.state().sum(0).tolist()
        mean = total / tokens if tokens else math.nan
        return PerplexityResult(int(tokens), mean, math.exp(mean) if mean < 700 else math.inf if tokens else math.nan)
