"""EmbSum (arXiv 2405.11441): a decoder learns to write what an LLM wrote of a user; its last state joins the user's embedding.

The encoder reads each session on its own; the decoder attends to the states of all of them (fusion in the decoder) and is taught
the summary by teacher forcing: a target, never an input. User: the sessions' first states and the decoder's last state, through
poly-attention of m codes. Candidate: poly-attention of n codes over its tokens. L = L_NCE + lambda * L_sum.

The last state is the one that predicts the end token: of the summary in training, of a greedy decode elsewhere (choice), which
is computed offline with the user's embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from rayrec.models.content_baselines import mean_of
from rayrec.models.content_encoder import ContentEncoder, History
from rayrec.models.content_inputs import ContentBatch, Texts
from rayrec.models.content_ranker import ContentRanker, nce
from rayrec.models.layers.poly_attention import PolyAttention
from rayrec.models.layers.relevance import Relevance
from rayrec.models.t5 import T5Config, T5Decoder


@dataclass(frozen=True)
class EmbsumConfig:
    """Shape and loss of EmbSum."""

    user_codes: int = 16
    """m, codes of a user."""
    item_codes: int = 4
    """n, codes of a candidate."""
    code_dim: int = 128
    """p, width of a code."""
    summary_weight: float = 0.05
    """lambda, of the loss of writing; 0 = no decoder at all."""
    max_summary: int = 128
    """Tokens written, the end aside: as many as the longest text that is taught, or its end is never reached."""
    decoder_layers: int = 2
    """Layers of the decoder, whose width is the encoder's ``dim``."""
    decoder_heads: int = 4
    """Attention heads of a decoder layer."""
    decoder_feed_forward: int = 512
    """Inner size of the decoder's feed-forward layers."""
    decoder_dropout: float = 0.1
    """Dropout in the decoder: a narrow one from scratch learns to tell users apart many times sooner without."""
    global_state: bool = True
    """False = the decoder's last state has no part in the user's embedding."""
    poly_user: bool = True
    """False = a user is the mean instead of the codes (no UPE)"""
    poly_item: bool = True
    """False = a candidate is the mean instead of the codes (no CPE)"""

    def __post_init__(self) -> None:
        if not self.summary_weight >= 0 or self.max_summary < 1:
            raise ValueError("embsum.summary_weight must be at least 0, max_summary at least 1")


@dataclass(frozen=True)
class Written:
    """tokens: (U, T) int64 of a greedy decode, then end tokens. last: (U, d) the state that predicts the first end."""

    tokens: Tensor
    last: Tensor


class Embsum(ContentRanker):
    """vocabulary, start, end: of the tokenizer; summaries begin with ``start`` and end with ``end``."""

    def __init__(self, config: EmbsumConfig, encoder: ContentEncoder, vocabulary: int, start: int, end: int) -> None:
        super().__init__(encoder)
        self.config, self.start, self.end = config, start, end
        dim = encoder.config.dim
        self.user_codes = PolyAttention(dim, config.user_codes, config.code_dim) if config.poly_user else None
        self.item_codes = PolyAttention(dim, config.item_codes, config.code_dim) if config.poly_item else None
        self.relevance = Relevance(dim)
        self.decoder: _Writer | None = None
        if config.summary_weight > 0:
            if dim % config.decoder_heads:
                raise ValueError(f"embsum.decoder_heads {config.decoder_heads} must divide encoder.dim {dim}")
            self.decoder = _Writer(config, dim, vocabulary)

    def users_of(self, history: History, interests: Tensor, interests_real: Tensor) -> Tensor:
        """The interest text has no part in it."""
        reads = self.decoder is not None and self.config.global_state
        return self._gamma(history, self.write(history).last if reads else None)

    def users_and_summaries(self, contents: Texts, histories: Tensor, interests: Texts) -> tuple[Tensor, Tensor | None]:
        if self.decoder is None:
            return self.users(contents, histories, interests), None
        history = self.encoder.history(contents, histories)
        written = self.write(history)
        return self._gamma(history, written.last if self.config.global_state else None), written.tokens

    def items_of(self, states: Tensor, real: Tensor) -> Tensor:
        if self.item_codes is None:
            return mean_of(states, real).unsqueeze(1)
        items: Tensor = self.item_codes(states, real)
        return items

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        scores: Tensor = self.relevance(users, items)
        return scores

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"nce": 1.0} if self.decoder is None else {"nce": 1.0, "summary": self.config.summary_weight}

    def loss_sizes(self, batch: ContentBatch) -> dict[str, int]:
        written = int(batch.summaries.real[:, 1:].sum())
        return super().loss_sizes(batch) | ({} if self.decoder is None else {"summary": written})

    def losses(self, batch: ContentBatch) -> dict[str, Tensor]:
        if self.decoder is None:
            return super().losses(batch)
        items, history = self._read(batch)
        last, summary = self._taught(history, batch.summaries)
        users = self._gamma(history, last if self.config.global_state else None)
        return {"nce": nce(self._scores(users, items, batch)), "summary": summary}

    @torch.no_grad()
    def write(self, history: History) -> Written:
        """The summaries of U users, greedily."""
        assert self.decoder is not None
        states, real = _fused(history)
        cache = self.decoder.decoder.cache(states, real)
        users = len(states)
        token = torch.full((users, 1), self.start, device=states.device)
        done = torch.zeros(users, dtype=torch.bool, device=states.device)
        last, tokens = states.new_zeros(users, states.shape[2]), []
        for _ in range(self.config.max_summary + 1):
            state = self.decoder.decoder.step(self.decoder.embed(token), cache)[:, 0]  # (U, d)
            last = torch.where(done.unsqueeze(1), last, state)
            token = self.decoder.logits(state).argmax(-1, keepdim=True).masked_fill(done.unsqueeze(1), self.end)
            tokens.append(token)
            done = done | (token.squeeze(1) == self.end)
            if bool(done.all()):
                break
        return Written(torch.cat(tokens, 1), last)

    def _taught(self, history: History, summaries: Texts) -> tuple[Tensor, Tensor]:
        """The state (U, d) that predicts each summary's end (without a summary: its start), and the mean loss of a token."""
        assert self.decoder is not None
        states, real = _fused(history)
        tokens, there = summaries.tokens, summaries.real
        if tokens.shape[1] < 2:  # nobody has a summary
            tokens = torch.full((len(states), 2), self.end, device=states.device)
            there = torch.zeros_like(tokens, dtype=torch.bool)
        given = tokens[:, :-1].clone()
        given[:, 0] = self.start
        cache = self.decoder.decoder.cache(states, real)
        out = self.decoder.decoder(self.decoder.embed(given), cache)  # (U, T - 1, d)
        wanted = there[:, 1:]
        last = out[torch.arange(len(out), device=out.device), (wanted.sum(1) - 1).clamp_min(0)]
        if not bool(wanted.any()):
            return last, out.sum() * 0.0
        return last, cross_entropy(self.decoder.logits(out[wanted]).float(), tokens[:, 1:][wanted])

    def _gamma(self, history: History, last: Tensor | None) -> Tensor:
        session = self.encoder.config.session
        vectors, there = history.states[:, ::session, 0], history.there[:, ::session]  # (U, sessions, d) first states
        if last is not None:
            vectors = torch.cat([last.unsqueeze(1).to(vectors.dtype), vectors], 1)
            there = torch.cat([torch.ones_like(there[:, :1]), there], 1)
        if self.user_codes is None:
            return mean_of(vectors, there).unsqueeze(1)
        gamma: Tensor = self.user_codes(vectors, there)
        return gamma


class _Writer(nn.Module):
    """A T5 decoder as wide as the projected states, with its own token embeddings, which make the logits too."""

    def __init__(self, config: EmbsumConfig, dim: int, vocabulary: int) -> None:
        super().__init__()
        heads = config.decoder_heads
        self.decoder = T5Decoder(
            T5Config(
                dim, config.decoder_feed_forward, heads, dim // heads, 1, config.decoder_layers, config.decoder_dropout
            )
        )
        self.embed = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embed.weight, std=1.0)
        self.scale = dim**-0.5

    def logits(self, states: Tensor) -> Tensor:
        """(..., V) of states (..., d); scaled as T5's with tied embeddings."""
        return linear(states * self.scale, self.embed.weight)


def _fused(history: History) -> tuple[Tensor, Tensor]:
    """States (U, T, d) of all sessions side by side and their mask, cut to slots that any user has."""
    states, real = history.states.flatten(1, 2), history.real.flatten(1)
    used = real.any(0)
    if not bool(used.any()):
        used = used.clone()
        used[0] = True
    return states[:, used], real[:, used]
