"""ROUGE F1 of a text against a reference (Lin 2004): shared unigrams and bigrams, and the longest common subsequence of words.

Words are runs of letters and digits in lower case; no stemming.
"""

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def rouge(text: str, reference: str) -> dict[str, float]:
    """F1 in [0, 1] by "rouge1", "rouge2" and "rougeL"; 0 where either side has no such words."""
    words, wanted = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
    found = {f"rouge{n}": _overlap(_grams(words, n), _grams(wanted, n)) for n in (1, 2)}
    return {**found, "rougeL": _f1(_common(words, wanted), len(words), len(wanted))}


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _overlap(found: Counter[tuple[str, ...]], wanted: Counter[tuple[str, ...]]) -> float:
    return _f1((found & wanted).total(), found.total(), wanted.total())


def _f1(shared: int, found: int, wanted: int) -> float:
    return 2 * shared / (found + wanted) if shared else 0.0


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for place, other in enumerate(right, 1):
            kept = row[place]
            row[place] = before + 1 if word == other else max(row[place], row[place - 1])
            before = kept
    return row[-1]
