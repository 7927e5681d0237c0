"""The sweep of UKDSL fits an experiment, value for value."""

from pathlib import Path

import pytest

from jobs.sweep import Sweep, run
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.runs.sweeping import SweepConfig, apply_parameters
from rayrec.typed_json import ConfigError
from tune_spaces import find_space


def test_every_value_that_the_ukdsl_space_draws_makes_an_experiment_with_an_auxiliary_head(small_log: Path) -> None:
    base = RankerExperiment(small_log, unlabeled=small_log)
    space = find_space("ukdsl")
    drawn = {name: domain.sample() for name, domain in space.of(base).items()}
    experiment = apply_parameters(apply_parameters(base, space.settings), drawn)
    assert experiment.unlabeled_ratio == drawn["unlabeled_ratio"] > 0
    distillation = experiment.ranking.distillation
    assert distillation is not None
    assert distillation.head == "auxiliary"
    assert distillation.unlabeled_weight == drawn["ranking.distillation.unlabeled_weight"]
    assert len(experiment.task().heads) == 4


def test_logs_without_a_teachers_scores_are_refused_before_the_first_trial(small_log: Path, runs: Path) -> None:
    base = RankerExperiment(small_log, unlabeled=small_log)
    with pytest.raises(ConfigError, match=r"no column teacher_click.*score_log"):
        run(Sweep("sweep", SweepConfig(base=base), space="ukdsl"))
    assert not (runs / "sweep").exists()
