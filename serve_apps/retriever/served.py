"""A retriever bundle ready to answer: histories to items, by each method, and items that came after training."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import pad

from rayrec.data.log.hashing import hash_ids
from rayrec.families.retriever.bundle import RetrieverBundle, load_retriever
from rayrec.families.retriever.preferences import PreferenceReader
from rayrec.retrieval.index import IndexConfig
from rayrec.retrieval.retriever import Personal, Steered
from rayrec.retrieval.searching import HEADS, Method, Searcher
from rayrec.retrieval.semantic_ids import SemanticIds, add_item
from rayrec.text.encoder import EncoderError, TextEncoder, TextEncoderConfig
from serve_apps.items.changes import ItemChanges
from serve_apps.items.journal import AddedItem
from serve_apps.service.model_reference import ModelReference, refuse_non_finite
from serve_apps.service.refusals import Problem, RequestError

MAX_NAME, MAX_TEXT, MAX_LIST, MAX_K = 500, 20_000, 1000, 200
MAX_PREFERENCE, MAX_PREFERENCES = 2_000, 20
_MAX_BEAMS = 256  # cost and memory of a search grow with its beams, whatever a request excludes
_MAX_BEAM_ROWS = 4096  # users times beams of one search
logger = logging.getLogger("ray.serve")


Preference = Annotated[str, Field(max_length=MAX_PREFERENCE)]


class RetrieveRequest(BaseModel):
    """What a client asks for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    history: list[str] = Field(
        max_length=MAX_LIST, description="Items of the user, oldest first; may be empty beside a preference"
    )
    user: Annotated[str, Field(max_length=MAX_NAME)] | None = Field(
        None,
        description="Who asks, as in the training data, for models that know users; any other name is read by its hash",
    )
    k: int = Field(10, ge=1, le=MAX_K, description="How many items are wanted")
    method: Literal["dense", "generative", "hybrid"] | None = Field(None, description="Default: the best on validation")
    exclude: list[str] = Field(default_factory=list, max_length=MAX_LIST, description="Items not to return")
    exclude_history: bool = Field(False, description="Do not return items of the history")
    preference: Preference | Annotated[list[Preference], Field(max_length=MAX_PREFERENCES)] | None = Field(
        None, description="What the user wants, in plain words; several are joined; empty = none"
    )
    ignore_preference: bool = Field(False, description="Answer without it where the model cannot read preferences")

    @property
    def name(self) -> str:
        """The user's name as an import would have it, "" for none."""
        return (self.user or "").encode("utf-8", "replace").decode().strip()

    @property
    def wish(self) -> str:
        """The preference as one text, "" for none."""
        given = [self.preference] if isinstance(self.preference, str) else self.preference or []
        cleaned = [" ".join(text.encode("utf-8", "replace").decode().split()) for text in given]
        return ". ".join(text.rstrip(". ") if len(cleaned) > 1 else text for text in cleaned if text)


class NewItem(BaseModel):
    """An item that training never saw."""

    model_config = ConfigDict(extra="forbid", strict=True)
    item: str = Field(min_length=1, max_length=MAX_NAME, description="Its name")
    text: str = Field(min_length=1, max_length=MAX_TEXT, description="What describes it")


@dataclass(frozen=True)
class Retrieved:
    """items: at most k names, best first. scores: by which they are ordered. ignored: unknown items of the history.

    preference, user: whether one was used.
    """

    items: list[str]
    scores: list[float]
    method: Method
    ignored: list[str]
    preference: bool
    user: bool


class ServedRetriever:
    """The answers of one version. Its catalogue grows by the items that were added for it, and those that are taken out are not
    found, as ``changes`` has it when a search begins. Not thread-safe, but for ``embed``: one thread asks it.

    beams: least width of the search. max_added: items that it takes in; more are refused.
    """

    def __init__(
        self, bundle: RetrieverBundle, name: str, version: str, changes: ItemChanges, index: IndexConfig,
        *, beams: int = 20, max_added: int = 10_000,
    ) -> None:  # fmt: skip
        self.bundle, self.name, self.version = bundle, name, version
        self._changes, self._read, self._beams, self.max_added = changes, 0, beams, max_added
        self._names_out: frozenset[str] = frozenset()
        self._out: Tensor | None = None  # (N + 1,) bool, as of _names_out
        self._names = list(bundle.names)
        self._numbers = {item: number for number, item in enumerate(self._names, 1)}
        self._encoder: TextEncoder | None = None
        self._encoding = threading.Lock()
        self._searcher = Searcher(bundle.model, index, beams)
        self._searcher.prepare()
        self.methods = bundle.saved.by_default_first(self._searcher.methods)
        self._ids = None if bundle.saved.ids is None else _semantic_ids(bundle)
        self._user_tokens = bundle.saved.retrieval.architecture.user_tokens
        saved = bundle.saved.preferences
        self._reader = None if saved is None else PreferenceReader(saved, bundle.saved.retrieval)
        self._catch_up()

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def names(self) -> Sequence[str]:
        """Of the items, item i + 1 at place i; added ones at the end."""
        return self._names

    @property
    def digest(self) -> str:
        """Of the weights: what is added for one version means nothing to another."""
        return self.bundle.metadata.sha256["model.safetensors"][:16]

    def describe(self) -> dict[str, Any]:
        """Version, methods, metrics, and the size of the catalogue as of this replica's last request."""
        metadata = self.bundle.metadata
        return {
            "name": self.name,
            "version": self.version,
            "kind": metadata.kind,
            "model": self.bundle.saved.retrieval.model,
            "methods": list(self.methods),
            "items": len(self._names),
            "items_added": len(self._names) - self.bundle.saved.num_items,
            "reads_preferences": self._reader is not None,
            "reads_users": self._user_tokens > 0,
            "created": metadata.created,
            "rayrec": metadata.rayrec,
            "metrics": metadata.metrics,
        }

    def retrieve(
        self, requests: Sequence[RetrieveRequest], only: Sequence[Tensor | None] = ()
    ) -> list[Retrieved | RequestError]:
        """An answer or what is wrong, for each request; those of like cost go through the model together.

        only: for each request a mask (n + 1,) bool of the items, by number, that it is to get, None = all; the same object for
        those that may go together. Items behind its end are not to be got.
        """
        self._catch_up()
        answers: dict[int, Retrieved | RequestError] = {}
        masks = dict(enumerate(only))
        groups: dict[tuple[Method, int, int], list[int]] = {}
        for i, request in enumerate(requests):
            method = request.method or self.methods[0]
            if method not in self.methods:
                have = " and ".join(self.methods)
                answers[i] = _refusal("method", f"this model retrieves by {have}, not by {method}")
            elif request.wish and self._reader is None and not request.ignore_preference:
                answers[i] = _refusal(
                    "preference", "this model cannot read preferences; set ignore_preference to go without"
                )
            elif not (request.wish and self._reader) and not any(item in self._numbers for item in request.history):
                answers[i] = _refusal("history", "holds no item that this model knows")
            else:
                width = self._width(request) if "generative" in HEADS[method] else 0
                groups.setdefault((method, width, id(masks.get(i))), []).append(i)
        for (method, width, _), rows in groups.items():
            out = self._out_of(masks.get(rows[0]))
            size = max(1, _MAX_BEAM_ROWS // width) if width else len(rows)
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                answers |= zip(some, self._together(method, width, out, [requests[i] for i in some]), strict=True)
        return [answers[i] for i in range(len(requests))]

    def embed(self, new: NewItem) -> Tensor:
        """The embedding (E,) of a new item's text; may be called by any thread. Raises RequestError."""
        if self.bundle.tokenizer is None or not self._takes_new_items:
            raise _refusal("item", "this model knows items by their number only and cannot take new ones")
        self._check_room_for(new)  # before the text is read, which takes longest; ``add`` looks again
        assert self.bundle.saved.ids is not None
        with self._encoding:
            try:
                if self._encoder is None:
                    self._encoder = TextEncoder(TextEncoderConfig(self.bundle.saved.ids.encoder))
            except EncoderError as error:
                raise _refusal("text", str(error)) from None
            return self._encoder([new.text])[0]

    def entry(self, new: NewItem, embedding: Tensor) -> AddedItem:
        """A new item as all replicas are to take it in. Raises RequestError when this one could not."""
        self._catch_up()
        self._check_room_for(new)
        try:
            self._with_ids_of(embedding)
        except ValueError as error:
            raise _refusal("text", str(error)) from None
        return AddedItem(self.digest, new.item, new.text, tuple(embedding.tolist()))

    def taken_in(self, item: str) -> Mapping[str, Any]:
        """What became of an entry that the changes hold. Raises RequestError when another item took its semantic ID."""
        self._catch_up()
        if item not in self._numbers:
            raise _refusal("text", "no semantic ID is left for it")
        number = self._numbers[item]
        return {"item": item, "number": number, "semantic_id": self._ids_of(number)}

    def _with_ids_of(self, embedding: Tensor) -> SemanticIds:
        """The semantic IDs with one more. Raises ValueError."""
        tokenizer = self.bundle.tokenizer
        assert tokenizer is not None  # there is an embedding
        assert self._ids is not None
        return add_item(self._ids, tokenizer.encode(embedding.unsqueeze(0))[0])

    def _check_room_for(self, new: NewItem) -> None:
        if new.item in self._numbers:
            raise _refusal("item", f"{new.item!r} is known already")
        if len(self._names) - self.bundle.saved.num_items >= self.max_added:
            raise _refusal("item", f"{self.max_added:,} items were added already; train a new version with them")

    @property
    def _takes_new_items(self) -> bool:
        return self.bundle.model.growing is not None

    def _ids_of(self, number: int) -> list[int]:
        assert self._ids is not None
        return [int(code) for code in self._ids.codes[number - 1]]

    def _width(self, request: RetrieveRequest) -> int:
        """Beams that a request needs, the same in whatever company: a power of two above the least width."""
        barred = len(request.exclude) + (len(request.history) if request.exclude_history else 0)
        wanted = min(request.k + barred, _MAX_BEAMS)
        return self._beams if wanted <= self._beams else 1 << (wanted - 1).bit_length()

    def _out_of(self, only: Tensor | None) -> Tensor | None:
        """(N + 1,) what is not to be found; None for nothing."""
        if only is None:
            return self._out if self._names_out else None
        assert self._out is not None  # made by the first look at the changes
        out = self._out.clone()
        out[: len(only)] |= ~only
        out[len(only) :] = True
        return out

    @torch.inference_mode()
    def _together(
        self, method: Method, width: int, out: Tensor | None, requests: Sequence[RetrieveRequest]
    ) -> list[Retrieved]:
        known = [[self._numbers[item] for item in r.history if item in self._numbers] for r in requests]
        barred = [self._barred(request, numbers) for request, numbers in zip(requests, known, strict=True)]
        most = max(request.k for request in requests)
        history: Tensor | Steered | Personal = _rows(known)
        if self._reader is not None:
            history = Steered(_rows(known), self._reader.read([request.wish for request in requests]))
        elif self._user_tokens:
            history = Personal(_rows(known), torch.tensor([self._user(request) for request in requests]))
        found = self._searcher.search(history, most, method, beams=width or None, barred=_rows(barred), out=out)
        return [
            self._answer(request, method, items, scores)
            for request, items, scores in zip(requests, found.items.tolist(), found.scores.tolist(), strict=True)
        ]

    def _user(self, request: RetrieveRequest) -> int:
        """The token, 0 for none."""
        return int(hash_ids([request.name], self._user_tokens)[0]) if self._user_tokens and request.name else 0

    def _barred(self, request: RetrieveRequest, history: list[int]) -> list[int]:
        named = {self._numbers[item] for item in request.exclude if item in self._numbers}
        return sorted(named | set(history) if request.exclude_history else named)

    def _answer(self, request: RetrieveRequest, method: Method, items: list[int], scores: list[float]) -> Retrieved:
        kept = [(self._names[i - 1], s) for i, s in zip(items, scores, strict=True) if i > 0][: request.k]
        ignored = [item for item in request.history if item not in self._numbers]
        used = bool(request.wish) and self._reader is not None
        user = self._user(request) > 0
        return Retrieved([name for name, _ in kept], [score for _, score in kept], method, ignored, used, user)

    def _catch_up(self) -> None:
        """Take in what changed since: by any replica, on any node."""
        if self._changes.count != self._read:
            self._take_in()
        if self._out is None or self._changes.out is not self._names_out or len(self._out) <= len(self._names):
            self._names_out = self._changes.out
            self._out = torch.zeros(len(self._names) + 1, dtype=torch.bool)
            self._out[[self._numbers[item] for item in self._names_out if item in self._numbers]] = True

    @torch.inference_mode()
    def _take_in(self) -> None:
        """The items behind those read before; one that cannot be taken in is told and passed over."""
        growing, tokenizer = self.bundle.model.growing, self.bundle.tokenizer
        if self._changes.count < self._read:
            self._read = 0  # somebody removed or emptied the file; what is known already is passed over
        entries = self._changes.added(self._read)
        self._read += len(entries)
        new: dict[str, Tensor] = {}
        for entry in entries:
            if entry.digest != self.digest or entry.item in self._numbers or entry.item in new:
                continue
            try:
                embedding = torch.tensor(entry.embedding)
                self._ids = self._with_ids_of(embedding)
                new[entry.item] = embedding
            except (ValueError, RuntimeError) as error:
                logger.error(f"the added item {entry.item!r} is passed over: {error}")
        if not new:
            return
        assert growing is not None
        assert tokenizer is not None
        assert self._ids is not None
        tokens = self._ids.codes[-len(new) :] + self._ids.token_offsets
        first = growing.add_items(tokens, tokenizer.standardized(torch.stack(list(new.values()))))
        numbers = torch.arange(first, first + len(new))
        self._names.extend(new)
        self._numbers |= zip(new, numbers.tolist(), strict=True)
        self._searcher.take_in(numbers)


def load_served_retriever(
    reference: ModelReference, changes: ItemChanges, index: IndexConfig, beams: int = 20, max_added: int = 10_000
) -> ServedRetriever:
    """Raises BundleError or RegistryError when there is nothing that can be served."""
    found = reference.resolve()
    bundle = load_retriever(found.model)
    refuse_non_finite(bundle.model, found.model)
    return ServedRetriever(
        bundle, str(found.name), str(found.version), changes, index, beams=beams, max_added=max_added
    )


def _semantic_ids(bundle: RetrieverBundle) -> SemanticIds:
    assert bundle.saved.ids is not None
    level_sizes, known = bundle.saved.ids.level_sizes, bundle.model.generative or bundle.model.growing
    assert known is not None
    return SemanticIds(known.item_tokens[1:] - torch.tensor((0, *level_sizes[:-1])).cumsum(0) - 1, level_sizes)


def _rows(lists: Sequence[Sequence[int]]) -> Tensor:
    """(B, longest) the lists, left-padded with 0."""
    longest = max(len(numbers) for numbers in lists)
    return torch.stack([pad(torch.tensor(n, dtype=torch.int64), (longest - len(n), 0)) for n in lists])


def _refusal(field: str, message: str) -> RequestError:
    return RequestError([Problem(("body", field), message, "value_error")])
