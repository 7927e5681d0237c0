"""What a user is interested in, in a few sentences: the rules that a language model's text must obey, and a writer without one.

The extractive writer takes the phrases that tell a user from the others by class-based TF-IDF (Grootendorst 2022): a class is all
that one user engaged with. It is labelled extractive wherever it goes.
"""

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from rayrec.text.asking import AnswerError

_FENCE = re.compile(r"\A\s*```\w*\s*(.*?)\s*```\s*\Z", re.DOTALL)
_LISTED = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s+")
_TEMPLATES = ("Interested in {}.", "Often engages with {}.", "Also follows {}.")
_IN_A_SENTENCE = 3


def checked_interest(answer: str, most_words: int = 150) -> str:
    """The text of an answer on one line. Raises AnswerError for a list, fewer than five words or more than ``most_words``."""
    fenced = _FENCE.match(answer)
    text = fenced.group(1) if fenced else answer
    if len(_LISTED.findall(text)) > 1:
        raise AnswerError("plain sentences are wanted, not a list")
    text = " ".join(text.strip().strip('"').split())
    words = len(text.split())
    if not 5 <= words <= most_words:
        raise AnswerError(f"{words} words; expected 5 to {most_words}")
    return text


def extractive_interests(documents: Sequence[str], sentences: int = 3) -> list[str]:
    """A text of each user from all that the user's contents say, "" where a document is empty or holds no word of its own."""
    if not any(documents):
        return [""] * len(documents)
    vectorizer = CountVectorizer(
        ngram_range=(1, 2), stop_words="english", token_pattern=r"(?u)\b[^\W\d_][^\W_]+\b", max_features=200_000
    )
    try:
        counts: csr_matrix = vectorizer.fit_transform(documents).tocsr()
    except ValueError:  # nothing but stop words
        return [""] * len(documents)
    names = vectorizer.get_feature_names_out()
    words = np.asarray(counts.sum(axis=1)).ravel()
    rarity = np.log1p(words.mean() / np.asarray(counts.sum(axis=0)).ravel())
    found = []
    for row in range(len(documents)):
        part = slice(counts.indptr[row], counts.indptr[row + 1])
        features = counts.indices[part]
        weights = counts.data[part] / max(words[row], 1) * rarity[features]
        best = features[np.lexsort((features, -weights))]
        found.append(_sentences(_apart([str(names[feature]) for feature in best], sentences * _IN_A_SENTENCE)))
    return found


def _apart(phrases: Sequence[str], most: int) -> list[str]:
    """The first ``most`` that share no word with one before them."""
    kept: list[str] = []
    seen: set[str] = set()
    for one in phrases:
        if not seen & set(one.split()):
            kept.append(one)
            seen |= set(one.split())
        if len(kept) == most:
            break
    return kept


def _sentences(phrases: Sequence[str]) -> str:
    told = []
    for number, start in enumerate(range(0, len(phrases), _IN_A_SENTENCE)):
        *first, last = phrases[start : start + _IN_A_SENTENCE]
        listed = f"{', '.join(first)} and {last}" if first else last
        told.append(_TEMPLATES[min(number, len(_TEMPLATES) - 1)].format(listed))
    return " ".join(told)
