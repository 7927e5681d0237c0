"""Repeats counted on what an index found, against the scores of all items."""

import pytest
import torch

from rayrec.retrieval.hybrid import hybrid_ranking
from rayrec.retrieval.repeats import Repeats, count_repeats

HISTORY = torch.tensor([[0, 3, 9, 4], [8, 2, 5, 1], [0, 0, 0, 7]])


def scored(shift: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (3, 6), vectors (31, 6), and the scores (3, 31) of all items, the history's shifted."""
    generator = torch.Generator().manual_seed(0)
    query, vectors = torch.randn(3, 6, generator=generator), torch.randn(31, 6, generator=generator)
    scores = query @ vectors.T
    for row, items in enumerate(HISTORY.tolist()):
        scores[row, [i for i in items if i]] += shift
    scores[:, 0] = -torch.inf
    return query, vectors, scores


@pytest.mark.parametrize("shift", [-5.0, -0.5, 0.5, 5.0])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_best_of_an_index_and_the_history_are_the_best_of_all(shift: float, k: int) -> None:
    query, vectors, scores = scored(shift)
    found = (query @ vectors[1:].T).topk(min(k + 4, 30), 1)
    repeats = Repeats(HISTORY, torch.tensor(shift))
    items, best = count_repeats(query, vectors, repeats, found.indices + 1, found.values, k)
    wanted = scores.topk(k, 1)
    assert items.tolist() == wanted.indices.tolist()
    torch.testing.assert_close(best, wanted.values)


def test_places_of_an_index_that_found_nothing_stay_empty() -> None:
    query, vectors, _ = scored(0.0)
    repeats = Repeats(HISTORY[2:], torch.tensor(-0.5))
    nothing = torch.zeros(1, 2, dtype=torch.int64)
    items, best = count_repeats(query[2:], vectors, repeats, nothing, torch.full((1, 2), 9.0), 3)
    assert items.tolist() == [[7, 0, 0]]
    assert best[0, 1:].tolist() == [-torch.inf, -torch.inf]


@pytest.mark.parametrize("shift", [-0.5, 5.0])
def test_hybrid_candidates_that_are_in_the_history_are_shifted_cold_ones_too(shift: float) -> None:
    query, vectors, scores = scored(shift)
    generated, cold = torch.tensor([[9, 3, 11], [2, 20, 0], [7, 8, 10]]), torch.tensor([4, 30])
    items, best = hybrid_ranking(query, generated, cold, vectors, 5, Repeats(HISTORY, torch.tensor(shift)))
    for row in range(3):
        candidates = {*generated[row].tolist(), 4, 30} - {0}
        wanted = sorted(candidates, key=lambda i, r=row: -float(scores[r, i]))
        assert items[row].tolist() == wanted + [0] * (5 - len(wanted))
        torch.testing.assert_close(best[row, : len(wanted)], scores[row, wanted])
