"""Semantic IDs: collisions, tokens, items added later, and what the report says; loops are the reference."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.retrieval.attribute_embeddings import attribute_embeddings
from rayrec.retrieval.cooccurrence_embeddings import cooccurrence_embeddings
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.semantic_ids import (
    SemanticIdReport,
    SemanticIds,
    add_item,
    report,
    resolve_collisions,
    standardize,
    weaknesses,
)
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from rayrec.typed_json import ConfigError


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


def test_ids_of_unit_vectors_do_not_change_with_their_lengths_and_cold_items_do_not_shape_them() -> None:
    torch.manual_seed(0)
    raw = torch.randn(200, 16)
    config = TokenizerConfig(components=6, kmeans=ResidualKMeansConfig(2, 40, own_last=True))
    made = fit_tokenizer(raw, config)
    longer = fit_tokenizer(raw * torch.rand(200, 1).add(0.5), config)
    assert torch.equal(made.ids.codes, longer.ids.codes)
    assert made.report.collision_rate == 0.0
    seen = torch.ones(200, dtype=torch.bool)
    seen[150:] = False
    moved = torch.where(seen.unsqueeze(1), raw, -3 * raw + 1)
    with_cold, with_others = fit_tokenizer(raw, config, seen=seen), fit_tokenizer(moved, config, seen=seen)
    for name, value in with_cold.tokenizer.state_dict().items():
        assert torch.equal(value, with_others.tokenizer.state_dict()[name]), name
    assert torch.equal(with_cold.ids.codes[:150, :2], with_others.ids.codes[:150, :2])
    assert torch.equal(with_cold.ids.codes[150:, :2], with_cold.tokenizer.encode(raw[150:]))
    with pytest.raises(ValueError, match="items that occur in training: 0; a tokenizer is fitted"):
        fit_tokenizer(raw, config, seen=torch.zeros(200, dtype=torch.bool))


def test_the_axes_are_those_of_largest_variance() -> None:
    torch.manual_seed(0)
    raw = torch.randn(500, 5) * torch.tensor([3.0, 0.1, 2.0, 0.1, 1.0])
    tokenizer = fit_tokenizer(raw, TokenizerConfig(components=2, kmeans=ResidualKMeansConfig(1, 4))).tokenizer
    unit = torch.nn.functional.normalize(raw)
    variances = torch.linalg.eigvalsh(torch.cov(unit.T)).flip(0)
    torch.testing.assert_close(torch.cov(tokenizer.prepared(raw).T), variances[:2].diag(), rtol=1e-4, atol=1e-6)


def test_uneven_levels_and_ids_that_tell_nothing_apart_are_told() -> None:
    codes = torch.tensor([[0, 0]] * 30 + [[0, 1]] * 5 + [[i, i] for i in range(5)])
    ids = resolve_collisions(codes, 32)
    found = report(ids, torch.randn(40, 3), [torch.zeros(40, 3)] * 2)
    assert len(weaknesses(found, ids.level_sizes, 40)) == 3
    assert "share all their codes" in weaknesses(found, ids.level_sizes, 40)[-1]
    good = resolve_collisions(torch.arange(32).unsqueeze(1), 32)
    assert weaknesses(report(good, torch.randn(32, 3), [torch.zeros(32, 3)]), good.level_sizes, 32) == []


def test_items_bought_together_lie_together_in_cooccurrence_embeddings_and_unseen_ones_at_zero() -> None:
    generator = np.random.default_rng(0)
    shelves = generator.integers(0, 4, 400)
    items = np.concatenate([shelf * 10 + generator.permutation(10)[:6] + 1 for shelf in shelves])
    users = np.repeat(np.arange(400), 6)
    embeddings = cooccurrence_embeddings(items, users, 41, 4)
    assert embeddings.shape == (41, 4)
    assert embeddings[40].abs().max() == 0
    unit = torch.nn.functional.normalize(embeddings[:40])
    same = torch.arange(40).div(10, rounding_mode="floor")
    cosines = unit @ unit.T
    assert cosines[same.unsqueeze(1) == same].min() > 0.9
    assert cosines[same.unsqueeze(1) != same].abs().max() < 0.1


def test_a_level_is_uneven_below_a_quarter_of_its_codes_or_items() -> None:
    found = SemanticIdReport((0.1, 0.1), (1.0, 1.0), (64.0, 63.9), 0.0, 1)
    (told,) = weaknesses(found, (256, 256), 1000)
    assert told == "level 2 is used unevenly: its perplexity is 64 of 256 codes"
    assert weaknesses(found, (256, 256), 200) == []


def test_cooccurrence_embeddings_factorize_the_positive_mutual_information_of_neighbours() -> None:
    """At full rank E = U sqrt(S), so that (E E')^2 = M M', whatever the signs of singular vectors."""
    histories = [[1, 2, 3, 1], [2, 3, 5], [4, 5], [1, 4, 4, 2, 6], [6, 3]]
    counts = torch.zeros(6, 6, dtype=torch.float64)
    for history in histories:
        for i, j in combinations(range(len(history)), 2):
            if j - i <= 2 and history[i] != history[j]:
                counts[history[i] - 1, history[j] - 1] += 1 / (j - i)
                counts[history[j] - 1, history[i] - 1] += 1 / (j - i)
    totals = counts.sum(1)
    context = totals.pow(0.5) / totals.pow(0.5).sum()
    information = (counts / (totals.unsqueeze(1) * context)).log().clamp_min(0.0)
    assert 0 < int((information > 0).sum()) < int((counts > 0).sum())
    embeddings = cooccurrence_embeddings(
        np.concatenate(histories),
        np.repeat(np.arange(5), [len(history) for history in histories]),
        6,
        6,
        window=2,
        context_power=0.5,
    ).double()
    square = (embeddings @ embeddings.T) @ (embeddings @ embeddings.T)
    torch.testing.assert_close(square, information @ information.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("components", [None, 4])
def test_a_tokenizer_of_one_seen_item_or_of_embeddings_that_are_no_numbers_is_refused(components: int | None) -> None:
    config, embeddings = TokenizerConfig(components=components), torch.randn(5, 8)
    with pytest.raises(ConfigError, match="items that occur in training: 1; a tokenizer is fitted to two at least"):
        fit_tokenizer(embeddings, config, seen=torch.arange(5) == 3)
    embeddings[2, 4] = torch.nan
    with pytest.raises(ConfigError, match="the embedding of item 3 holds a value that is not finite"):
        fit_tokenizer(embeddings, config)
