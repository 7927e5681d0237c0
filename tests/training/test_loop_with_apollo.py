"""The worker loop with low-rank optimizers: learns, and resumes bit for bit with clipping, warm-up and a schedule."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayrec.optim import OptimizerConfig, ProjectionConfig
from rayrec.training.checkpoint import best_weights
from rayrec.training.ranker_run import RankerExperiment
from tests.training.test_loop import Killed, KilledAfter, experiment, train, train_here  # noqa: F401  (a fixture)


@pytest.mark.parametrize("optimizer", ["apollo", "apollo_mini", "galore"])
def test_a_killed_run_of_a_low_rank_optimizer_ends_as_an_undisturbed_one(
    experiment: RankerExperiment,  # noqa: F811
    tmp_path: Path,
    optimizer: str,
) -> None:
    config = OptimizerConfig(optimizer=optimizer, learning_rate=0.01, projection=ProjectionConfig(period=10))  # type: ignore[arg-type]
    chosen = replace(experiment, optimizer=config, loop=replace(experiment.loop, gradient_clip=0.5))
    undisturbed, progress = train(chosen, tmp_path / "undisturbed")
    with pytest.raises(Killed):
        train_here(chosen, KilledAfter(tmp_path / "killed", 2), say=lambda text: None)
    resumed, _ = train(chosen, tmp_path / "killed")
    for name, tensor in best_weights(undisturbed).items():
        assert torch.equal(tensor, best_weights(resumed)[name]), name
    assert (progress.evaluations["test"]["click"]["auc"] or 0.0) > 0.7
