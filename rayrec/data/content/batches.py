"""Batches of impressions from a content log and its tokens: each text and each history stands in a batch once."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rayrec.data.content.lists import Lists
from rayrec.data.content.log import ContentError, ContentLog
from rayrec.data.content.tokens import ContentTokens
from rayrec.models.content_inputs import ContentBatch, Texts

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ContentInputs:
    """A log beside its tokens. interest, summary: the versions of user texts that models read and learn to write, or None.

    max_history: newest items of a history that are read.
    """

    log: ContentLog
    tokens: ContentTokens
    max_history: int
    interest: str | None = None
    summary: str | None = None

    def __post_init__(self) -> None:
        for name in (self.interest, self.summary):
            if name is not None and name not in self.tokens.user_texts:
                there = ", ".join(self.tokens.user_texts) or "none"
                raise ContentError(f"no user texts of version {name!r} were tokenized; there are: {there}")

    @property
    def content_slots(self) -> int:
        """Tokens of the longest item."""
        return max(1, int(self.tokens.items.lengths.max(initial=0)))

    @property
    def interest_slots(self) -> int:
        """Tokens of the longest interest text; 0 without any."""
        return 0 if self.interest is None else int(self.tokens.user_texts[self.interest].lengths.max(initial=0))

    def batch(self, histories: Rows, users: Rows, candidates: Rows, labels: Rows) -> ContentBatch:
        """Of rows of histories (U,), and impressions: users (B,) into ``histories``, item numbers (B, C), labels (B, C)."""
        read = self.log.histories.padded(histories, self.max_history)
        items, places = np.unique(np.concatenate([[0], read.ravel(), candidates.ravel()]), return_inverse=True)
        owners = self.log.owners[histories]
        return ContentBatch(
            self.contents(items[1:]),
            torch.from_numpy(places[1 : 1 + read.size].reshape(read.shape)),
            self._texts(self.interest, histories), self._texts(self.summary, histories),
            torch.from_numpy(users),
            torch.from_numpy(places[1 + read.size :].reshape(candidates.shape)),
            torch.from_numpy(labels),
            torch.from_numpy(owners),
        )  # fmt: skip

    def contents(self, items: Rows) -> Texts:
        """Texts of item numbers (N,)."""
        return _texts(self.tokens.items, items - 1, items)

    def refuse_texts_that_know(self, split: str) -> None:
        """Raises ContentError for texts that know the answers of the impressions that they would be read with.

        Models are given summaries in training only, and EmbSum's user is then read from them too.
        """
        for version in (self.interest, self.summary if split == "train" else None):
            if version is not None:
                self.log.refuse_texts_that_know(split, version)

    def _texts(self, version: str | None, histories: Rows) -> Texts:
        if version is None:
            nothing = torch.zeros(len(histories), 0)
            return Texts(nothing.long(), nothing.bool(), torch.zeros(len(histories), dtype=torch.int64))
        rows = self.log.text_rows(version, histories)
        return _texts(self.tokens.user_texts[version], rows, -1 - rows)


def _texts(lists: Lists, rows: Rows, keys: Rows) -> Texts:
    tokens = torch.from_numpy(lists.padded(rows, padding=0))
    real = torch.arange(tokens.shape[1]) < torch.from_numpy(lists.lengths[rows]).unsqueeze(1)
    return Texts(tokens, real, torch.from_numpy(keys))
