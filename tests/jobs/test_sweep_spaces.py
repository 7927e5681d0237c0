"""Every space of ``tune_spaces`` fits the experiment it is for, and leaves what it does not sweep alone."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

import tune_spaces.task_weights
from jobs.sweep import RankerSpace, SweepRanker
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.runs.sweeping import SweepConfig, apply_parameters
from rayrec.typed_json import ConfigError


@pytest.mark.parametrize("space", get_args(RankerSpace))
def test_every_drawn_trial_is_an_experiment_whose_task_can_be_built(small_log: Path, space: RankerSpace) -> None:
    base = RankerExperiment(small_log, unlabeled=small_log if space == "ukdsl" else None)
    swept = SweepRanker("x", SweepConfig(base), space).parameters()
    start = apply_parameters(base, swept.settings)
    trials = [apply_parameters(start, {path: d.sample() for path, d in swept.parameters.items()}) for _ in range(20)]
    assert len(set(map(str, trials))) == 20
    for trial in trials[:3]:
        trial.task()


def test_a_space_keeps_what_the_base_says_of_the_same_method(small_log: Path) -> None:
    base = RankerExperiment(small_log, ranking=RankingConfig(perturbation=PerturbationConfig("scr", item_drop=0.2)))
    start = apply_parameters(base, SweepRanker("x", SweepConfig(base), "lspr").parameters().settings)
    assert start.ranking.perturbation == PerturbationConfig("lspr", item_drop=0.2)
    assert replace(start, ranking=base.ranking) == base


def test_task_weights_are_relative_to_the_first_task() -> None:
    space = tune_spaces.task_weights.space(("click", "like", "follow"))
    assert list(space.parameters) == ["ranking.task_weights.like", "ranking.task_weights.follow"]
    with pytest.raises(ConfigError, match="two tasks"):
        tune_spaces.task_weights.space(("click",))
