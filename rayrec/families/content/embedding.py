"""A content ranker's embeddings of items and users from token ids: what the jobs write ahead and the service makes on demand."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rayrec.data.content.batches import ContentInputs
from rayrec.data.content.embeddings import EmbeddingsRecord, What
from rayrec.data.content.streams import ContentStreamConfig, budget_batches
from rayrec.families.content.bundle import ContentBundle
from rayrec.models.content_inputs import Texts, pad_texts

Ids = Sequence[int]


class ContentEmbedder:
    """Reads under a token budget, whatever is asked; a row is the same in any company. Not thread-safe."""

    def __init__(self, bundle: ContentBundle, token_budget: int = 65_536) -> None:
        self._model, self._tokenizer, self._shape = bundle.model, bundle.tokenizer, bundle.saved.vocabulary.shape
        self._stream = ContentStreamConfig(token_budget=token_budget)

    @torch.inference_mode()
    def items(self, contents: Sequence[Ids]) -> Tensor:
        """Lambda (N, n, d) of N contents."""
        parts = [
            (rows, self._model.items(pad_texts([list(contents[row]) for row in rows])))
            for rows in self._batches([1] * len(contents), [len(one) for one in contents])
        ]
        return _in_order(parts, self._width(of_items=True))

    @torch.inference_mode()
    def users(self, histories: Sequence[Sequence[Ids]], interests: Sequence[Ids]) -> tuple[Tensor, list[str]]:
        """Gamma (U, m, d) of histories, newest first, and interest texts (empty: none); and what the model writes of each."""
        read = [history[: self._shape.max_history] for history in histories]
        parts, texts = [], [""] * len(read)
        longest = [max((len(one) for one in history), default=1) for history in read]
        for rows in self._batches([len(history) for history in read], longest):
            places: dict[tuple[int, ...], int] = {}  # each text is read once
            numbers = [[places.setdefault(tuple(one), 1 + len(places)) for one in read[row]] for row in rows]
            slots = max(1, *map(len, numbers))
            grid = torch.tensor([row + [0] * (slots - len(row)) for row in numbers])
            users, written = self._model.users_and_summaries(
                pad_texts([list(one) for one in places]), grid, self._interests([interests[row] for row in rows])
            )
            parts.append((rows, users))
            if written is not None:
                for row, ids in zip(rows, written.tolist(), strict=True):
                    texts[row] = self._tokenizer.decode(ids)
        return _in_order(parts, self._width(of_items=False)), texts

    def _interests(self, interests: Sequence[Ids]) -> Texts:
        slots = self._shape.interest_slots
        texts = pad_texts([list(one[:slots]) for one in interests])
        return Texts(texts.tokens[:, :slots], texts.real[:, :slots], texts.keys)

    def _batches(self, contents: Sequence[int], slots: Sequence[int]) -> Iterator[list[int]]:
        """Rows that are read together, by their contents and tokens of the longest one."""
        if not len(contents):
            return
        order = np.lexsort((slots, contents))
        for cut in budget_batches(np.asarray(contents)[order], max(slots), self._stream):
            yield order[cut].tolist()

    def _width(self, *, of_items: bool) -> tuple[int, int]:
        """Codes and d, of one text that says nothing."""
        nothing = pad_texts([[self._tokenizer.start, self._tokenizer.end]])
        model = self._model
        found = (
            model.items(nothing) if of_items else model.users(nothing, torch.ones(1, 1).long(), self._interests([[]]))
        )
        return int(found.shape[1]), int(found.shape[2])

    def record(self, what: What, inputs: ContentInputs, weights: str, shard: int) -> EmbeddingsRecord:
        """Of all items, or of all users as they are now."""
        rows = len(inputs.log.items if what == "items" else inputs.log.users)
        codes, dim = self._width(of_items=what == "items")
        return EmbeddingsRecord(what, weights, source_of(what, inputs), rows, codes, dim, shard)


def source_of(what: What, inputs: ContentInputs) -> str:
    """16 digits: of items their names, texts and ids; of users their names, histories and interest texts too."""
    log, tokens = inputs.log, inputs.tokens
    digest = hashlib.sha256(f"{log.items.fingerprint} {inputs.max_history} {inputs.interest}".encode())
    lists = [tokens.items]
    if what == "users":
        digest.update("\0".join(log.users.to_pylist()).encode())
        digest.update(np.ascontiguousarray(log.current).tobytes())
        lists.append(log.histories)
        if inputs.interest is not None:
            digest.update("\0".join(log.user_texts[inputs.interest].texts.to_pylist()).encode())
            lists.append(tokens.user_texts[inputs.interest])
    for one in lists:
        digest.update(np.ascontiguousarray(one.offsets).tobytes())
        digest.update(np.ascontiguousarray(one.values).tobytes())
    return digest.hexdigest()[:16]


def _in_order(parts: Sequence[tuple[list[int], Tensor]], shape: tuple[int, int]) -> Tensor:
    found = torch.empty(sum(len(rows) for rows, _ in parts), *shape)
    for rows, embeddings in parts:
        found[torch.tensor(rows)] = embeddings.float()
    return found
