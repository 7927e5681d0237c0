"""Every impossible simulation is refused with one sentence."""

from dataclasses import replace

import pytest

from rayrec.data.simulation import FunnelConfig, SimulationConfig, WorldConfig
from rayrec.typed_json import ConfigError, from_json, to_json


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WorldConfig(users=0), "users must be at least 1, not 0"),
        (lambda: WorldConfig(early_signals=0), "early_signals must be at least 1, not 0"),
        (lambda: WorldConfig(late_signal_effect=-0.1), "late_signal_effect must be at least 0.0, not -0.1"),
        (lambda: WorldConfig(drift=float("nan")), "drift must be at least 0.0, not nan"),
        (lambda: WorldConfig(base_click_probability=1.0), "base_click_probability must lie between 0 and 1"),
        (lambda: WorldConfig(missing_share=1.5), "missing_share must lie between 0 and 1, not 1.5"),
        (lambda: WorldConfig(ads=5, campaigns=9, advertisers=2), "advertisers <= campaigns <= ads, not 2, 9, 5"),
        (lambda: FunnelConfig(slots=9, late_keep=8), "a funnel narrows"),
        (lambda: FunnelConfig(slots=0), "a funnel narrows"),
        (lambda: FunnelConfig(late_noise=-1.0), "late_noise must be at least 0.0, not -1.0"),
        (lambda: SimulationConfig(seed=-1), "seed must be at least 0, not -1"),
        (lambda: SimulationConfig(unlabeled_share=2.0), "unlabeled_share must lie between 0 and 1, not 2.0"),
        (lambda: SimulationConfig(valid_share=0.6, test_share=0.4), "must leave something to train on"),
        (lambda: SimulationConfig(requests=3), "3 requests are too few: none is left for split 'valid'"),
        (lambda: SimulationConfig(world=WorldConfig(ads=60, campaigns=20, advertisers=5)), "there are only 60 ads"),
    ],
)
def test_an_impossible_simulation_is_refused_by_name_and_value(make, message) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make()


def test_splits_are_consecutive_and_cover_all_requests() -> None:
    splits = SimulationConfig(requests=1003, valid_share=0.2, test_share=0.1).split_requests
    assert splits == {"train": (0, 702), "valid": (702, 903), "test": (903, 1003)}


def test_a_simulation_without_a_validation_period_is_possible() -> None:
    assert SimulationConfig(requests=10, valid_share=0.0).split_requests["valid"] == (9, 9)


def test_a_config_comes_back_from_its_json() -> None:
    config = replace(SimulationConfig(), seed=5, world=WorldConfig(noise_signals=3), funnel=FunnelConfig(slots=1))
    assert from_json(SimulationConfig, to_json(config)) == config
