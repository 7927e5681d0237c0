"""What SPAR and EmbSum are compared with, on the same encoder: mean two-tower (NAML-like), NRMS, MINER-style poly-attention.

Each makes one vector of a content and reads a history as such vectors: no attention from token to token across contents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayrec.models.content_encoder import ContentEncoder, History
from rayrec.models.content_ranker import ContentRanker
from rayrec.models.layers.poly_attention import PolyAttention
from rayrec.models.layers.relevance import Relevance


class MeanTwoTower(ContentRanker):
    """A content is the mean of its token states, a user the mean of the contents; the score is their inner product."""

    def users_of(self, history: History, interests: Tensor, interests_real: Tensor) -> Tensor:
        contents = mean_of(history.states, history.real)  # (U, H, d)
        return mean_of(contents, history.there).unsqueeze(1)

    def items_of(self, states: Tensor, real: Tensor) -> Tensor:
        return mean_of(states, real).unsqueeze(1)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.einsum("bmd,bcnd->bc", users, items)


@dataclass(frozen=True)
class NrmsConfig:
    """Shape of NRMS."""

    heads: int = 4
    """Of the attention among a history's contents."""
    code_dim: int = 128
    """Of the additive attention."""


class Nrms(ContentRanker):
    """NRMS (Wu et al. 2019) on an encoder: additive attention over tokens; self-attention, then additive, over contents."""

    def __init__(self, config: NrmsConfig, encoder: ContentEncoder) -> None:
        super().__init__(encoder)
        dim = encoder.config.dim
        if dim % config.heads:
            raise ValueError(f"nrms.heads {config.heads} must divide encoder.dim {dim}")
        self.content = PolyAttention(dim, 1, config.code_dim)
        self.among = nn.MultiheadAttention(dim, config.heads, batch_first=True)
        self.user = PolyAttention(dim, 1, config.code_dim)

    def users_of(self, history: History, interests: Tensor, interests_real: Tensor) -> Tensor:
        contents = content_vectors(self.content, history)
        hidden = ~history.there
        hidden = hidden & hidden.any(1, keepdim=True) & ~hidden.all(1, keepdim=True)  # an empty row would give NaN
        mixed, _ = self.among(contents, contents, contents, key_padding_mask=hidden, need_weights=False)
        gamma: Tensor = self.user(mixed, history.there)
        return gamma

    def items_of(self, states: Tensor, real: Tensor) -> Tensor:
        items: Tensor = self.content(states, real)
        return items

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.einsum("bmd,bcnd->bc", users, items)


@dataclass(frozen=True)
class MinerConfig:
    """Shape of MINER."""

    user_codes: int = 16
    """m, codes that read a history."""
    code_dim: int = 128
    """p, width of a code."""


class Miner(ContentRanker):
    """MINER-style (Li et al. 2022): poly-attention over content vectors, weighted by the candidate; no sessions, no LLM.

    Without MINER's disagreement loss and category bias.
    """

    def __init__(self, config: MinerConfig, encoder: ContentEncoder) -> None:
        super().__init__(encoder)
        dim = encoder.config.dim
        self.content = PolyAttention(dim, 1, config.code_dim)
        self.user = PolyAttention(dim, config.user_codes, config.code_dim)
        self.relevance = Relevance(dim)

    def users_of(self, history: History, interests: Tensor, interests_real: Tensor) -> Tensor:
        gamma: Tensor = self.user(content_vectors(self.content, history), history.there)
        return gamma

    def items_of(self, states: Tensor, real: Tensor) -> Tensor:
        items: Tensor = self.content(states, real)
        return items

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        scores: Tensor = self.relevance(users, items)
        return scores


def mean_of(states: Tensor, real: Tensor) -> Tensor:
    """Mean of states (..., L, d) over real (..., L); zeros where nothing is."""
    weight = real.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(-2) / weight.sum(-2).clamp_min(1.0)


def content_vectors(attention: PolyAttention, history: History) -> Tensor:
    """(U, H, d) of a history's grid by an attention of one code."""
    states = history.states
    flat = attention(states.flatten(0, 1), history.real.flatten(0, 1))  # (U * H, 1, d)
    vectors: Tensor = flat.view(*states.shape[:2], states.shape[3])
    return vectors
