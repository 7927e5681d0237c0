"""TIGER (Rajput et al. 2023, arXiv 2305.05065) as its paper has it: T5 from scratch, from semantic-ID tokens to those of an item.

Positions are T5's relative ones alone, the only dropout is T5's own. What LIGER's code adds to it (a norm and further dropout on
the input, absolute positions and levels) are options here, off by default.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from rayrec.models.catalogue import Catalogue
from rayrec.models.liger import Liger, LigerConfig
from rayrec.models.t5 import T5Config


@dataclass(frozen=True)
class TigerConfig:
    """Shape of TIGER."""

    needs_semantic_ids: ClassVar[bool] = True
    reads_preferences: ClassVar[None] = None
    reads_windows: ClassVar[bool] = False

    transformer: T5Config = field(default_factory=T5Config)
    """The encoder-decoder."""
    max_length: int = 20
    """Newest items that are read."""
    embedding_std: float = 1.0
    """Of the embeddings at the start; 1 is T5's."""
    absolute_positions: bool = False
    """Add an embedding of the item's place and one of the token's level to the input."""
    input_norm: bool = False
    """Layer norm of the input."""
    input_dropout: float = 0.0
    """Dropout on the input, before T5's own."""
    user_tokens: int = 0
    """The paper has 2,000: the user's name is hashed to one of so many tokens, which is read before the items; 0 = the
    model knows no users."""
    constrained_softmax: bool = False
    """The softmax of a level is over the codes that continue to a real item, in training as in search; the paper's is
    over all tokens."""

    def __post_init__(self) -> None:
        _ = self.as_liger  # its checks

    def build(self, catalogue: Catalogue) -> Liger:
        assert catalogue.features is not None  # needs_semantic_ids
        return Liger(catalogue.features, self.as_liger)

    @property
    def as_liger(self) -> LigerConfig:
        """The same model as LIGER with its generative head alone."""
        return LigerConfig(
            self.transformer, text=False, dense_weight=0.0, absolute_positions=self.absolute_positions,
            input_norm=self.input_norm, input_dropout=self.input_dropout, max_length=self.max_length,
            embedding_std=self.embedding_std, user_tokens=self.user_tokens, constrained_softmax=self.constrained_softmax,
        )  # fmt: skip
