"""Preferences without a language model: phrases of what a user's recent items are, in the form that a model would write.

No brand and no title; seeded; labelled extractive wherever they go. "Avoid" is said of a category that the user never touched.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rayrec.text.preferences import NEEDED, Names

BRAND = "brand: "
_POSITIVE = ("Find", "Search for", "Look for more", "Prefer", "Show me", "Recommend")


def phrase(label: str) -> str:
    """A label in running text: "category: Wood Screws" -> "wood screws"; words with digits or several capitals stay."""
    words = label.split(": ", 1)[-1].split()
    return " ".join(
        word if re.search(r"\d", word) or sum(map(str.isupper, word)) > 1 else word.lower() for word in words
    )


class Phrases:
    """Phrases by item: labels that are no brand, hold no name, and do not belong to (nearly) all items; rarest first.

    labels: (N,) of items. things: what the items are ("products", "films"); follows a phrase of a single word.
    """

    def __init__(self, labels: Sequence[Sequence[str]], names: Names, things: str, *, commonest: float = 0.5) -> None:
        self._things = things
        nameless = {
            label for own in labels for label in own if not label.startswith(BRAND) and names.found_in(label) is None
        }
        found = [list(dict.fromkeys(phrase(label) for label in own if label in nameless)) for own in labels]
        counts = Counter(text for own in found for text in own)
        most = commonest * max(len(labels), 1)
        allowed = {t for t, count in counts.items() if t and count <= most}
        self.of_item = [sorted((t for t in own if t in allowed), key=lambda t: (counts[t], t)) for own in found]
        self.all = sorted(allowed)

    def whole(self, text: str) -> str:
        """Two words at least, so that a preference holds something to follow."""
        return text if len(text.split()) > 1 else f"{text} {self._things}"

    def of(self, item: int, most: int = 3) -> str:
        """What item (from 1) is, in one phrase: its rarest labels; "" where it has none."""
        own = self.of_item[item - 1][:most]
        return self.whole(" and ".join(reversed(own))) if own else ""


def extract(
    phrases: Phrases, recent: Sequence[int], touched: frozenset[str], generator: np.random.Generator
) -> tuple[str, ...]:
    """Five preferences of a user whose newest items are ``recent`` (from 1, newest last); () when they have no phrase at all.

    Four of what the items are, the newest items' rarest phrases first; one to avoid, drawn from the phrases not ``touched``.
    """
    own = list(dict.fromkeys(text for item in reversed(recent) for text in phrases.of_item[item - 1]))
    if not own:
        return ()
    foreign = [text for text in phrases.all if text not in touched]
    avoided = [f"Avoid {phrases.whole(foreign[int(generator.integers(len(foreign)))])}"] if foreign else []
    verbs = [_POSITIVE[i] for i in generator.permutation(len(_POSITIVE))]
    wanted = NEEDED - len(avoided)
    several = [own[i % len(own)] for i in range(wanted)]
    return (*(f"{verb} {phrases.whole(text)}" for verb, text in zip(verbs, several, strict=False)), *avoided)
