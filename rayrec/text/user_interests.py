"""What a user is interested in, in a few sentences: the rules that a language model's text must obey, and a writer without one.

The extractive writer takes the phrases that tell a history from the catalogue by class-based TF-IDF (Grootendorst 2022): a class
is all contents of one history, and how rare a phrase is is counted over all contents, each once. So a text is made of one history
alone, whatever others engaged with or the same user did later. It is labelled extractive wherever it goes.
"""

import re
from collections.abc import Iterable, Sequence

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


def extractive_interests(
    contents: Sequence[str], histories: Sequence[Sequence[int]], sentences: int = 3
) -> list[str]:  # fmt: skip
    """A text of each history, rows of ``contents``; "" where it is empty or its contents hold no word of their own."""
    vectorizer = CountVectorizer(
        ngram_range=(1, 2), stop_words="english", token_pattern=r"(?u)\b[^\W\d_][^\W_]+\b", max_features=200_000
    )
    try:
        of_contents: csr_matrix = vectorizer.fit_transform(contents).tocsr()
    except ValueError:  # no contents, or nothing but stop words
        return [""] * len(histories)
    names = vectorizer.get_feature_names_out()
    rarity = np.log1p(of_contents.sum() / len(contents) / np.asarray(of_contents.sum(axis=0)).ravel())
    ends = np.cumsum([0, *(len(history) for history in histories)])
    rows = np.asarray([row for history in histories for row in history], dtype=np.int64)
    read = csr_matrix((np.ones(len(rows), np.int64), rows, ends), shape=(len(histories), len(contents)))
    counts: csr_matrix = (read @ of_contents).tocsr()
    found = []
    for row in range(len(histories)):
        part = slice(counts.indptr[row], counts.indptr[row + 1])
        features = counts.indices[part]
        best = features[np.lexsort((features, -counts.data[part] * rarity[features]))]
        found.append(_sentences(_apart((str(names[feature]) for feature in best), sentences * _IN_A_SENTENCE)))
    return found


def _apart(phrases: Iterable[str], most: int) -> list[str]:
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
