"""MIND's metrics of an impression against scikit-learn and hand counts."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score, roc_auc_score

from rayrec.metrics.binary_groups import group_of
from rayrec.metrics.impressions import ImpressionMetrics, impression_metrics


def test_auc_and_ndcg_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.normal(size=(20, 15)), (random.random((20, 15)) < 0.3).astype(int)
    labels[:, 0], labels[:, 1] = 1, 0
    found = impression_metrics(torch.tensor(scores), torch.tensor(labels))
    assert np.allclose(found[:, 0], [roc_auc_score(t, s) for t, s in zip(labels, scores, strict=True)])
    for column, cutoff in ((2, 5), (3, 10)):
        expected = [ndcg_score(t[None], s[None], k=cutoff) for t, s in zip(labels, scores, strict=True)]
        assert np.allclose(found[:, column], expected)


def test_mrr_is_the_mean_reciprocal_rank_of_all_positives_and_padding_has_no_part() -> None:
    found = impression_metrics(torch.tensor([[0.1, 0.9, 0.5, 7.0]]), torch.tensor([[1, 0, 1, -1]]))
    assert found[0, 1] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found[0, 0] == 0


def test_equal_scores_earn_half_in_auc_and_the_last_places_in_ranks() -> None:
    found = impression_metrics(torch.zeros(1, 4), torch.tensor([[1, 0, 0, 0]]))
    assert found[0, 0] == 0.5
    assert found[0, 1] == 0.25
    assert found[0, 2] == pytest.approx(1 / math.log2(5))


def test_a_nan_among_the_scores_earns_nothing() -> None:
    found = impression_metrics(torch.tensor([[2.0, math.nan]]), torch.tensor([[1, 0]]))
    assert found[0].tolist() == [0, 0, 0, 0]


def test_impressions_of_one_class_are_left_out_and_states_of_workers_add_up() -> None:
    scores, labels = torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1, 0], [1, 0], [1, 1]])
    whole, parts = ImpressionMetrics(), [ImpressionMetrics(), ImpressionMetrics()]
    whole.update(scores, labels)
    parts[0].update(scores[:1], labels[:1])
    parts[1].update(scores[1:], labels[1:])
    parts[0].load_state(parts[0].state() + parts[1].state())
    assert whole.compute() == parts[0].compute()
    assert whole.compute()["auc"] == 0.5
    assert (whole.compute()["rows"], whole.compute()["left_out"]) == (2, 1)
    assert ImpressionMetrics().compute()["auc"] is None


def test_metrics_without_a_group_are_those_of_the_other_users() -> None:
    """Two impressions a user, in batches that part a user's, in whatever order they come."""
    generator = torch.Generator().manual_seed(0)
    scores, users = torch.rand(200, 6, generator=generator), torch.arange(200) // 2
    labels = (torch.rand(200, 6, generator=generator) < 0.4).long()
    whole, others = ImpressionMetrics(), ImpressionMetrics()
    for rows in (slice(0, 61), slice(61, 200)):
        whole.update(scores[rows], labels[rows], users[rows])
    turned = ImpressionMetrics()
    turned.update(scores.flip(0), labels.flip(0), users.flip(0))
    torch.testing.assert_close(turned.state(), whole.state())
    part = int(group_of(users[10:11], 64))
    keep = group_of(users, 64) != part
    assert keep.sum() < 199
    others.update(scores[keep], labels[keep])
    for name, values in whole.without_groups().items():
        assert len(values) == 64
        assert values[part] == pytest.approx(others.compute()[name])
    assert ImpressionMetrics().without_groups() == {}


def test_of_two_users_each_is_the_metrics_without_the_other() -> None:
    metrics = ImpressionMetrics()
    metrics.update(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1, 0], [1, 0]]))
    first, second = group_of(torch.arange(2), 64).tolist()
    found = dict(enumerate(metrics.without_groups()["auc"]))
    assert (found.pop(first), found.pop(second), set(found.values())) == (0.0, 1.0, {0.5})
