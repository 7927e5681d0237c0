"""Metrics within requests against loops and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from rayrec.metrics.by_group import GroupedRows, grouped_metrics


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 8), st.booleans())
def test_they_equal_loops_over_groups(seed: int, rows: int, requests: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, requests, rows).astype(str)
    scores = generator.integers(0, 3, rows).astype(float) if ties else generator.normal(size=rows)
    labels = np.where(generator.random(rows) < 0.1, np.nan, (generator.random(rows) < 0.4).astype(float))
    found = grouped_metrics(groups, scores, labels, (1, 3))
    aucs, reciprocal, ndcgs = [], [], {1: [], 3: []}
    for name in np.unique(groups):
        own = (groups == name) & ~np.isnan(labels)
        s, y = scores[own], labels[own]
        if len(set(y)) < 2:
            continue
        aucs.append(roc_auc_score(y, s))
        order = sorted(range(len(s)), key=lambda i: (-s[i], y[i]))
        reciprocal.append(1 / (1 + next(place for place, i in enumerate(order) if y[i])))
        for k, values in ndcgs.items():
            gain = sum(y[i] / np.log2(place + 2) for place, i in enumerate(order[:k]))
            values.append(gain / sum(1 / np.log2(place + 2) for place in range(min(k, int(y.sum())))))
            if not ties:
                assert values[-1] == pytest.approx(ndcg_score([y], [s], k=k))
    if not aucs:
        assert (found.groups, found.auc, found.mrr, found.ndcg) == (0, None, None, {1: None, 3: None})
        return
    assert found.groups == len(aucs)
    assert found.auc == pytest.approx(np.mean(aucs))
    assert found.mrr == pytest.approx(np.mean(reciprocal))
    assert found.ndcg == {k: pytest.approx(np.mean(values)) for k, values in ndcgs.items()}


def test_a_constant_score_orders_nothing_and_a_perfect_one_everything() -> None:
    groups, labels = np.repeat(np.arange(3), 4), np.tile([1.0, 0.0, 0.0, 0.0], 3)
    constant, perfect = grouped_metrics(groups, np.zeros(12), labels), grouped_metrics(groups, labels, labels)
    assert (constant.auc, constant.mrr) == (0.5, 0.25)
    assert (perfect.auc, perfect.mrr, perfect.ndcg) == (1.0, 1.0, {5: 1.0, 10: 1.0})


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups, 3 scores and 3 labels"):
        grouped_metrics(np.zeros(2), np.zeros(3), np.zeros(3))


def test_rows_of_a_pass_are_judged_with_those_of_other_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 9, (90,), generator=generator) * 2**40 - 2**43  # each on both workers
    scores, labels = torch.rand(90, 2, generator=generator), (torch.rand(90, 2, generator=generator) < 0.4).float()
    labels[::7, 1] = torch.nan
    one, other = GroupedRows(), GroupedRows()
    for start in range(0, 50, 20):
        one.update(*(column[start : min(start + 20, 50)] for column in (groups, scores, labels)))
    other.update(groups[50:], scores[50:], labels[50:])

    def gathered(found: list, own: object) -> None:
        found[:] = [own, other._parts]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gathered)
    one.gather()
    assert len(one) == 90
    for task, found in enumerate(one.compute((3,))):
        assert found == grouped_metrics(groups.numpy(), scores[:, task].numpy(), labels[:, task].numpy(), (3,))
    assert GroupedRows().compute() == ()


def test_scores_of_a_training_step_are_taken_without_their_graph() -> None:
    rows = GroupedRows()
    rows.update(torch.tensor([0, 0]), torch.tensor([[0.2], [0.9]], requires_grad=True), torch.tensor([[0.0], [1.0]]))
    assert rows.compute()[0].auc == 1.0
