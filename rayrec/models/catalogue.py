"""What a retriever may know of the items when it is built."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from rayrec.models.prompt import PromptTokens


@dataclass(frozen=True)
class ItemFeatures:
    """What the model knows of N items; row 0 is padding.

    tokens: (N + 1, M) int64, 0 at padding. num_tokens: size of the vocabulary, padding included.
    text: (N + 1, E) float32 embeddings. seen: (N + 1,) bool, whether an item occurs in training; False at padding.
    """

    tokens: Tensor
    num_tokens: int
    text: Tensor
    seen: Tensor

    def __post_init__(self) -> None:
        rows = {len(self.tokens), len(self.text), len(self.seen)}
        if len(rows) != 1:
            raise ValueError(f"tokens, text and seen describe {sorted(rows)} items; expected the same number")


@dataclass(frozen=True)
class Prompts:
    """tokens: of the prompt's parts and of all titles. build_encoder: a text encoder of its own for each model."""

    tokens: PromptTokens
    build_encoder: Callable[[], nn.Module]


@dataclass(frozen=True)
class Catalogue:
    """How many items there are, which were seen in training, how often, and their features.

    seen: (N + 1,) bool. counts: (N + 1,) int64, occurrences in training. features: None = no semantic IDs were given.
    preference_dim, prompts: what models that preferences steer are built for, by the form in which they read them.
    """

    num_items: int
    seen: Tensor
    counts: Tensor
    features: ItemFeatures | None
    preference_dim: int | None = None
    prompts: Prompts | None = None
