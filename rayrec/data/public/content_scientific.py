"""amazon2018_scientific_text: Amazon 2018 Scientific with product texts; users' purchases in their order in time.

Of each user the last item is for test, the one before it for validation, and each earlier one but the first for training; the
history is all that was bought before. Candidates: the item against products that the user never bought, drawn by popularity, half
of them of its own category.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rayrec.data.content import ContentError, ContentLog, ItemTexts, TextField
from rayrec.data.content.assembling import Assembly
from rayrec.data.content.drawing import CandidateDraw, Drawer

FIELDS = (
    TextField("title", "Product Title", 32), TextField("description", "Product Description", 64),
    TextField("brand", "Brand", 8), TextField("category", "Category", 16),
)  # fmt: skip


@dataclass(frozen=True)
class AmazonScientific:
    """How purchases of one category become impressions."""

    name: str = "Scientific"
    """What the two files begin with."""
    users: int | None = None
    """Only the first so many; None = all."""
    draw: CandidateDraw = field(default_factory=lambda: CandidateDraw(positives=1, negatives=20))
    """How candidates are drawn."""

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError that names the file, user or item that is wrong."""
        products = _object(source / f"{self.name}.item.json")
        numbers = {item: row + 1 for row, item in enumerate(products)}
        categories = [_words(product.get("categories")) for product in products.values()]
        texts = {
            "title": [str(product.get("title") or "").removesuffix(".") for product in products.values()],
            "description": [str(product.get("description") or "") for product in products.values()],
            "brand": [str(product.get("brand") or "") for product in products.values()],
            "category": [", ".join(own[-2:]) for own in categories],
        }
        file = source / f"{self.name}.inter.json"
        bought: dict[str, list[int]] = {}
        for user, items in list(_object(file).items())[: self.users]:
            unknown = next((item for item in items if str(item) not in numbers), None)
            if unknown is not None:
                raise ContentError(f"{file}: user {user} bought {unknown!r}, which is no item of {self.name}.item.json")
            bought[user] = [numbers[str(item)] for item in items]
        counts = np.bincount([i for own in bought.values() for i in own[:-2]], minlength=len(numbers) + 1)
        drawer = Drawer(self.draw, counts, _of_one_kind(categories))
        seen = Assembly()
        for user, own in bought.items():
            for place in range(1, len(own)):
                split = {len(own) - 1: "test", len(own) - 2: "valid"}.get(place, "train")
                history = seen.history(user, own[:place][::-1])
                for _, row, candidates, labels in drawer.impressions(split, history, [own[place]], set(own)):
                    seen.impression(split, row, candidates, labels)
            seen.history(user, own[::-1])
        return seen.log(
            ItemTexts.of(list(numbers), FIELDS, texts), f"amazon2018 {self.name}",
            {"negatives": self.draw.negatives, "seed": self.draw.seed},
        )  # fmt: skip


def _of_one_kind(categories: list[list[str]]) -> list[np.ndarray]:
    """By item number the items that have its rarest shared category too."""
    counts = Counter(name for own in categories for name in set(own))
    rarest = [
        min((name for name in own if counts[name] > 1), key=lambda n: counts[n], default=None) for own in categories
    ]
    items: dict[str | None, list[int]] = {}
    for row, own in enumerate(categories):
        for name in set(own):
            items.setdefault(name, []).append(row + 1)
    nothing = np.zeros(0, dtype=np.int32)
    arrays = {name: np.asarray(rows, dtype=np.int32) for name, rows in items.items()}
    return [nothing, *(arrays.get(name, nothing) for name in rarest)]


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ContentError(f"{file}: no such file")
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ContentError(f"{file}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ContentError(f"{file}: expected an object by id, not {type(found).__name__}")
    return found


def _words(value: object) -> list[str]:
    """Texts that one text lists by commas."""
    return [text for one in str(value or "").split(",") if (text := one.strip())]
