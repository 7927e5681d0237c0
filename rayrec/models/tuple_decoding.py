"""A T5 decoder that emits an item's tuple of tokens, and its decoding in progress for the beam search."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rayrec.models.known_items import KnownItems
from rayrec.models.t5 import DecoderCache, T5Config, T5Decoder


class TupleDecoder(nn.Module):
    """Tokens in 0..num_tokens - 1; 0 starts the decoder. States that it attends to: (B, L, D) of the config's width."""

    def __init__(self, config: T5Config, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.token_embedding = nn.Embedding(num_tokens, config.dim)
        self.decoder = T5Decoder(config)
        self.head = nn.Linear(config.dim, num_tokens, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        nn.init.normal_(self.head.weight, std=config.dim**-0.5)

    def cross_entropies(self, tokens: Tensor, states: Tensor, real: Tensor) -> Tensor:
        """(B,) mean over the M tokens (B, M) of their negative log-likelihood, given states (B, L, D)."""
        cache = self.decoder.cache(states, real)
        start = tokens.new_zeros(len(tokens), 1)
        h = self.decoder(self.token_embedding(torch.cat([start, tokens[:, :-1]], 1)), cache)
        each = cross_entropy(self.head(h).float().flatten(0, 1), tokens.flatten(), reduction="none")
        return each.view(tokens.shape).mean(1)

    def decoding(self, states: Tensor, real: Tensor) -> "TupleDecoding":
        """For ``rayrec.retrieval.beam_search``."""
        return TupleDecoding(self.token_embedding, self.decoder, self.head, self.decoder.cache(states, real))


class TupleDecoding:
    """Decoding in progress; all keys and values lie once a user, for all of its beams.

    known: where the softmaxes run over the codes that continue to one of these items only; None = over all tokens.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        decoder: T5Decoder,
        head: nn.Linear,
        cache: DecoderCache,
        known: KnownItems | None = None,
    ) -> None:
        self._embedding, self._decoder, self._head, self._cache = embedding, decoder, head, cache
        self._users = len(cache.cross_bias)
        self._known, self._level = known, 0
        self._nodes = torch.zeros(self._users, 1, dtype=torch.int64, device=cache.cross_bias.device)  # of each beam

    def first(self) -> Tensor:
        start = torch.zeros(self._users, 1, dtype=torch.int64, device=self._cache.cross_bias.device)
        return self._step(start)

    def next(self, parents: Tensor, tokens: Tensor) -> Tensor:
        self._cache.follow(parents)
        if self._known is not None:
            self._nodes = self._known.child(self._level, self._nodes.gather(1, parents), tokens)
            self._level += 1
        return self._step(tokens)

    def _step(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self._head(self._decoder.step(self._embedding(tokens), self._cache)).float()  # (U, W, V)
        if self._known is None:
            return logits.log_softmax(-1)
        return logits - self._known.among_children(logits, self._level, self._nodes).logsumexp(-1, keepdim=True)
