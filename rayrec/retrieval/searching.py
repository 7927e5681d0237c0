"""One way from histories to ranked items, for judging and for serving: what is evaluated is what is served.

dense        all items, by inner product (through an index) and the repeat bias if the model has one
generative   what a beam search over the trie of real items finds, by the log-likelihood of the tuple
hybrid       LIGER's: the generative candidates and all items that training never saw, by the dense score
"""

from dataclasses import dataclass
from typing import Generic, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rayrec.retrieval.beam_search import Decoding, beam_search
from rayrec.retrieval.hybrid import hybrid_ranking
from rayrec.retrieval.index import DenseIndex, IndexConfig
from rayrec.retrieval.repeats import count_repeats, held
from rayrec.retrieval.retriever import DenseHead, GenerativeHead, H, OneEncoding, Retriever
from rayrec.retrieval.trie import ItemTrie
from rayrec.typed_json import ConfigError

Method = Literal["dense", "generative", "hybrid"]
HEADS: dict[Method, tuple[Literal["dense", "generative"], ...]] = {
    "dense": ("dense",),
    "generative": ("generative",),
    "hybrid": ("dense", "generative"),
}


@dataclass(frozen=True)
class Found:
    """items: (B, k) int64, best first, 0 where fewer were found. scores: (B, k) by which they are ordered, -inf there."""

    items: Tensor
    scores: Tensor


class Searcher(Generic[H]):
    """Searches by the heads of one model. Vectors of the items, their index and their trie are made when first needed and kept:
    call ``weights_changed`` when the model was trained on, ``take_in`` when items were added to it.

    index: of the dense method. beams: of the beam search, unless a search asks for others.
    """

    def __init__(self, model: Retriever[H], index: IndexConfig | None = None, beams: int = 20) -> None:
        self.model, self.beams = model, beams
        self._index_config = index or IndexConfig()
        self._vectors: Tensor | None = None
        self._index: DenseIndex | None = None
        self._trie: ItemTrie | None = None

    @property
    def methods(self) -> tuple[Method, ...]:
        """By which the model can be searched."""
        return tuple(method for method in HEADS if not self._missing(method))

    def check(self, method: Method) -> None:
        """Raises ConfigError when the model lacks a head that ``method`` needs."""
        missing = self._missing(method)
        if missing:
            raise ConfigError(f"method {method!r} needs a {' and a '.join(missing)} head; this model has none")

    def prepare(self) -> None:
        """Make now what the first search by each method would make. Raises ValueError when the index cannot be built."""
        if self.model.dense is not None:
            self._dense_index()
        if self.model.generative is not None:
            self._item_trie()

    @torch.no_grad()
    def search(
        self,
        history: H,
        k: int,
        method: Method,
        *,
        beams: int | None = None,
        barred: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Found:
        """The k best items of each history. Raises ConfigError when the model lacks a head.

        barred: (B, X) items that are not to be returned, 0 = none. out: (N + 1,) bool, items that nobody is to get. The others
        move up. The beam search is no wider for either.
        """
        self.check(method)
        more = 0 if barred is None else barred.shape[1]
        wanted = min(k + more, self.model.num_items)
        if method == "generative":
            items, scores = self._generated(self._generative.decoding(history), beams)
        else:
            query, decoding = self._asked(history, method)
            query, repeats = query.float(), self._dense.repeats(history)
            generated = None if decoding is None else self._generated(decoding, beams)[0]
            with torch.autocast(query.device.type, enabled=False):  # products in bf16 would tie items
                vectors = self._item_vectors()
                if generated is not None:
                    cold = self._cold()
                    ranked = wanted if out is None else max(wanted, generated.shape[1] + len(cold))
                    items, scores = hybrid_ranking(query, generated, cold, vectors, ranked, repeats)
                else:
                    room = 0 if repeats is None else repeats.items.shape[1]
                    near = self._dense_index().search(
                        query, min(wanted + room, self.model.num_items), out=None if out is None else out[1:]
                    )
                    items, scores = near.rows.to(query.device) + 1, near.scores.to(query.device)
                    if repeats is not None:
                        ranked = wanted if out is None else wanted + room  # what is out of a history leaves no gap
                        items, scores = count_repeats(query, vectors, repeats, items, scores, ranked)
        if barred is not None or out is not None:
            items, scores = _without(items, scores, barred, out)
        missing = max(0, k - items.shape[1])
        return Found(pad(items[:, :k], (0, missing)), pad(scores[:, :k], (0, missing), value=-torch.inf))

    def weights_changed(self) -> None:
        """Forget what was made with the weights of before."""
        self._vectors = self._index = None

    @torch.no_grad()
    def take_in(self, numbers: Tensor) -> None:
        """Items ``numbers`` (n,) were appended to the model: the next search can find them."""
        self._trie = None
        if self._vectors is not None:
            added = self._dense.item_vectors(numbers).float()
            self._vectors = torch.cat([self._vectors, added])
            if self._index is not None:
                self._index.add(added)

    def stored_bytes(self, method: Method) -> int:
        """What answering needs beside the weights: float32 vectors (dense), 2 bytes a code (generative), both (hybrid)."""
        stored = 0
        if "dense" in HEADS[method]:
            stored += 4 * self._item_vectors()[1:].numel()
        if "generative" in HEADS[method]:
            stored += 2 * self._generative.item_tokens[1:].numel()
        return stored

    def _missing(self, method: Method) -> list[str]:
        return [name for name in HEADS[method] if getattr(self.model, name) is None]

    @property
    def _dense(self) -> DenseHead[H]:
        head = self.model.dense
        assert head is not None
        return head

    @property
    def _generative(self) -> GenerativeHead[H]:
        head = self.model.generative
        assert head is not None
        return head

    def _asked(self, history: H, method: Method) -> tuple[Tensor, Decoding | None]:
        """The dense head's queries, and for the hybrid method how the other one decodes."""
        if method == "dense":
            return self._dense.query(history), None
        if isinstance(self.model, OneEncoding):
            both: tuple[Tensor, Decoding] = self.model.query_and_decoding(history)
            return both
        return self._dense.query(history), self._generative.decoding(history)

    def _generated(self, decoding: Decoding, beams: int | None) -> tuple[Tensor, Tensor]:
        found = beam_search(self._item_trie(), decoding, beams or self.beams)
        return found.items, found.scores

    def _item_trie(self) -> ItemTrie:
        if self._trie is None:
            tokens = self._generative.item_tokens
            self._trie = ItemTrie.of(tokens).to(tokens.device)
        return self._trie

    def _cold(self) -> Tensor:
        return (~self._generative.seen).nonzero().squeeze(1)[1:]  # row 0 is padding

    @torch.no_grad()
    def _item_vectors(self) -> Tensor:
        if self._vectors is None:
            self._vectors = self._dense.item_vectors().float()
        return self._vectors

    def _dense_index(self) -> DenseIndex:
        if self._index is None:
            self._index = DenseIndex.build(self._item_vectors()[1:], self._index_config)
        return self._index


def _without(items: Tensor, scores: Tensor, barred: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Items (B, C) and scores with the row's ``barred`` (B, X), and those that are ``out`` (N + 1,), replaced by 0 and -inf and
    moved to the end."""
    gone = items < 1  # (B, C)
    if barred is not None:
        gone = gone | held(items, barred)
    if out is not None:
        gone = gone | out[items]
    order = gone.long().argsort(dim=1, stable=True)
    gone = gone.gather(1, order)
    return items.gather(1, order).masked_fill(gone, 0), scores.gather(1, order).masked_fill(gone, -torch.inf)
