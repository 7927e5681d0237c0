"""Amazon 2018: processed pairs of inter/item JSON, or the public raw reviews and metadata (JSON lines, may be gzipped).

Text of an item: title, price, brand, categories and description, each one sentence (the fields of TIGER's item sentences).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.sequences.events import EventFilter, ItemDescriptions, describe, sequences_of_events
from rayrec.data.sequences.interactions import Interactions, InteractionsError, SequenceData
from rayrec.data.sequences.text_lines import numbered_lines


def read_amazon2018_processed(folder: Path | str, name: str) -> SequenceData:
    """``<name>.inter.json`` {user: [items from 0]} in time order and ``<name>.item.json`` {item: {title, ...}}."""
    histories_file, items_file = Path(folder) / f"{name}.inter.json", Path(folder) / f"{name}.item.json"
    histories, items = _json_object(histories_file), _json_object(items_file)
    missing = [number for number in range(len(items)) if str(number) not in items]
    if missing:
        raise InteractionsError(f"{items_file}: item {missing[0]} is missing; expected items 0..{len(items) - 1}")
    for user, history in histories.items():
        if not isinstance(history, list) or not all(isinstance(i, int) and 0 <= i < len(items) for i in history):
            raise InteractionsError(f"{histories_file}: user {user!r} has an item outside 0..{len(items) - 1}")
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories.values()])]).astype(np.int64)
    flat = np.array([item + 1 for history in histories.values() for item in history], dtype=np.int32)
    names = pa.array([str(number) for number in range(len(items))])
    table = describe(names, _descriptions(items.items()))
    users = pa.array(list(histories), pa.string())
    return SequenceData(Interactions(offsets, flat, len(items)), table, users, f"amazon2018 {name}")


def read_amazon2018_raw(reviews: Path | str, metadata: Path | str, event_filter: EventFilter) -> SequenceData:
    """Raw reviews (reviewerID, asin, unixReviewTime) and metadata (asin, title, brand, category, description, price).

    Raises InteractionsError naming file and line for a line that is no JSON object or lacks a field of the three.
    """
    users, items, times = [], [], []
    for number, review in _json_lines(Path(reviews)):
        try:
            users.append(str(review["reviewerID"]))
            items.append(str(review["asin"]))
            times.append(int(review["unixReviewTime"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InteractionsError(
                f"{reviews}, line {number}: expected reviewerID, asin and unixReviewTime ({error})"
            ) from None
    bought = set(items)
    described = ((str(m["asin"]), m) for _, m in _json_lines(Path(metadata)) if str(m.get("asin")) in bought)
    return sequences_of_events(
        pa.array(users),
        pa.array(items),
        pa.array(times),
        event_filter,
        _descriptions(described),
        f"{Path(reviews).name}",
    )


def item_sentence(fields: dict[str, Any]) -> str:
    """One text of an item: each known field one sentence; lists are joined by commas."""
    sentences = []
    for label, names in (
        ("Title", ("title",)), ("Price", ("price",)), ("Brand", ("brand",)),
        ("Categories", ("categories", "category")), ("Description", ("description",)),
    ):  # fmt: skip
        value = next((fields[name] for name in names if fields.get(name)), "")
        text = ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)
        text = " ".join(text.split()).rstrip(". ")
        if text:
            sentences.append(f"{label}: {text}.")
    return " ".join(sentences)


def _descriptions(items: Iterable[tuple[str, dict[str, Any]]]) -> ItemDescriptions:
    texts: dict[str, str] = {}
    titles: dict[str, str] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    for item, fields in items:
        texts[item] = item_sentence(fields)
        titles[item] = " ".join(str(fields.get("title") or "").split()).rstrip(". ")
        categories = fields.get("categories") or fields.get("category") or []
        parts = categories.split(",") if isinstance(categories, str) else list(categories)
        found = [f"category: {part.strip()}" for part in parts if part.strip()]
        if fields.get("brand"):
            found.append(f"brand: {fields['brand']}")
        attributes[item] = tuple(found)
    return ItemDescriptions(texts, attributes, titles)


def _json_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InteractionsError(f"{file}: no such file")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or not UTF-8
        raise InteractionsError(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise InteractionsError(f"{file}: expected one JSON object")
    return value


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(file):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InteractionsError(f"{file}, line {number}: {error}") from None
        if not isinstance(value, dict):
            raise InteractionsError(f"{file}, line {number}: expected a JSON object")
        yield number, value
