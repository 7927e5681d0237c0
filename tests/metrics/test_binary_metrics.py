"""Streaming binary metrics against scikit-learn, closed forms, and themselves however the rows are dealt out."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from rayrec.metrics import BinaryMetrics
from rayrec.metrics.binary_groups import group_of
from rayrec.metrics.paired import mean_estimate

BIN = 1 / 512  # width of a histogram bin in logits


def random_rows(rows: int, tasks: int = 1, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T), labels (B, T) that they half explain, weights (B,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tasks, generator=generator) * 2 - 1
    labels = (torch.rand(rows, tasks, generator=generator) < (0.5 * logits).sigmoid()).float()
    return logits, labels, torch.rand(rows, generator=generator) * 3


def metrics_of(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> BinaryMetrics:
    metrics = BinaryMetrics(logits.shape[1])
    metrics.update(logits, labels, weights)
    return metrics


@pytest.mark.parametrize("weighted", [False, True])
def test_log_loss_and_auc_agree_with_scikit_learn(weighted: bool) -> None:
    logits, labels, weights = random_rows(5_000, 3)
    results = metrics_of(logits, labels, weights if weighted else None).compute()
    for task, result in enumerate(results):
        truth, sample_weight = labels[:, task].numpy(), weights.numpy() if weighted else None
        probability = logits[:, task].double().sigmoid().numpy()
        assert result.log_loss == pytest.approx(log_loss(truth, probability, sample_weight=sample_weight), rel=1e-9)
        assert result.auc == pytest.approx(roc_auc_score(truth, probability, sample_weight=sample_weight), abs=2e-4)
        assert (result.rows, result.positives) == (5_000, truth.sum())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-40, 40), st.booleans(), st.integers(1, 3)), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label, _ in rows}) == 2
    )
)
def test_auc_is_exact_where_scores_lie_on_the_grid_ties_included(rows: list[tuple[int, bool, int]]) -> None:
    bins, labels, weights = (torch.tensor(column) for column in zip(*rows, strict=True))
    logits = (bins * BIN).unsqueeze(1)
    (result,) = metrics_of(logits, labels.float().unsqueeze(1), weights.float()).compute()
    assert result.auc == pytest.approx(roc_auc_score(labels.numpy(), bins.numpy(), sample_weight=weights.numpy()))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=5), st.integers(0, 100))
def test_states_of_any_parts_add_up_to_that_of_the_whole(cuts: list[int], seed: int) -> None:
    logits, labels, weights = random_rows(60, 2, seed=seed)
    edges = [0, *sorted(cuts), 60]
    parts = [metrics_of(logits[a:b], labels[a:b], weights[a:b]) for a, b in itertools.pairwise(edges)]
    joint = BinaryMetrics(2)
    joint.load_state(torch.stack([part.state() for part in parts]).sum(0))
    torch.testing.assert_close(joint.state(), metrics_of(logits, labels, weights).state())


def test_normalized_entropy_is_log_loss_over_the_entropy_of_the_base_rate() -> None:
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]).unsqueeze(1)
    rate = torch.full((5, 1), math.log(0.2 / 0.8))
    (result,) = metrics_of(rate, labels).compute()
    assert result.normalized_entropy == pytest.approx(1.0)
    assert result.log_loss == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)))
    assert (result.calibration_ratio, result.ece) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-7))
    (half,) = metrics_of(torch.zeros(5, 1), labels).compute()
    assert half.normalized_entropy == pytest.approx(math.log(2) / result.log_loss)
    assert half.calibration_ratio == pytest.approx(2.5)
    assert half.ece == pytest.approx(0.3)


def test_ece_finds_a_shift_of_the_logits_that_auc_cannot_see() -> None:
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    labels = (torch.rand(200_000, 1, generator=generator, dtype=torch.float64) < true.sigmoid()).double()
    (good,), (shifted,) = metrics_of(true, labels).compute(), metrics_of(true + 1, labels).compute()
    expected = float((true + 1).sigmoid().mean() - true.sigmoid().mean())
    assert good.ece < 0.006
    assert shifted.ece == pytest.approx(expected, abs=0.004)
    assert shifted.auc == pytest.approx(good.auc, abs=1e-5)


def test_rows_without_a_label_do_not_count() -> None:
    logits, labels, _ = random_rows(400, 2)
    masked = labels.clone()
    masked[::3, 1] = torch.nan
    observed = ~masked[:, 1].isnan()
    both = metrics_of(logits, masked).compute()
    (alone,) = metrics_of(logits[observed, 1:], labels[observed, 1:]).compute()
    assert both[1].rows == int(observed.sum())
    assert (both[1].auc, both[1].calibration_curve) == (pytest.approx(alone.auc), alone.calibration_curve)
    assert both[1].log_loss == pytest.approx(alone.log_loss)
    assert both[0].rows == 400


def test_the_calibration_curve_has_bins_of_equal_mass_whose_means_are_those_of_their_rows() -> None:
    logits, labels, _ = random_rows(6_000)
    order = logits[:, 0].argsort()
    probability, truth = logits[order, 0].double().sigmoid().view(20, -1), labels[order, 0].view(20, -1)
    (result,) = metrics_of(logits, labels).compute()
    assert len(result.calibration_curve) == 20
    for found, p, y in zip(result.calibration_curve, probability, truth, strict=True):
        assert found.rows == pytest.approx(300, abs=12)  # a fine bin is not split
        assert found.mean_predicted == pytest.approx(float(p.mean()), abs=0.005)
        assert found.mean_observed == pytest.approx(float(y.mean()), abs=0.03)


def test_only_the_ratios_of_weights_count() -> None:
    logits, labels, weights = random_rows(50)
    whole, tiny = (metrics_of(logits, labels, weights * scale).compute()[0] for scale in (1.0, 1e-3))
    for name in ("log_loss", "normalized_entropy", "auc", "ece", "calibration_ratio"):
        assert getattr(tiny, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def test_logits_beyond_the_grid_share_its_outermost_bins_and_stand_apart_from_the_next() -> None:
    logits = torch.tensor([[40.0], [16 - 1.5 * BIN], [-16 + 1.5 * BIN], [-40.0]])
    (result,) = metrics_of(logits, torch.tensor([[1.0], [0.0], [1.0], [0.0]])).compute()
    assert result.auc == 0.75
    (tied,) = metrics_of(torch.tensor([[40.0], [16 - 0.5 * BIN]]), torch.tensor([[1.0], [0.0]])).compute()
    assert tied.auc == 0.5


@pytest.mark.parametrize("labels", [torch.ones(3, 1), torch.zeros(3, 1), torch.full((3, 1), torch.nan)])
def test_what_one_class_leaves_undefined_is_nan(labels: Tensor) -> None:
    (result,) = metrics_of(torch.randn(3, 1), labels).compute()
    assert math.isnan(result.auc)
    assert math.isnan(result.normalized_entropy)


def test_diverged_logits_and_wrong_shapes_are_refused() -> None:
    metrics = BinaryMetrics(1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.update(torch.tensor([[torch.nan]]), torch.ones(1, 1))
    metrics.update(torch.tensor([[torch.nan]]), torch.full((1, 1), torch.nan))  # nobody looks at that row
    with pytest.raises(ValueError, match=r"logits \(2, 2\), labels \(2, 2\); expected both to be \(rows, 1\)"):
        metrics.update(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="state of shape"):
        metrics.load_state(torch.zeros(2, 5))


def grouped(logits: Tensor, labels: Tensor, weights: Tensor, users: Tensor | None) -> BinaryMetrics:
    metrics = BinaryMetrics(logits.shape[1], by_group=True)
    metrics.update(logits, labels, weights, users)
    return metrics


def test_metrics_without_a_group_of_users_are_those_of_the_other_rows() -> None:
    logits, labels, weights = random_rows(3_000, 2)
    labels[::5, 1] = torch.nan
    users = torch.arange(3_000) % 400 + 1
    metrics = grouped(logits, labels, weights, users)
    assert metrics.groups is not None
    rests = metrics.groups.left_out()
    for group in (0, 31, 63):
        others = group_of(users) != group
        assert 2_700 < int(others.sum()) < 3_000
        for rest, result in zip(
            rests, metrics_of(logits[others], labels[others], weights[others]).compute(), strict=True
        ):
            for name in ("log_loss", "normalized_entropy", "calibration_ratio"):
                assert rest[name][group] == pytest.approx(getattr(result, name), rel=1e-9)
            assert rest["auc"][group] == pytest.approx(result.auc, abs=2e-3)
    assert grouped(logits, labels.fill_(0.0), weights, users).groups.left_out()[0].keys() == {"log_loss"}  # type: ignore[union-attr]


def test_sums_by_group_of_two_workers_add_up_and_unknown_users_are_each_for_themselves() -> None:
    logits, labels, weights = random_rows(2_000)
    users = torch.arange(2_000) % 300 + 1
    whole = grouped(logits, labels, weights, users)
    parts = [grouped(logits[s], labels[s], weights[s], users[s]) for s in (slice(0, 700), slice(700, 2_000))]
    joint = BinaryMetrics(1, by_group=True)
    joint.load_state(parts[0].state() + parts[1].state())
    torch.testing.assert_close(joint.state(), whole.state())
    unknown, rows = (grouped(logits, labels, weights, u) for u in (torch.zeros(2_000, dtype=torch.int64), None))
    torch.testing.assert_close(unknown.state(), rows.state())


def test_errors_over_groups_are_the_spread_over_fresh_rows_where_users_repeat_themselves() -> None:
    """200 users of ten rows and one leaning each: rows taken for independent see a third of the error of the log loss."""
    errors: dict[bool, list[float]] = {True: [], False: []}
    losses = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        leaning = torch.randn(200, 1, generator=generator).repeat_interleave(10, 0) * 2
        labels = (leaning.sigmoid() > 0.5).double()
        logits, users = torch.full((2_000, 1), -0.5), torch.arange(200).repeat_interleave(10) + 1
        for by_user in (True, False):
            metrics = grouped(logits, labels, torch.ones(2_000), users if by_user else None)
            assert metrics.groups is not None
            (result,), (rest,) = metrics.compute(), metrics.groups.left_out()
            found = mean_estimate([result.log_loss], [rest["log_loss"]]).group_error
            assert found is not None
            errors[by_user].append(found)
        losses.append(result.log_loss)
    spread = torch.tensor(losses).std().item()
    assert sum(errors[True]) / 60 == pytest.approx(spread, rel=0.25)
    assert sum(errors[False]) / 60 < 0.5 * spread


def test_groups_skip_rows_without_a_label_whatever_their_logit_and_refuse_a_state_of_another_shape() -> None:
    logits, labels, weights = random_rows(300)
    users = torch.arange(300) % 90 + 1
    broken, missing = logits.clone(), labels.clone()
    broken[::4], missing[::4] = torch.nan, torch.nan
    keep = torch.arange(300) % 4 != 0
    metrics = grouped(broken, missing, weights, users)
    assert metrics.groups is not None
    torch.testing.assert_close(metrics.state(), grouped(logits[keep], labels[keep], weights[keep], users[keep]).state())
    (result,) = metrics.compute()
    assert math.isfinite(result.ece + result.calibration_ratio)
    with pytest.raises(ValueError, match="state of shape"):
        metrics.groups.load_state(torch.zeros(2, 64, 4))


def test_a_key_is_in_the_group_that_64_bit_arithmetic_gives() -> None:
    def signed(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    for key in (0, 1, 2, 77, -5, 2**40 + 3, 2**63 - 1):
        x = signed(key * -7046029254386353131)
        x = signed((x ^ (x >> 31)) * -4658895280553007687)
        assert int(group_of(torch.tensor([key]))) == (x ^ (x >> 29)) % 64


def test_rows_are_merged_into_the_bin_that_holds_the_middle_of_their_mass() -> None:
    """20 bins of 4 rows: of 2, 3 and 75 rows with one probability each the first two have their middle in the first bin."""
    logits = torch.tensor([-2.0] * 2 + [0.0] * 3 + [2.0] * 75).unsqueeze(1)
    (result,) = metrics_of(logits, torch.ones(80, 1)).compute()
    assert [one.rows for one in result.calibration_curve] == [5, 75]
    logits = torch.tensor([-2.0] * 3 + [0.0] * 5 + [2.0] * 72).unsqueeze(1)  # middles at 1.5 and 5.5 of 80
    (result,) = metrics_of(logits, torch.ones(80, 1)).compute()
    assert [one.rows for one in result.calibration_curve] == [3, 5, 72]


def test_a_loaded_state_is_no_longer_that_of_its_giver() -> None:
    giver, taker = BinaryMetrics(1), BinaryMetrics(1)
    giver.update(torch.tensor([[0.5], [-0.5]]), torch.tensor([[1.0], [0.0]]))
    given = giver.state()
    before = given.clone()
    taker.load_state(given)
    taker.update(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    assert torch.equal(given, before)
