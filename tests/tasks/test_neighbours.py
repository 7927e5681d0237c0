"""Untrained neighbours by attributes and co-occurrence, against sums written out by hand."""

from math import log

import numpy as np
import pytest
import torch

from rayrec.data.sequences import Interactions, ItemTable, SequenceData, leave_one_out
from rayrec.families.retriever.neighbours import (
    attribute_neighbours,
    attribute_options,
    cooccurrence_neighbours,
    cooccurrence_options,
    cooccurrence_similarity,
    faded,
)
from rayrec.retrieval.attribute_embeddings import attribute_matrix
from rayrec.retrieval.cooccurrence_embeddings import neighbour_counts


def data(histories: list[list[int]], num_items: int, attributes: list[list[int]] | None = None) -> SequenceData:
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in histories])])
    events = Interactions(offsets, np.concatenate(histories).astype(np.int32), num_items)
    names = [str(i) for i in range(1, num_items + 1)]
    users = [f"user {u}" for u in range(len(histories))]
    return SequenceData(events, ItemTable.of(names, None, attributes), users)


def test_a_history_fades_by_age_and_an_item_that_is_there_twice_weighs_both_times() -> None:
    history = torch.tensor([[0, 2, 5], [1, 3, 1], [0, 0, 0]])
    expected = [[0, 0, 0.5, 0, 0, 1], [0, 1.25, 0, 0.5, 0, 0], [0] * 6]
    assert faded(history, 5, 0.5).to_dense().tolist() == expected
    assert faded(history, 5, 0.0).to_dense().tolist() == [[0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0] * 6]


def test_neighbours_are_counted_both_ways_once_for_each_pair_of_places_by_distance() -> None:
    counts = neighbour_counts(np.array([1, 2, 1, 3, 3, 1]), np.array([0, 0, 0, 0, 1, 1]), 4, window=2, power=0.5)
    expected = np.zeros((4, 4))
    for first, second, distance in ((1, 2, 1), (2, 1, 1), (1, 3, 1), (2, 3, 2), (3, 1, 1)):
        expected[first - 1, second - 1] += distance**-0.5  # 1 and 1, two apart, are no neighbours
        expected[second - 1, first - 1] += distance**-0.5
    np.testing.assert_allclose(counts.to_dense().numpy(), expected, rtol=1e-6)


def test_neighbours_by_cooccurrence_sum_what_is_near_the_history_over_how_often_both_occur() -> None:
    counts = torch.tensor([[0, 0, 0, 0], [0, 0, 3, 1], [0, 3, 0, 0], [0, 1, 0, 0.0]])
    occurrences = torch.tensor([0, 4, 2, 0])
    similarity = cooccurrence_similarity(counts.to_sparse().coalesce(), occurrences, 0.3)
    first, second = 3 / (4 * 2) ** 0.3, 1 / (4 * 1) ** 0.3  # what never occurred counts as once
    expected = torch.tensor([[0, 0, first, second], [0, first, 0, 0], [0, second, 0, 0]])
    torch.testing.assert_close(similarity.to_dense()[1:], expected)
    scores = cooccurrence_neighbours(similarity, 0.5)(torch.tensor([[2, 1], [0, 3]]))
    assert (scores[:, 0] == -torch.inf).all()
    torch.testing.assert_close(scores[:, 1:], torch.tensor([[0.5 * first, first, second], [second, 0, 0]]))


def test_neighbours_by_attributes_are_cosines_of_rows_weighted_by_rarity() -> None:
    attributes = [[1, 2], [1], [3], []]
    rows = attribute_matrix([[], *attributes])
    scores = attribute_neighbours(rows, 0.5)(torch.tensor([[3, 1], [0, 4]]))
    rare = [log(5 / 2) + 1e-3, log(5) + 1e-3]
    one = np.array([*rare, 0]) / np.linalg.norm(rare)
    query = one + 0.5 * np.array([0, 0, 1])
    query /= np.linalg.norm(query)
    expected = [[query @ one, query[0], query[2], 0.0], [0.0] * 4]
    torch.testing.assert_close(scores[:, 1:], torch.tensor(expected, dtype=torch.float32))
    assert (scores[:, 0] == -torch.inf).all()


def test_cooccurrence_of_validation_and_test_targets_is_not_counted() -> None:
    told = data([[1, 2, 3, 4], [1, 2, 4, 3]], 4)
    for scores in cooccurrence_options(told, leave_one_out(told.interactions)).values():
        near = scores(torch.tensor([[1], [2], [3], [4]]))[:, 1:]
        assert near[0].tolist() == [0, pytest.approx(near[0, 1].item()), 0, 0]
        assert near[0, 1] > 0
        assert near[2:].abs().max() == 0


def test_items_without_attributes_have_no_neighbours_by_them() -> None:
    assert not attribute_options(data([[1, 2, 3]], 3))
    assert attribute_options(data([[1, 2, 3]], 3, [[1], [], [2]]))
