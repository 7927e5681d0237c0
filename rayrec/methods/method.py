"""What a training method is to a ranking step: the rows that it wants predicted, and what it makes of their predictions.

A new method is one file: a frozen config (``MethodConfig``), its state and its hooks (``Method``). A field of that config in a
ranking config switches it on; methods act in the order of the fields, each on what the former made of the losses.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rayrec.batch import Batch


class Embedder(Protocol):
    """What methods need of a model: ``embed`` and where the parts of its output lie (see rayrec.models.ranker)."""

    embedding_dim: int
    embedding_columns: slice
    number_columns: slice
    dense_columns: slice

    def embed(self, batch: Batch) -> Tensor: ...

    def moved_numbers(self, dense: Tensor, noise: Tensor) -> Tensor: ...


class Rows:
    """The embedded rows of one step, block by block: all go through trunk and towers in one pass.

    blocks: (n, N) each. ``add`` and ``whole`` give a block's place; there lie its logits in what a term gets.
    """

    def __init__(self, model: Embedder) -> None:
        self.model = model
        self.blocks: list[Tensor] = []
        self._embedded: list[tuple[Batch, Tensor]] = []
        self._whole: list[tuple[Batch, int]] = []

    def embedded(self, batch: Batch) -> Tensor:
        """``model.embed(batch)``, looked up once a step."""
        for known, x in self._embedded:
            if known is batch:
                return x
        self._embedded.append((batch, self.model.embed(batch)))
        return self._embedded[-1][1]

    def add(self, x: Tensor) -> int:
        """Have embedded rows x (n, N) predicted."""
        self.blocks.append(x)
        return len(self.blocks) - 1

    def whole(self, batch: Batch) -> int:
        """Have all rows of a batch predicted, once for all methods that ask."""
        for known, place in self._whole:
            if known is batch:
                return place
        self._whole.append((batch, self.add(self.embedded(batch))))
        return self._whole[-1][1]


# losses (H,) and the logits (n, H) of every block -> the new losses (H,), and by name what was added, (T,) or (H,), for the log
Term = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class Tasks:
    """The tasks a method is made for.

    independent: the tasks whose label does not hang on another task's. heads: how many heads there are before the method's own.
    """

    names: tuple[str, ...]
    independent: tuple[str, ...]
    heads: int


@dataclass(frozen=True)
class Sizes:
    """What sums of this batch are divided by: the mean sizes of the update's batches, on all workers.

    tasks: (T,) observed weight of each task's rows. own: (S,) of the method's means.
    """

    tasks: Tensor
    own: Tensor


class Method(nn.Module):
    """One training method. Its state belongs into checkpoints and not into bundles; every hook does nothing by default.

    own_heads: heads that the method trains beside the tasks', by name: the task whose weight they share.
    num_sizes: S, over how many numbers of terms the method's means run beside those of the tasks.
    """

    own_heads: Mapping[str, str] = {}
    num_sizes: int = 0

    def labeled_columns(self, *, taught: bool) -> tuple[str, ...]:
        """Columns that labeled batches need beside features and labels; taught: a teacher in the loop brings its own."""
        return ()

    def unlabeled_columns(self, *, taught: bool) -> tuple[str, ...]:
        """The same of unlabeled batches."""
        return ()

    def weighed(self, batch: Batch) -> Batch:
        """The labeled batch with the method's row weights."""
        return batch

    def sizes(self, batch: Batch, unlabeled: Batch | None) -> Tensor:
        """(S,) over how many terms of these batches each of the method's means runs."""
        return torch.zeros(0, device=batch.labels.device)

    def term(self, rows: Rows, batch: Batch, unlabeled: Batch | None, sizes: Sizes) -> Term | None:
        """Ask for rows beside those of the labeled batch (block 0); give what becomes of the losses, None = nothing."""
        return None


@dataclass(frozen=True)
class MethodConfig(ABC):
    """Config of a training method."""

    @abstractmethod
    def method(self, tasks: Tasks) -> Method | None:
        """Its state for these tasks, None = plain training. Raises ConfigError when the config does not fit the tasks."""
