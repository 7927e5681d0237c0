"""A retriever bundle ready to answer: histories to items, by each method, and items that came after training."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import pad

from rayrec.bundle import BundleError
from rayrec.models.liger import Liger
from rayrec.models.sasrec import SASRec
from rayrec.retrieval.beam_search import beam_search
from rayrec.retrieval.hybrid import hybrid_ranking
from rayrec.retrieval.index import DenseIndex, IndexConfig
from rayrec.retrieval.semantic_ids import SemanticIds, add_item
from rayrec.retrieval.trie import ItemTrie
from rayrec.retriever_bundle import RetrieverBundle, load_retriever
from rayrec.tasks.retrieval import Method, check_method
from rayrec.text.encoder import EncoderError, TextEncoder, TextEncoderConfig
from rayrec.typed_json import ConfigError
from serve_apps.ranking_request import Problem, RequestError
from serve_apps.served_ranker import ModelReference

MAX_NAME, MAX_TEXT, MAX_LIST = 500, 20_000, 1000


class RetrieveRequest(BaseModel):
    """What a client asks for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    history: list[str] = Field(min_length=1, max_length=MAX_LIST, description="Items of the user, oldest first")
    k: int = Field(10, ge=1, le=200, description="How many items are wanted")
    method: Literal["dense", "generative", "hybrid"] | None = Field(None, description="Default: the best the model can")
    exclude: list[str] = Field(default_factory=list, max_length=MAX_LIST, description="Items not to return")
    exclude_history: bool = Field(False, description="Do not return items of the history")


class NewItem(BaseModel):
    """An item that training never saw."""

    model_config = ConfigDict(extra="forbid", strict=True)
    item: str = Field(min_length=1, max_length=MAX_NAME, description="Its name")
    text: str = Field(min_length=1, max_length=MAX_TEXT, description="What describes it")


@dataclass(frozen=True)
class Retrieved:
    """items: at most k names, best first. scores: by which they are ordered. ignored: unknown items of the history."""

    items: list[str]
    scores: list[float]
    method: Method
    ignored: list[str]


class ServedRetriever:
    """The answers of one version. Its catalogue grows by ``journal``, a file that all replicas of a machine share: one JSON
    object a line, with item, text and embedding. Not thread-safe: one thread asks it.
    """

    def __init__(
        self, bundle: RetrieverBundle, name: str, version: str, journal: Path, index: IndexConfig, *, beams: int = 20
    ) -> None:
        self.bundle, self.name, self.version = bundle, name, version
        self._journal, self._read, self._beams = journal, 0, beams
        self._names = list(bundle.names)
        self._numbers = {item: number for number, item in enumerate(self._names, 1)}
        self._encoder: TextEncoder | None = None
        model = bundle.model
        self.methods: tuple[Method, ...] = ("dense",)
        self._ids: SemanticIds | None = None
        self._trie: ItemTrie | None = None
        self._cold = torch.zeros(0, dtype=torch.int64)
        if isinstance(model, Liger):
            self.methods = tuple(method for method in ("hybrid", "dense", "generative") if _can(model, method))
            assert bundle.saved.ids is not None
            sizes = torch.tensor((0, *bundle.saved.ids.level_sizes[:-1])).cumsum(0) + 1
            self._ids = SemanticIds(model.item_tokens[1:] - sizes, bundle.saved.ids.level_sizes)
            self._cold = (~model.seen).nonzero().squeeze(1)[1:]
        self._index: DenseIndex | None = None
        if "dense" in self.methods:
            with torch.inference_mode():
                self._vectors = model.item_vectors()
            self._index = DenseIndex.build(self._vectors[1:], index)

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"

    def describe(self) -> dict[str, Any]:
        """Version, methods, size of the catalogue, metrics."""
        metadata = self.bundle.metadata
        return {
            "name": self.name,
            "version": self.version,
            "kind": metadata.kind,
            "model": self.bundle.saved.retrieval.model,
            "methods": list(self.methods),
            "items": len(self._names),
            "items_added": len(self._names) - self.bundle.saved.num_items,
            "created": metadata.created,
            "rayrec": metadata.rayrec,
            "metrics": metadata.metrics,
        }

    def retrieve(self, requests: Sequence[RetrieveRequest]) -> list[Retrieved | RequestError]:
        """An answer or what is wrong, for each request; those of a method go through the model together."""
        self._catch_up()
        answers: dict[int, Retrieved | RequestError] = {}
        groups: dict[Method, list[int]] = {}
        for i, request in enumerate(requests):
            method = request.method or self.methods[0]
            if method not in self.methods:
                have = " and ".join(self.methods)
                answers[i] = _refusal("method", f"this model retrieves by {have}, not by {method}")
            elif not any(item in self._numbers for item in request.history):
                answers[i] = _refusal("history", "holds no item that this model knows")
            else:
                groups.setdefault(method, []).append(i)
        for method, rows in groups.items():
            answers |= zip(rows, self._together(method, [requests[i] for i in rows]), strict=True)
        return [answers[i] for i in range(len(requests))]

    def add(self, new: NewItem) -> Mapping[str, Any]:
        """Give a new item its semantic ID and embedding and let all replicas know. Raises RequestError."""
        self._catch_up()
        ids, model, tokenizer = self._ids, self.bundle.model, self.bundle.tokenizer
        if not isinstance(model, Liger) or ids is None or tokenizer is None or not model.config.text:
            raise _refusal("item", "this model knows items by their number only and cannot take new ones")
        if new.item in self._numbers:
            raise _refusal("item", f"{new.item!r} is known already")
        assert self.bundle.saved.ids is not None
        try:
            if self._encoder is None:
                self._encoder = TextEncoder(TextEncoderConfig(self.bundle.saved.ids.encoder))
        except EncoderError as error:
            raise _refusal("text", str(error)) from None
        embedding = self._encoder([new.text])[0]
        try:
            add_item(ids, tokenizer.encode(embedding.unsqueeze(0))[0])
        except ValueError as error:
            raise _refusal("text", str(error)) from None
        line = json.dumps({"item": new.item, "text": new.text, "embedding": embedding.tolist()})
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with self._journal.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(line + "\n")
        self._catch_up()
        number = self._numbers[new.item]
        return {"item": new.item, "number": number, "semantic_id": self._ids_of(number)}

    def _ids_of(self, number: int) -> list[int]:
        assert self._ids is not None
        return [int(code) for code in self._ids.codes[number - 1]]

    @torch.inference_mode()
    def _together(self, method: Method, requests: Sequence[RetrieveRequest]) -> list[Retrieved]:
        model = self.bundle.model
        known = [[self._numbers[item] for item in r.history if item in self._numbers] for r in requests]
        longest = max(len(numbers) for numbers in known)
        history = torch.stack([pad(torch.tensor(n, dtype=torch.int64), (longest - len(n), 0)) for n in known])
        barred = [self._barred(request, numbers) for request, numbers in zip(requests, known, strict=True)]
        wanted = max(request.k + len(out) for request, out in zip(requests, barred, strict=True))
        wanted = min(wanted, len(self._names))
        if method == "dense":
            assert self._index is not None
            query = model.query(history) if isinstance(model, Liger) else model(history)
            found = self._index.search(query, wanted)
            items, scores = found.rows + 1, found.scores
        else:
            assert isinstance(model, Liger)
            if self._trie is None:
                self._trie = ItemTrie.of(model.item_tokens)
            beams = beam_search(self._trie, model.decoding(history), max(wanted, self._beams))
            items, scores = beams.items, beams.scores
            if method == "hybrid":
                items, scores = hybrid_ranking(model.query(history), items, self._cold, self._vectors, wanted)
        return [
            self._answer(request, method, numbers, out, row, own)
            for request, numbers, out, row, own in zip(
                requests, known, barred, items.tolist(), scores.tolist(), strict=True
            )
        ]

    def _barred(self, request: RetrieveRequest, history: list[int]) -> set[int]:
        named = {self._numbers[item] for item in request.exclude if item in self._numbers}
        return named | set(history) if request.exclude_history else named

    def _answer(
        self, request: RetrieveRequest, method: Method, history: list[int], barred: set[int], items: list[int],
        scores: list[float],
    ) -> Retrieved:  # fmt: skip
        kept = [(i, s) for i, s in zip(items, scores, strict=True) if i > 0 and i not in barred][: request.k]
        ignored = [item for item in request.history if item not in self._numbers]
        return Retrieved([self._names[i - 1] for i, _ in kept], [s for _, s in kept], method, ignored)

    def _catch_up(self) -> None:
        """Take in what any replica has written to the journal since."""
        if self._ids is None or not self._journal.is_file() or self._journal.stat().st_size == self._read:
            return
        with self._journal.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(self._read)
            lines = file.read().splitlines()
            self._read = file.tell()
        for line in lines:
            entry = json.loads(line)
            if entry["item"] not in self._numbers:  # two replicas may have been asked at once
                self._take_in(entry["item"], torch.tensor(entry["embedding"]))

    @torch.inference_mode()
    def _take_in(self, item: str, embedding: Tensor) -> None:
        model, tokenizer = self.bundle.model, self.bundle.tokenizer
        assert isinstance(model, Liger)
        assert tokenizer is not None
        assert self._ids is not None
        self._ids = add_item(self._ids, tokenizer.encode(embedding.unsqueeze(0))[0])
        tokens = self._ids.codes[-1] + self._ids.token_offsets
        number = model.add_item(tokens, tokenizer.standardized(embedding))
        self._names.append(item)
        self._numbers[item] = number
        self._cold = torch.cat([self._cold, torch.tensor([number])])
        self._trie = None
        if self._index is not None:
            vector = model.item_vectors(torch.tensor([number]))
            self._vectors = torch.cat([self._vectors, vector])
            self._index.add(vector)


def load_served_retriever(
    reference: ModelReference, journal_folder: Path, index: IndexConfig, beams: int = 20
) -> ServedRetriever:
    """Raises BundleError or RegistryError when there is nothing that can be served."""
    name, version, path = Path(reference.model).name, "unregistered", reference.model
    if reference.model.startswith("models:"):
        from rayrec.training.tracking import resolve_model  # mlflow: 2 s and 100 MB, only where the registry is asked

        resolved = resolve_model(reference.model)
        name, version, path = resolved.name, resolved.version, str(resolved.path)
    bundle = load_retriever(path)
    assert isinstance(bundle.model, SASRec | Liger)
    for parameter, values in bundle.model.named_parameters():
        if not values.isfinite().all():
            raise BundleError(f"{path}: {parameter} has values that are not finite; its training diverged")
    digest = bundle.metadata.sha256["model.safetensors"][:16]
    journal = journal_folder / f"items-{digest}-{os.getuid()}.jsonl"
    return ServedRetriever(bundle, reference.name or name, reference.version or version, journal, index, beams=beams)


def _can(model: Liger, method: Method) -> bool:
    try:
        check_method(model.config, method)
    except ConfigError:
        return False
    return True


def _refusal(field: str, message: str) -> RequestError:
    return RequestError([Problem(("body", field), message, "value_error")])
