"""What every content ranker is: embeddings of users and candidates that stand alone, a light score of both, and the NCE loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rayrec.models.content_encoder import ContentEncoder, History, front
from rayrec.models.content_inputs import ContentBatch, Texts


@dataclass(frozen=True)
class ContentShape:
    """The largest input that a model may meet: ``max_history`` contents, tokens of one, and of a user's text."""

    max_history: int
    content_slots: int
    interest_slots: int


class ContentRanker(nn.Module, ABC):
    """encoder: shared by users and candidates."""

    def __init__(self, encoder: ContentEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def users_of(self, history: History, interests: Tensor, interests_real: Tensor) -> Tensor:
        """Gamma (U, m, d) of histories, and the token states (U, I, d) of interest texts with their mask."""

    @abstractmethod
    def items_of(self, states: Tensor, real: Tensor) -> Tensor:
        """Lambda (N, n, d) of the token states (N, L, d) of contents."""

    @abstractmethod
    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """(B, C) of users (B, m, d) and candidates (B, C, n, d): all that scoring online takes."""

    def users(self, contents: Texts, histories: Tensor, interests: Texts) -> Tensor:
        """Gamma (U, m, d); see ``ContentBatch``."""
        return self._users(self.encoder.history(contents, histories), interests)

    def users_and_summaries(self, contents: Texts, histories: Tensor, interests: Texts) -> tuple[Tensor, Tensor | None]:
        """``users``, and the ids (U, T) of what the model writes of each, if it writes at all."""
        return self.users(contents, histories, interests), None

    def items(self, contents: Texts) -> Tensor:
        """Lambda (N, n, d) of N contents."""
        return self.items_of(self.encoder.texts(contents), contents.real)

    def embeddings(self, batch: ContentBatch) -> tuple[Tensor, Tensor]:
        """Gamma (U, m, d) and Lambda (B, C, n, d)."""
        items, history = self._read(batch)
        return self._users(history, batch.interests), items

    def _read(self, batch: ContentBatch) -> tuple[Tensor, History]:
        """Lambda (B, C, n, d) and the histories; a text that both sides have is read once, where it is read on its own."""
        contents = batch.contents
        if self.encoder.config.session == 1:
            states = self.encoder.texts(contents)
            history = self.encoder.history(contents, batch.histories, states)
            items = front(self.items_of(states, contents.real))
            return items[batch.candidates], history
        history = self.encoder.history(contents, batch.histories)
        rows, places = torch.cat([batch.candidates.new_zeros(1), batch.candidates.flatten()]).unique(
            return_inverse=True
        )
        some = Texts(*(part[rows[1:] - 1] for part in (contents.tokens, contents.real, contents.keys)))
        return front(self.items(some))[places[1:].view_as(batch.candidates)], history

    def scores(self, batch: ContentBatch) -> Tensor:
        """(B, C); padding scores -inf."""
        users, items = self.embeddings(batch)
        return self._scores(users, items, batch)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Names of the means that are trained and what each weighs."""
        return {"nce": 1.0}

    def loss_sizes(self, batch: ContentBatch) -> dict[str, int]:
        """Over how many terms of a batch each mean runs."""
        return {"nce": len(batch)}

    def losses(self, batch: ContentBatch) -> dict[str, Tensor]:
        """The means, scalars by name."""
        users, items = self.embeddings(batch)
        return {"nce": nce(self._scores(users, items, batch))}

    def _users(self, history: History, interests: Texts) -> Tensor:
        return self.users_of(history, self.encoder.texts(interests), interests.real)

    def _scores(self, users: Tensor, items: Tensor, batch: ContentBatch) -> Tensor:
        return self.score(users[batch.users], items).masked_fill(batch.candidates == 0, -torch.inf)


def nce(scores: Tensor) -> Tensor:
    """Mean -log softmax of the first candidate, the positive, among scores (B, 1 + k); -inf at padding."""
    return cross_entropy(scores.float(), torch.zeros(len(scores), dtype=torch.int64, device=scores.device))
