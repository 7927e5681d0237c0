"""What ranks impressions without training: popularity, and BM25 of a user's text to the candidates (``bm25s``)."""

from collections.abc import Callable

import bm25s
import numpy as np
import torch
from numpy.typing import NDArray

from rayrec.data.content import ContentLog
from rayrec.metrics.impressions import ImpressionMetrics
from rayrec.training.judging import Judged

Scores = Callable[[int, NDArray[np.int64]], NDArray[np.float64]]
"""Of a row of the histories and item numbers (C,): scores (C,)."""


def popularity(log: ContentLog) -> Scores:
    """How often an item was engaged with in training impressions."""
    shown = log.impressions
    counts = np.zeros(len(log.items) + 1)
    for row in shown.rows("train"):
        np.add.at(counts, shown.candidates[row][shown.labels[row] == 1], 1)
    return lambda history, items: counts[items]


def bm25(log: ContentLog, max_history: int, version: str | None = None) -> Scores:
    """BM25 of the titles of a user's newest ``max_history`` contents, and of a text of the user, to an item's whole text."""
    names = [one.name for one in log.items.fields]
    columns = [log.items.texts[name].to_pylist() for name in names]
    texts = [" ".join(parts) for parts in zip(*columns, strict=True)]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    written: list[str] = []  # by history
    if version is not None:
        rows = log.text_rows(version, np.arange(len(log.histories)))
        written = log.user_texts[version].texts.take(rows).to_pylist()
    known: dict[int, NDArray[np.float64]] = {}

    def scores(history: int, items: NDArray[np.int64]) -> NDArray[np.float64]:
        if history not in known:
            known.clear()
            words = [columns[0][item - 1] for item in log.histories[history][:max_history]]
            words += written[history : history + 1]
            (terms,) = bm25s.tokenize([" ".join(words)], return_ids=False, show_progress=False)
            there = [term for term in terms if term in index.vocab_dict]
            known[history] = index.get_scores(there) if there else np.zeros(len(texts))
        return known[history][items - 1]

    return scores


def judge_scores(log: ContentLog, scores: Scores, split: str) -> Judged:
    """On a split's impressions; see ``ImpressionMetrics``."""
    shown, metrics = log.impressions, ImpressionMetrics()
    rows = shown.rows(split)
    for row in rows[np.argsort(shown.history[rows], kind="stable")]:
        found = scores(int(shown.history[row]), shown.candidates[row].astype(np.int64))
        labels = torch.from_numpy(shown.labels[row].astype(np.int64))
        metrics.update(torch.from_numpy(np.asarray(found, dtype=np.float64)).unsqueeze(0), labels.unsqueeze(0))
    return Judged(split, {"impressions": metrics.compute()})
