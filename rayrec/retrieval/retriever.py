"""What a retriever is to those who train, judge, store and serve it: a module with a loss and one or two heads to search by.

A history is what one model reads of its users: for most a Tensor (B, L) of item numbers, left-padded with 0, newest item last;
for those that a preference steers, ``Steered``; for those that know the user too, ``Personal``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from rayrec.retrieval.beam_search import Decoding
from rayrec.retrieval.repeats import Repeats
from rayrec.retrieval.text_blend import Blended

H = TypeVar("H")
H_contra = TypeVar("H_contra", contravariant=True)


@dataclass(frozen=True)
class Steered:
    """What a model reads that a preference in plain words steers.

    history: (B, L) int64. preference: by model, (B, E) float32 embeddings, zeros = none, or (B, P) int64 tokens, -1 = no token.
    sign: (B,) float32 in training: 1 = the target should follow, -1 = it should not; None = all should.
    """

    history: Tensor
    preference: Tensor
    sign: Tensor | None = None


@dataclass(frozen=True)
class Personal:
    """A history with its user's token. history: (B, L) int64. user: (B,) int64, 1.. for the hash of a name, 0 = not known."""

    history: Tensor
    user: Tensor


def items_of(asked: Tensor | Personal) -> Tensor:
    """The histories (B, L)."""
    return asked.history if isinstance(asked, Personal) else asked


class DenseHead(Protocol[H_contra]):
    """Scores are inner products of what a history asks for and what an item is."""

    def query(self, history: H_contra) -> Tensor:
        """(B, D)."""
        ...

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """(n, D) of items ``rows`` (n,), or (N + 1, D) of all; row 0 belongs to no item."""
        ...

    def repeats(self, history: H_contra) -> Repeats | None:
        """What the history's own items get on top of their inner products; None: nothing."""
        ...


class GenerativeHead(Protocol[H_contra]):
    """Emits an item as its tuple of tokens.

    item_tokens: (N + 1, M) int64, row 0 padding, the others all different. seen: (N + 1,) bool, whether an item occurs in
    training; row 0 does not.
    """

    @property
    def item_tokens(self) -> Tensor: ...

    @property
    def seen(self) -> Tensor: ...

    def decoding(self, history: H_contra) -> Decoding:
        """The tuples' log-probabilities, token by token, for ``rayrec.retrieval.beam_search``."""
        ...


@runtime_checkable
class OneEncoding(Protocol[H_contra]):
    """Both heads, behind one encoder."""

    def query_and_decoding(self, history: H_contra) -> tuple[Tensor, Decoding]:
        """What ``query`` and ``decoding`` give, by encoding the histories once."""
        ...


class Growing(Protocol):
    """Knows items by what describes them, and takes in new ones without training."""

    @property
    def item_tokens(self) -> Tensor: ...

    def add_items(self, tokens: Tensor, text: Tensor) -> int:
        """Append n items by tokens (n, M) and text embeddings (n, E); returns the number of the first one."""
        ...


class Retriever(nn.Module, Generic[H], ABC):
    """The base of all retrievers. Items are 1..num_items.

    A model returns itself, or the part of it that does the work, for each head that it has; ``rayrec.retrieval.searching`` then
    finds items by it, in judging and in serving alike.
    """

    @property
    @abstractmethod
    def num_items(self) -> int: ...

    @property
    def dense(self) -> DenseHead[H] | None:
        return None

    @property
    def generative(self) -> GenerativeHead[H] | None:
        return None

    @property
    def growing(self) -> Growing | None:
        return None

    @property
    def blended(self) -> Blended | None:
        """What takes a blend on validation once the weights are trained, if there is one."""
        return None

    @property
    def judged_by(self) -> Literal["dense", "generative"]:
        """The method that early stopping and sweeps go by: the dense head where there is one, as LIGER's paper has it."""
        return "generative" if self.dense is None else "dense"

    @property
    @abstractmethod
    def loss_weights(self) -> Mapping[str, float]:
        """Weight of each part of the loss, by name."""

    @abstractmethod
    def loss_sizes(self, history: H, target: Tensor) -> Mapping[str, Tensor]:
        """Over how many terms () the mean of each part runs. target: (B,), or (B, L) for models that read windows."""

    @abstractmethod
    def losses(self, history: H, target: Tensor) -> Mapping[str, Tensor]:
        """Means () by part; 0, with a gradient of 0, where a part has no term."""

    def loss(self, history: H, target: Tensor, joint_sizes: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The parts and "loss", their weighted sum. joint_sizes: () by part, what its sum is divided by; None = its own size."""
        parts = dict(self.losses(history, target))
        if joint_sizes is not None:
            own = self.loss_sizes(history, target)
            parts = {n: v * (own[n] / joint_sizes[n].clamp_min(1e-12)).to(v.dtype) for n, v in parts.items()}
        total = torch.stack([self.loss_weights[name] * value for name, value in parts.items()]).sum()
        return {**parts, "loss": total}
