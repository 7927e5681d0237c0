"""Semantic IDs: collisions, tokens, items added later, and what the report says; loops are the reference."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.retrieval.attribute_embeddings import attribute_embeddings
from rayrec.retrieval.semantic_ids import SemanticIds, add_item, report, resolve_collisions, standardize


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 3), st.integers(1, 4))
def test_every_item_gets_its_own_tuple_and_the_last_position_counts_collisions(
    seed: int, items: int, levels: int, size: int
) -> None:
    codes = torch.randint(0, size, (items, levels), generator=torch.Generator().manual_seed(seed))
    ids = resolve_collisions(codes, size)
    seen: Counter[tuple[int, ...]] = Counter()
    for row, found in zip(codes.tolist(), ids.codes.tolist(), strict=True):
        assert found == [*row, seen[tuple(row)]]
        seen[tuple(row)] += 1
    assert len({tuple(row) for row in ids.codes.tolist()}) == items
    assert ids.level_sizes == (*[size] * levels, max(size, *seen.values()))


def test_tokens_are_code_plus_level_offset_plus_one_and_zero_pads() -> None:
    ids = SemanticIds(torch.tensor([[0, 3, 0], [2, 3, 1]]), (4, 4, 2))
    assert ids.item_tokens().tolist() == [[0, 0, 0], [1, 8, 9], [3, 8, 10]]
    assert ids.num_tokens == 11


def test_an_added_item_takes_the_first_free_last_code() -> None:
    ids = SemanticIds(torch.tensor([[1, 0], [1, 2], [0, 0]]), (2, 4))
    ids = add_item(add_item(ids, torch.tensor([1])), torch.tensor([0]))
    assert ids.codes[3:].tolist() == [[1, 1], [0, 1]]
    full = SemanticIds(torch.tensor([[1, 0], [1, 1]]), (2, 2))
    with pytest.raises(ValueError, match="all 2 last codes"):
        add_item(full, torch.tensor([1]))


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 4]], (4, 4), "outside its level"),
        ([[0, 1], [0, 1]], (4, 4), "share a tuple"),
        ([[0, 1]], (4,), "for 1 levels"),
    ],
)
def test_ids_that_contradict_themselves_are_refused(
    codes: list[list[int]], sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticIds(torch.tensor(codes), sizes)


def test_the_report_equals_loops_over_items() -> None:
    codes = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 2]])
    embeddings = torch.tensor([[0.0], [1.0], [2.0], [5.0]])
    first = torch.tensor([[0.5], [0.5], [3.5], [3.5]])
    result = report(resolve_collisions(codes, 4), embeddings, [first, embeddings])
    variance = sum((x - 2) ** 2 for x in (0, 1, 2, 5)) / 4
    assert result.reconstruction_error == pytest.approx(((0.25 + 0.25 + 2.25 + 2.25) / 4 / variance, 0.0))
    assert result.usage == (0.5, 0.5)
    assert result.perplexity == pytest.approx((2.0, math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))))
    assert result.collision_rate == 0.5
    assert result.largest_collision == 2


def test_standardized_columns_have_mean_zero_and_deviation_one() -> None:
    embeddings = 3 + 2 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    embeddings[:, 3] = 7.0  # a constant column stays finite
    scaled, mean, deviation = standardize(embeddings)
    torch.testing.assert_close(scaled[:, :3].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled[:, :3].std(0), torch.ones(3))
    assert (scaled[:, 3] == 0).all()
    torch.testing.assert_close(scaled * deviation + mean, embeddings)


def test_attribute_embeddings_keep_the_cosines_of_weighted_attributes() -> None:
    attributes = [[1, 2], [1, 2], [3], [2, 3], []]
    found = attribute_embeddings(attributes, 8)
    assert found.shape == (5, 8)
    matrix = torch.zeros(5, 3)
    for row, present in enumerate(attributes):
        matrix[row, [a - 1 for a in present]] = 1.0
    matrix = matrix * ((5 / matrix.sum(0)).log() + 1e-3)
    matrix = torch.nn.functional.normalize(matrix, dim=1)
    torch.testing.assert_close(found @ found.T, matrix @ matrix.T, atol=1e-4, rtol=0)
