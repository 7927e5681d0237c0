"""The funnel selects what it says, and the world's probabilities are those by which its outcomes are drawn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data.simulation import FunnelConfig, SimulationConfig, Simulator, WorldConfig, run_funnel
from rayrec.data.simulation.funnel import AUCTION, IMPRESSION, LATE_STAGE, Block, MarginalProbability, sigmoid

SMALL = SimulationConfig(
    requests=8_192,
    world=WorldConfig(users=1_000, ads=300, campaigns=60, advertisers=15, base_click_probability=0.02),
)


def simulated(config: SimulationConfig) -> list[Block]:
    simulator = Simulator(config)
    return [simulator.block(number) for number in range(simulator.blocks)]


def joined(blocks: Sequence[Block], name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks])


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return simulated(SMALL)


def reference_stages(early: np.ndarray, late: np.ndarray, bid: np.ndarray, config: FunnelConfig) -> list[int]:
    """One request, by sorting."""
    stages = [0] * len(early)
    survivors = sorted(range(len(early)), key=lambda i: -early[i])[: config.early_keep]
    for i in survivors:
        stages[i] = LATE_STAGE
    survivors = sorted(survivors, key=lambda i: -late[i])[: config.late_keep]
    for i in survivors:
        stages[i] = AUCTION
    for i in sorted(survivors, key=lambda i: -(bid[i] * late[i]))[: config.slots]:
        if bid[i] * late[i] >= config.reserve_value:
            stages[i] = IMPRESSION
    return stages


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), reserve=st.sampled_from([0.0, 0.5, 2.0]))
def test_the_funnel_matches_a_reference_that_sorts_each_request(data: st.DataObject, seed: int, reserve: float) -> None:
    pool = data.draw(st.integers(1, 12))
    early_keep = data.draw(st.integers(1, pool))
    late_keep = data.draw(st.integers(1, early_keep))
    slots = data.draw(st.integers(1, late_keep))
    config = FunnelConfig(pool, pool, early_keep, late_keep, slots, reserve_value=reserve)
    generator = np.random.default_rng(seed)
    early, late, bid = (generator.random((5, pool), dtype=np.float32) for _ in range(3))
    stages = run_funnel(early, late, bid * 4, config)
    assert stages.tolist() == [reference_stages(*row, config) for row in zip(early, late, bid * 4, strict=True)]


def test_a_funnel_with_too_few_candidates_is_refused() -> None:
    scores = np.ones((2, 5), np.float32)
    with pytest.raises(ValueError, match="5 candidates a request; the early stage keeps 20"):
        run_funnel(scores, scores, scores, FunnelConfig())


def test_each_stage_passes_on_as_many_candidates_as_configured(blocks: list[Block]) -> None:
    stage, funnel = joined(blocks, "stage"), SMALL.funnel
    assert stage.shape == (SMALL.requests, funnel.pool)
    for code, kept in ((LATE_STAGE, funnel.early_keep), (AUCTION, funnel.late_keep), (IMPRESSION, funnel.slots)):
        assert ((stage >= code).sum(1) == kept).all()


def test_auction_winners_have_the_highest_bid_times_score_of_the_late_stage_survivors(blocks: list[Block]) -> None:
    stage, value = joined(blocks, "stage"), joined(blocks, "bid") * joined(blocks, "late_score")
    least_shown = np.where(stage == IMPRESSION, value, np.inf).min(1)
    best_beaten = np.where(stage == AUCTION, value, -np.inf).max(1)
    assert (least_shown >= best_beaten).all()


def test_a_reserve_leaves_slots_empty() -> None:
    funnel = FunnelConfig(reserve_value=0.15)
    stage = joined(some := simulated(replace(SMALL, requests=1_024, funnel=funnel)), "stage")
    value = joined(some, "bid") * joined(some, "late_score")
    shown = (stage == IMPRESSION).sum(1)
    assert set(shown.tolist()) == {0, 1, 2}
    assert value[stage == IMPRESSION].min() >= 0.15


def test_candidates_of_a_request_are_different_ads(blocks: list[Block]) -> None:
    ads = np.sort(np.concatenate([block.candidates.ad for block in blocks]), axis=1)
    assert (np.diff(ads, axis=1) > 0).all()


def test_a_block_depends_only_on_the_seed_and_its_number(blocks: list[Block]) -> None:
    alone = Simulator(SMALL).block(5)
    assert np.array_equal(alone.stage, blocks[5].stage)
    assert np.array_equal(alone.click_probability, blocks[5].click_probability)
    assert np.array_equal(alone.candidates.late_signals, blocks[5].candidates.late_signals)
    other = Simulator(replace(SMALL, seed=1)).block(5)
    assert not np.array_equal(alone.candidates.ad, other.candidates.ad)


def test_requests_come_in_order_of_time_and_fill_the_days(blocks: list[Block]) -> None:
    timestamps = np.concatenate([block.requests.timestamp for block in blocks])
    hours = np.concatenate([block.requests.hour for block in blocks])
    assert (np.diff(timestamps) >= 0).all()
    assert np.ptp(timestamps) / 86_400 == pytest.approx(SMALL.world.days, abs=0.1)
    assert np.array_equal(timestamps % 86_400 // 3600, hours)
    assert (hours == 16).sum() > 2 * (hours == 4).sum()


@pytest.mark.parametrize(("label", "probability"), [("click", "click_probability"), ("conversion", None)])
def test_true_probabilities_are_calibrated_to_the_drawn_labels(
    blocks: list[Block], label: str, probability: str | None
) -> None:
    drawn = joined(blocks, label).ravel()
    if probability is None:  # a conversion needs a click
        rows = joined(blocks, "click").ravel()
        true, drawn = joined(blocks, "conversion_probability").ravel()[rows], drawn[rows]
    else:
        true = joined(blocks, probability).ravel()
    for decile in np.array_split(np.argsort(true), 10):
        p = true[decile].astype(np.float64)
        z = (drawn[decile].sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
        assert abs(z) < 4.5


def test_there_is_no_conversion_without_a_click(blocks: list[Block]) -> None:
    assert not (joined(blocks, "conversion") & ~joined(blocks, "click")).any()


def test_a_noiseless_early_stage_score_is_calibrated_on_all_candidates_and_too_low_on_impressions() -> None:
    some = simulated(replace(SMALL, funnel=FunnelConfig(early_noise=0.0)))
    score, true = joined(some, "early_score"), joined(some, "click_probability")
    for decile in np.array_split(np.argsort(score.ravel()), 10):
        difference = (score - true).ravel()[decile].astype(np.float64)
        assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(difference.size)
    shown = joined(some, "stage") == IMPRESSION
    assert score[shown].mean() / true[shown].mean() < 0.9  # it cannot see why they were selected


def test_the_late_stage_over_predicts_on_what_it_selects_and_the_more_the_noisier_it_is() -> None:
    ratios = []
    for noise in (0.0, 0.3, 0.6, 0.9):
        some = simulated(replace(SMALL, funnel=FunnelConfig(late_noise=noise)))
        shown = joined(some, "stage") == IMPRESSION
        ratios.append(joined(some, "late_score")[shown].mean() / joined(some, "click_probability")[shown].mean())
    assert ratios[0] == pytest.approx(1.0, abs=1e-5)
    assert np.diff(ratios).min() > 0.05


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_campaigns_drift_when_drift_is_on_and_only_then(drift: float) -> None:
    config = replace(SMALL, world=replace(SMALL.world, drift=drift, refreshed_ads=0.0))
    simulator = Simulator(config)
    ads = np.broadcast_to(np.arange(config.world.ads), (512, config.world.ads))
    change = []
    for number in (0, simulator.blocks - 1):  # the same pairs, first and last requests
        requests = replace(simulator.block(0).requests, progress=simulator.block(number).requests.progress)
        change.append(simulator.world.candidates(requests, ads, np.random.default_rng(0)).click_logit.mean(0))
    moved = np.abs(change[1] - change[0])
    assert (moved.max() < 1e-4) if drift == 0 else (moved.mean() > 1.0)


def test_a_refreshed_ad_takes_its_place_at_its_time_and_stays(blocks: list[Block]) -> None:
    ads, count = np.concatenate([block.candidates.ad for block in blocks]), SMALL.world.ads
    progress = np.concatenate([block.requests.progress for block in blocks])
    replaced = Simulator(SMALL).world.refresh_progress[ads % count] <= progress[:, None]
    assert np.array_equal(ads >= count, replaced)
    assert 0.03 < (ads >= count).mean() < 0.25


def test_marginal_probability_is_the_gaussian_mean_of_the_sigmoid() -> None:
    logits = np.linspace(-12, 6, 37).astype(np.float32)
    assert MarginalProbability(0.0)(logits) == pytest.approx(sigmoid(logits), abs=1e-6)
    quantiles = np.linspace(-9, 9, 20_001)
    weights = np.exp(-(quantiles**2) / 2)
    expected = (weights / weights.sum() / (1 + np.exp(-(logits[:, None] + 0.8 * quantiles)))).sum(1)
    assert MarginalProbability(0.8)(logits) == pytest.approx(expected, abs=2e-6)


def test_signals_by_a_network_have_mean_0_and_the_asked_spread_and_are_not_linear() -> None:
    plain = Simulator(SMALL).world
    world = Simulator(replace(SMALL, world=replace(SMALL.world, signal_form="network"))).world
    assert np.array_equal(world.interests, plain.interests)  # all else is the same world
    assert plain.networks is None
    assert world.networks is not None
    effects = (SMALL.world.early_signal_effect, SMALL.world.late_signal_effect)
    for network, effect in zip(world.networks, effects, strict=True):
        x = np.random.default_rng(1).standard_normal((8, 50_000), dtype=np.float32)
        y = network(x).astype(np.float64)
        assert abs(y.mean()) < 0.03 * effect
        assert y.std() == pytest.approx(effect, rel=0.03)
        design = np.vstack([x, np.ones(x.shape[1])]).T
        rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        assert 0.1 < rest.var() / y.var() < 0.9


def test_a_network_world_draws_its_clicks_from_the_network() -> None:
    world = replace(SMALL.world, signal_form="network", early_signal_effect=3.0)
    block = Simulator(replace(SMALL, world=world)).block(0)
    other = Simulator(SMALL).block(0)
    assert block.candidates.known_logit.std() > 2 * other.candidates.known_logit.std()
    late = block.candidates.click_logit - block.candidates.known_logit
    assert late.std() == pytest.approx(world.late_signal_effect, rel=0.1)
