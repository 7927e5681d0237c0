"""Every space of ``tune_spaces`` fits the experiment it is for, and leaves what it does not sweep alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.families.retriever.task import RetrievalConfig
from rayrec.methods.perturbation import PerturbationConfig
from rayrec.runs.sweeping import apply_parameters
from rayrec.typed_json import ConfigError
from tune_spaces import find_space, space_names

RANKER_SPACES = [name for name in space_names() if "ranker" in find_space(name).families]


@pytest.mark.parametrize("space", RANKER_SPACES)
def test_every_drawn_trial_is_an_experiment_whose_task_can_be_built(small_log: Path, space: str) -> None:
    base = RankerExperiment(small_log, unlabeled=small_log if space == "ukdsl" else None)
    swept = find_space(space)
    start = apply_parameters(base, swept.settings)
    trials = [apply_parameters(start, {path: d.sample() for path, d in swept.of(start).items()}) for _ in range(20)]
    assert len(set(map(str, trials))) == 20
    for trial in trials[:3]:
        trial.task()


def test_a_space_keeps_what_the_base_says_of_the_same_method(small_log: Path) -> None:
    base = RankerExperiment(small_log, ranking=RankingConfig(perturbation=PerturbationConfig("scr", item_drop=0.2)))
    start = apply_parameters(base, find_space("lspr").settings)
    assert start.ranking.perturbation == PerturbationConfig("lspr", item_drop=0.2)
    assert replace(start, ranking=base.ranking) == base


def test_task_weights_are_relative_to_the_first_task(small_log: Path) -> None:
    space = find_space("task_weights")
    assert list(space.of(RankerExperiment(small_log))) == ["ranking.task_weights.buy"]
    with pytest.raises(ConfigError, match="two tasks"):
        space.of(RankerExperiment(small_log, tasks=("click",)))


def test_a_space_of_another_family_and_one_that_does_not_exist_are_refused(small_log: Path) -> None:
    with pytest.raises(ConfigError, match="for a retriever, not for a ranker"):
        find_space("sasrec").of(RankerExperiment(small_log))
    with pytest.raises(ConfigError, match=r"'no_such'; there are apollo, .*ukdsl"):
        find_space("no_such")


@pytest.mark.parametrize("model", ["mender_emb", "mender_tok"])
def test_the_space_of_mender_is_of_the_base_s_variant(model: str) -> None:
    base = RetrieverExperiment(Path("s"), Path("i"), retrieval=RetrievalConfig(model=model))  # type: ignore[arg-type]
    swept = find_space("mender").of(base)
    trials = [apply_parameters(base, {path: d.sample() for path, d in swept.items()}) for _ in range(5)]
    assert len(set(map(str, trials))) == 5
    assert ("retrieval.mender_tok.lora_rank" in swept) == (model == "mender_tok")
    frozen = replace(base.retrieval, mender_tok=replace(base.retrieval.mender_tok, tune="frozen"))
    assert "retrieval.mender_tok.lora_rank" not in find_space("mender").of(replace(base, retrieval=frozen))
    with pytest.raises(ConfigError, match="'tiger' reads no preferences"):
        find_space("mender").of(replace(base, retrieval=replace(base.retrieval, model="tiger")))
