"""What a retriever may know of the items when it is built."""

from dataclasses import dataclass

from torch import Tensor


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
class Catalogue:
    """How many items there are, which were seen in training, how often, and their features.

    seen: (N + 1,) bool. counts: (N + 1,) int64, occurrences in training. features: None = no semantic IDs were given.
    """

    num_items: int
    seen: Tensor
    counts: Tensor
    features: ItemFeatures | None
