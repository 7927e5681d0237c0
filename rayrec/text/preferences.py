"""What a preference is: a short search instruction in plain words that names no brand and no product (Mender, arXiv 2412.08604).

The rules are one place for all who make preferences: the language model's answers are refused by them, the extractive generator
obeys them, imported ones are filtered.
"""

import json
import re
from collections.abc import Iterable, Sequence

from rayrec.text.asking import AnswerError

NEEDED = 5
_LONGEST = 400
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_COMPANY = frozenset({"inc", "co", "llc", "ltd", "corp", "company", "gmbh", "the", "tm"})
_INVERSIONS = (("avoid", "Find"), ("exclude", "Search for"), ("no", "Search for"))
_NEGATIVE = re.compile(
    r"\s*(?:please\s+)?(?:i\s+|the user\s+|users?\s+)?"
    r"(?:avoids?|avoiding|exclud(?:es?|ing)|no(?=\s)|not|never|do(?:es)?\s+not|don['’]t|doesn['’]t|dislikes?|hates?|steer clear|"
    r"stay away|skip|without)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)


class Names:
    """Brands and titles that a preference may not hold.

    A name of several words is found in any case; one of a single word only as it is written (a brand "Scotch" does not forbid
    "scotch"), since many are ordinary words. Years in brackets and words like "Inc." do not belong to a name; a title ends at
    the first comma, dash or bracket, for what follows describes.
    """

    def __init__(self, brands: Iterable[str] = (), titles: Iterable[str] = ()) -> None:
        self._single: set[str] = set()
        self._several: dict[int, set[tuple[str, ...]]] = {}
        for brand in brands:
            self._add([word for word in _WORD.findall(brand) if word.lower() not in _COMPANY])
        for title in titles:
            start = re.split(r"\s[-–|]\s|[,(\[:|]", title, maxsplit=1)[0]
            self._add(_WORD.findall(start))

    def _add(self, words: list[str]) -> None:
        if len(words) == 1 and not words[0].islower():
            self._single.add(words[0])
        elif len(words) > 1:
            self._several.setdefault(len(words), set()).add(tuple(word.lower() for word in words))

    def found_in(self, text: str) -> str | None:
        """The first name that the text holds."""
        words = _WORD.findall(text)
        for word in words:
            if word in self._single:
                return word
        low = [word.lower() for word in words]
        for size, names in self._several.items():
            for start in range(len(low) - size + 1):
                if tuple(low[start : start + size]) in names:
                    return " ".join(words[start : start + size])
        return None


def checked(preferences: Sequence[str], names: Names, *, most: int | None = NEEDED) -> tuple[str, ...]:
    """At least five different strings of at least two words each, without any of the names; cut to the first ``most``.

    Raises AnswerError that says which rule is broken.
    """
    found = list(dict.fromkeys(" ".join(text.split()) for text in preferences))
    if len(found) < NEEDED:
        raise AnswerError(f"{len(found)} different preferences, expected at least {NEEDED}")
    for text in found:
        if len(_WORD.findall(text)) < 2:
            raise AnswerError(f"{text!r} is a single word")
        if len(text) > _LONGEST:
            raise AnswerError(f"a preference of {len(text):,} characters, expected at most {_LONGEST}")
        if (name := names.found_in(text)) is not None:
            raise AnswerError(f"{text!r} names the brand or product {name!r}")
    return tuple(found[:most])


def parsed(answer: str, names: Names) -> tuple[str, ...]:
    """The preferences of a language model's answer: {"preferences": [...]}, bare or in a code fence. Raises AnswerError."""
    fenced = _FENCE.match(answer)
    try:
        value = json.loads(fenced.group(1) if fenced else answer)
    except ValueError:
        raise AnswerError("it is not JSON") from None
    value = value.get("preferences") if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise AnswerError('it is not {"preferences": [strings]}')
    return checked(value, names)


def is_negative(preference: str) -> bool:
    """Whether it says what is not wanted: by its first words (the stand-in for a sentiment classifier of preferences)."""
    return _NEGATIVE.match(preference) is not None


def inverted(preference: str) -> str | None:
    """The rule inversion: Avoid x -> Find x, Exclude x -> Search for x, No x -> Search for x; None where no rule applies."""
    start = re.match(r"\s*(?:please\s+)?(avoid|exclude|no)\s+(?=\S)", preference, re.IGNORECASE)
    if start is None:
        return None
    return f"{dict(_INVERSIONS)[start.group(1).lower()]} {preference[start.end() :]}"


def candidates(preferences: Sequence[str]) -> tuple[str, ...]:
    """Those that may be matched to the next item: the positive ones; if there is none, the inversions of the others; else all."""
    positive = tuple(text for text in preferences if not is_negative(text))
    if positive:
        return positive
    turned = tuple(found for text in preferences if (found := inverted(text)) is not None)
    return turned or tuple(preferences)
