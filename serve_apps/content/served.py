"""A content ranker ready to answer: stored embeddings mapped into memory, the light score, an encoder for what is not stored."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrec.data.content.embeddings import StoredEmbeddings, pointer_to
from rayrec.data.content.tokens import item_tokens
from rayrec.families.content.bundle import ContentBundle, load_content_ranker
from rayrec.families.content.embedding import ContentEmbedder
from serve_apps.content.request import ContentRequest, GivenContent, RankedContent
from serve_apps.service.model_reference import ModelReference, refuse_non_finite
from serve_apps.service.refusals import Problem, RequestError, one_line

logger = logging.getLogger("ray.serve")
_OF_ALL = 10
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Store:
    """Embeddings of one moment. state: of the files that say what is in force."""

    items: StoredEmbeddings | None
    users: StoredEmbeddings | None
    state: tuple[object, ...]


@dataclass(frozen=True)
class _Asked:
    """A request against a store. user: row, or None: the next of the encoded ones. candidates: row, or an item's ids."""

    request: ContentRequest
    user: int | None
    history: tuple[list[Ids], list[int]] | None  # with the interest text's ids
    candidates: list[int | Ids] | None
    ignored: list[str]


class ServedContent:
    """The answers of one version. ``root``: of jobs.embed_*; None = nothing is stored, everything comes as text.

    When another day's embeddings are put in force, they are opened by a thread beside and then answer; what is wrong with them
    is logged and ``refused`` called, and those before stay. One thread asks it.
    """

    def __init__(
        self, bundle: ContentBundle, name: str, version: str, root: Path | None,
        refused: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.bundle, self.name, self.version = bundle, name, version
        self._root, self._refused = root, refused
        self._embedder, self._fields = ContentEmbedder(bundle), tuple(one.name for one in bundle.saved.fields)
        self._opening: threading.Thread | None = None
        self._store = self._open()
        self._seen = self._store.state

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def _reads_interests(self) -> bool:
        return self.bundle.saved.vocabulary.shape.interest_slots > 0

    def describe(self) -> dict[str, Any]:
        """Version, what it reads, what is stored, metrics."""
        metadata, store, saved = self.bundle.metadata, self._store, self.bundle.saved
        return {
            "name": self.name, "version": self.version, "kind": metadata.kind, "model": saved.ranker.model,
            "fields": list(self._fields), "max_history": saved.vocabulary.shape.max_history,
            "reads_interests": self._reads_interests,
            "items": _described(store.items), "users": _described(store.users),
            "created": metadata.created, "rayrec": metadata.rayrec, "metrics": metadata.metrics,
        }  # fmt: skip

    def rank(self, requests: Sequence[ContentRequest]) -> list[RankedContent | RequestError]:
        """An answer or what is wrong, for each request; what must be encoded is encoded together, like requests are scored so."""
        self._look()
        store = self._store
        found: list[_Asked | RequestError] = []
        for request in requests:
            try:
                found.append(self._resolve(request, store))
            except RequestError as error:
                found.append(error)
        asked = [one for one in found if isinstance(one, _Asked)]
        answers = iter(self._answers(asked, store) if asked else ())
        return [one if isinstance(one, RequestError) else next(answers) for one in found]

    def refresh(self) -> None:
        """Open what is in force now."""
        try:
            self._store = self._open()
            logger.info(f"{self.label}: embeddings {_described(self._store.items)} are in force")
        except Exception as error:  # whatever is wrong with a file from outside: those before stay
            self._refused()
            logger.error(f"{self.label}: new embeddings are not taken, those before stay: {one_line(error)}")

    def _look(self) -> None:
        """Start opening new embeddings when there are any. What was refused is tried again when it has changed."""
        state = self._state()
        if state != self._seen and not (self._opening is not None and self._opening.is_alive()):
            self._seen = state
            self._opening = threading.Thread(target=self.refresh, daemon=True)
            self._opening.start()

    def _state(self) -> tuple[object, ...]:
        if self._root is None:
            return ()
        found: list[object] = []
        for what in ("items", "users"):
            try:
                stat = os.stat(pointer_to(self._root, self.bundle.weights, what))
                found.append((stat.st_mtime_ns, stat.st_ino))
            except OSError:
                found.append(None)
        return tuple(found)

    def _open(self) -> Store:
        """Raises ConfigError. Items must be stored when anything is; users need not be."""
        state = self._state()
        if self._root is None:
            return Store(None, None, state)
        items = StoredEmbeddings(self._root, self.bundle.weights, "items")
        users = None if state[1] is None else StoredEmbeddings(self._root, self.bundle.weights, "users")
        for one in (items, users):
            if one is not None:
                _ = one.numbers  # made here, not by the first request
        return Store(items, users, state)

    def _resolve(self, request: ContentRequest, store: Store) -> _Asked:
        """Raises RequestError that names the unknown user, item or field."""
        user: int | None = None
        history: tuple[list[Ids], list[int]] | None = None
        ignored: list[str] = []
        if request.user is not None:
            user = None if store.users is None else store.users.numbers.get(request.user)
            if user is None:
                raise _refusal(("user",), f"no embedding of {request.user!r} is stored; give a history instead")
        else:
            history, ignored = self._history(request, store)
        candidates: list[int | Ids] | None = None
        if request.candidates is not None:
            ids = iter(self._ids("candidates", request.candidates))
            candidates = []
            for place, one in enumerate(request.candidates):
                row = None if isinstance(one, GivenContent) or store.items is None else store.items.numbers.get(one)
                if isinstance(one, str) and row is None:
                    raise _refusal(("candidates", place), f"no embedding of {one!r} is stored; give its texts instead")
                candidates.append(next(ids) if row is None else row)
        elif store.items is None:
            raise _refusal(("candidates",), "no items are stored; give candidates")
        return _Asked(request, user, history, candidates, ignored)

    def _history(self, request: ContentRequest, store: Store) -> tuple[tuple[list[Ids], list[int]], list[str]]:
        given, ignored = iter(self._ids("history", request.history or [])), []
        contents: list[Ids] = []
        for one in request.history or []:
            if isinstance(one, GivenContent):
                contents.append(next(given))
            elif store.items is not None and one in store.items.numbers:
                contents.append(tuple(store.items.tokens(store.items.numbers[one])))
            else:
                ignored.append(one)
        interest: list[int] = []
        if request.interest is not None:
            if not self._reads_interests:
                raise _refusal(("interest",), "this model reads no interest texts")
            saved = self.bundle.saved
            (interest,) = self.bundle.tokenizer.texts([request.interest], saved.max_text_tokens)
        if not contents and not interest:
            raise _refusal(("history",), "holds no item that is stored, and there is no interest text")
        return (contents, interest), ignored

    def _ids(self, where: str, contents: Sequence[str | GivenContent]) -> list[Ids]:
        """Of those that come as text."""
        given = [(place, one) for place, one in enumerate(contents) if isinstance(one, GivenContent)]
        for place, one in given:
            unknown = next((name for name in one.texts if name not in self._fields), None)
            if unknown is not None:
                raise _refusal((where, place, "texts", unknown), f"unknown field; there are {', '.join(self._fields)}")
        if not given:
            return []
        saved = self.bundle.saved
        columns: Mapping[str, list[str]] = {f: [_clean(one.texts.get(f, "")) for _, one in given] for f in self._fields}
        rows = item_tokens(self.bundle.tokenizer, saved.fields, columns, saved.vocabulary.shape.content_slots)
        return [tuple(row) for row in rows]

    @torch.inference_mode()
    def _answers(self, asked: Sequence[_Asked], store: Store) -> list[RankedContent]:
        new: dict[Ids, int] = {}
        for one in asked:
            for candidate in one.candidates or ():
                if isinstance(candidate, tuple):
                    new.setdefault(candidate, len(new))
        encoded = self._embedder.items(list(new)) if new else torch.empty(0)
        unknown = [one.history for one in asked if one.history is not None]
        made, summaries = (
            self._embedder.users([h for h, _ in unknown], [i for _, i in unknown]) if unknown else (None, [])
        )
        users, texts, next_made = [], [], 0
        for one in asked:
            if one.user is not None:
                assert store.users is not None
                users.append(store.users.rows(np.asarray([one.user]))[0])
                texts.append((store.users.column("interest", one.user), store.users.column("summary", one.user)))
            else:
                assert made is not None
                users.append(made[next_made])
                texts.append((one.request.interest or "", summaries[next_made]))
                next_made += 1
        scores: dict[int, Tensor] = {}
        groups: dict[int, list[int]] = {}
        for i, one in enumerate(asked):
            if one.candidates is None:
                scores[i] = self._of_all(users[i], store)
            else:
                groups.setdefault(len(one.candidates), []).append(i)
        for rows in groups.values():
            items = torch.stack([self._candidates(asked[i].candidates or [], store, encoded, new) for i in rows])
            together = self.bundle.model.score(torch.stack([users[i] for i in rows]), items)
            scores |= zip(rows, together, strict=True)
        return [self._told(one, scores[i].double(), texts[i], store) for i, one in enumerate(asked)]

    def _of_all(self, user: Tensor, store: Store) -> Tensor:
        assert store.items is not None
        parts = [self.bundle.model.score(user[None], part[None])[0] for _, part in store.items.parts()]
        return torch.cat(parts) if parts else torch.empty(0)

    def _candidates(
        self, candidates: Sequence[int | Ids], store: Store, encoded: Tensor, new: Mapping[Ids, int]
    ) -> Tensor:
        """(C, n, d)."""
        stored = [(place, c) for place, c in enumerate(candidates) if isinstance(c, int)]
        if len(stored) == len(candidates):
            assert store.items is not None
            return store.items.rows(np.asarray(candidates))
        read = [(place, new[c]) for place, c in enumerate(candidates) if isinstance(c, tuple)]
        found = torch.empty(len(candidates), *encoded.shape[1:])
        found[[place for place, _ in read]] = encoded[[row for _, row in read]]
        if stored:
            assert store.items is not None
            found[[place for place, _ in stored]] = store.items.rows(np.asarray([row for _, row in stored]))
        return found

    def _told(self, one: _Asked, scores: Tensor, texts: tuple[str, str], store: Store) -> RankedContent:
        request = one.request
        wanted = request.k or (_OF_ALL if request.candidates is None else len(scores))
        order = scores.argsort(descending=True, stable=True)[:wanted].tolist()
        names: list[str | None]
        if request.candidates is None:
            assert store.items is not None
            names = [store.items.names[row] for row in order]
        else:
            given = [request.candidates[place] for place in order]
            names = [g.item if isinstance(g, GivenContent) else g for g in given]
        return RankedContent(
            names, scores[order].tolist(), None if request.candidates is None else order, one.ignored,
            sum(isinstance(c, tuple) for c in one.candidates or ()),
            (texts[0] or None) if request.with_interest else None, (texts[1] or None) if request.with_summary else None,
            None if store.items is None else store.items.record.source,
        )  # fmt: skip


def load_served_content(
    reference: ModelReference, root: Path | None, refused: Callable[[], None] = lambda: None
) -> ServedContent:
    """Raises BundleError, RegistryError or ConfigError when there is nothing that can be served."""
    found = reference.resolve()
    bundle = load_content_ranker(found.model)
    refuse_non_finite(bundle.model, found.model)
    return ServedContent(bundle, str(found.name), str(found.version), root, refused)


def _described(stored: StoredEmbeddings | None) -> dict[str, Any] | None:
    return None if stored is None else {"stored": len(stored), "source": stored.record.source}


def _clean(text: str) -> str:
    """Lone surrogates, which JSON may hold and no tokenizer reads, become question marks."""
    return text.encode("utf-8", "replace").decode()


def _refusal(place: tuple[str | int, ...], message: str) -> RequestError:
    return RequestError([Problem(("body", *place), message, "value_error")])
