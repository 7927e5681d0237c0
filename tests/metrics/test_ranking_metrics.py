"""Ranking metrics against plain loops and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.metrics.binary_groups import group_of
from rayrec.metrics.impressions import ImpressionMetrics
from rayrec.metrics.ranking import ABSENT, RankingMetrics, list_ranks, target_ranks


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 40))
def test_metrics_equal_a_loop_over_queries(seed: int, queries: int, items: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 8, (queries, items), generator=generator).float()  # many ties
    targets = torch.randint(0, items, (queries,), generator=generator)
    cold = torch.rand(queries, generator=generator) < 0.3
    metrics = RankingMetrics((1, 5, 10))
    metrics.update(target_ranks(scores, targets), cold)
    results = metrics.compute()
    for group, wanted in (("all", [True, False]), ("in_set", [False]), ("cold", [True])):
        rows = [i for i in range(queries) if bool(cold[i]) in wanted]
        ranks = []
        for i in rows:
            target = int(targets[i])
            ranks.append(1 + sum(1 for j in range(items) if j != target and scores[i, j] >= scores[i, target]))
        assert results[group].count == len(rows)
        if not rows:
            assert results[group].mrr is None
            continue
        assert results[group].mrr == pytest.approx(sum(1 / r for r in ranks) / len(rows))
        for k in (1, 5, 10):
            assert results[group].recall[k] == pytest.approx(sum(r <= k for r in ranks) / len(rows))
            gain = sum(1 / math.log2(1 + r) for r in ranks if r <= k) / len(rows)
            assert results[group].ndcg[k] == pytest.approx(gain)


def test_a_target_that_was_not_retrieved_counts_as_a_miss_everywhere() -> None:
    ranks = list_ranks(torch.tensor([[4, 2, 9], [1, 2, 3]]), torch.tensor([9, 7]))
    assert ranks.tolist() == [3, ABSENT]
    metrics = RankingMetrics((5,))
    metrics.update(ranks)
    result = metrics.compute()["all"]
    assert result.recall[5] == 0.5
    assert result.ndcg[5] == pytest.approx(0.25)  # 1 / log2(4) / 2
    assert result.mrr == pytest.approx(1 / 6)


def test_list_ranks_agree_with_full_ranking_inside_the_list() -> None:
    torch.manual_seed(0)
    scores, targets = torch.randn(50, 30), torch.randint(0, 30, (50,))
    full, inside = target_ranks(scores, targets), list_ranks(scores.topk(10).indices, targets)
    assert torch.equal(inside, torch.where(full <= 10, full, ABSENT))


def test_ties_in_a_list_with_scores_count_against_the_target_and_nan_is_a_miss() -> None:
    items = torch.tensor([[4, 2, 9, 7], [1, 2, 3, 4], [1, 2, 3, 4]])
    scores = torch.tensor([[3.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0], [torch.nan, 3.0, 2.0, 1.0]])
    assert list_ranks(items, torch.tensor([2, 1, 3]), scores).tolist() == [3, 4, ABSENT]
    assert list_ranks(items, torch.tensor([5, 1, 3]), scores).tolist() == [ABSENT, 4, ABSENT]


def test_states_of_two_workers_add_up_to_one_pass() -> None:
    ranks, cold = torch.tensor([1, 3, 12, ABSENT]), torch.tensor([True, False, False, True])
    whole, left, right = RankingMetrics(), RankingMetrics(), RankingMetrics()
    whole.update(ranks, cold)
    left.update(ranks[:1], cold[:1])
    right.update(ranks[1:], cold[1:])
    left.load_state(left.state() + right.state())
    assert left.compute() == whole.compute()


def test_a_constant_or_broken_model_gets_no_credit() -> None:
    assert target_ranks(torch.zeros(1, 20), torch.tensor([3])).tolist() == [20]
    assert target_ranks(torch.full((1, 20), torch.nan), torch.tensor([3])).tolist() == [ABSENT]


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks start at 1"):
        RankingMetrics().update(torch.tensor([0]))


@pytest.mark.parametrize("cutoffs", [(), (0,), (5, 0)])
def test_no_cutoff_or_one_below_one_is_refused(cutoffs: tuple[int, ...]) -> None:
    for metrics in (RankingMetrics, ImpressionMetrics):
        with pytest.raises(ValueError, match="cutoffs must be at least 1"):
            metrics(cutoffs)


def test_metrics_without_a_part_of_the_users_are_those_of_the_others_in_whatever_order_they_come() -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(1, 30, (150,), generator=generator)
    cold = torch.rand(150, generator=generator) < 0.4
    users = torch.arange(150) // 2 * 1_000_003  # two queries each
    metrics, turned, own = RankingMetrics((5, 10)), RankingMetrics((5, 10)), RankingMetrics((5, 10))
    for start in range(0, 150, 40):
        batch = slice(start, start + 40)
        metrics.update(ranks[batch], cold[batch], users[batch])
        own.update(ranks[batch], cold[batch])
    turned.update(ranks.flip(0), cold.flip(0), users.flip(0))
    torch.testing.assert_close(turned.state(), metrics.state())
    rests, parts = metrics.left_out(), group_of(users, 64)
    assert own.left_out()["all"] != rests["all"]
    for part in parts[:6].tolist():
        others = parts != part
        alone = RankingMetrics((5, 10))
        alone.update(ranks[others], cold[others])
        for group, result in alone.compute().items():
            found = {name: values[part] for name, values in rests[group].items()}
            expected = {name: value for name, value in result.as_numbers().items() if name != "count"}
            assert found == pytest.approx(expected)
    only_warm = RankingMetrics()
    only_warm.update(ranks)
    assert set(only_warm.left_out()) == {"all", "in_set"}


def test_two_queries_suffice_for_metrics_without_each_and_one_does_not() -> None:
    metrics = RankingMetrics((5,))
    metrics.update(torch.tensor([2]))
    assert metrics.left_out() == {}
    metrics.update(torch.tensor([4]))
    values = metrics.left_out()["all"]["mrr"]
    assert sorted(set(values)) == [0.25, 0.375, 0.5]
    assert (values.count(0.25), values.count(0.5)) == (1, 1)


def test_queries_that_all_miss_have_metrics_of_0_without_each_part() -> None:
    metrics = RankingMetrics((5,))
    metrics.update(torch.full((3,), ABSENT))
    assert metrics.left_out()["all"] == {"mrr": (0.0,) * 64, "recall@5": (0.0,) * 64, "ndcg@5": (0.0,) * 64}
