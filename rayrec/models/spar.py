"""SPAR (arXiv 2402.10555): a long history summarized by sparse poly-attention, one code a content, then by m user codes.

UHS: Y = sparse poly-attention over the interest text and the history's tokens. UIE: Gamma = poly-attention of m codes over Y
only. CCS: Lambda = poly-attention of n codes over the candidate's tokens. Every part can be left out, for the paper's ablations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrec.models.content_encoder import ContentEncoder, History
from rayrec.models.content_ranker import ContentRanker, ContentShape
from rayrec.models.layers.poly_attention import PolyAttention
from rayrec.models.layers.relevance import Relevance
from rayrec.models.layers.sparse_attention import SparsePattern, SparsePolyAttention


@dataclass(frozen=True)
class SparConfig:
    """Shape of SPAR."""

    user_codes: int = 16
    """m, codes of a user."""
    item_codes: int = 4
    """n, codes of a candidate."""
    code_dim: int = 128
    """p, width of a code."""
    window: int = 512
    """Tokens around its content that a code of UHS sees (MIND 512, Goodreads 256)."""
    random_share: float = 0.1
    """Share of the other tokens that it sees too."""
    block: int = 20
    """Codes that share random tokens."""
    sparse: bool = True
    """False = every code of UHS sees every token."""
    summarize: bool = True
    """False = no UHS, the user codes read all tokens."""
    history: bool = True
    """False = the interest text only."""
    item_summary: bool = True
    """False = no CCS, a candidate is its first token's state."""


class Spar(ContentRanker):
    def __init__(self, config: SparConfig, encoder: ContentEncoder, shape: ContentShape) -> None:
        super().__init__(encoder)
        self.config, dim = config, encoder.config.dim
        pattern = SparsePattern(
            shape.max_history,
            shape.content_slots,
            shape.interest_slots,
            config.window,
            config.random_share,
            config.block,
        )
        self.uhs = SparsePolyAttention(dim, config.code_dim, pattern) if config.summarize and config.history else None
        self.uie = PolyAttention(dim, config.user_codes, config.code_dim)
        self.ccs = PolyAttention(dim, config.item_codes, config.code_dim) if config.item_summary else None
        self.relevance = Relevance(dim)

    def users_of(self, history: History, interests: Tensor, interests_real: Tensor) -> Tensor:
        grid, real, there = history.states, history.real, history.there
        if not self.config.history:
            real, there = torch.zeros_like(real), torch.zeros_like(there)
        states = torch.cat([interests, grid.flatten(1, 2)], 1)
        seen = torch.cat([interests_real, real.flatten(1)], 1)
        if self.uhs is None:
            gamma: Tensor = self.uie(states, seen)
            return gamma
        if self.config.sparse:
            summary = self.uhs.summarize(interests, interests_real, grid, real)
        else:
            summary = self.uhs(states, seen)[:, : grid.shape[1]]
        # A user without a history still has an interest text: its first code stands.
        kept = there | (torch.arange(there.shape[1], device=there.device) == 0) & interests_real.any(1, keepdim=True)
        gamma = self.uie(summary, kept)
        return gamma

    def items_of(self, states: Tensor, real: Tensor) -> Tensor:
        if self.ccs is None:
            return states[:, :1]
        items: Tensor = self.ccs(states, real)
        return items

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        scores: Tensor = self.relevance(users, items)
        return scores
