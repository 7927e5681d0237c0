"""The worker loop with low-rank optimizers: learns, and resumes bit for bit with clipping, warm-up and a schedule."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayrec.data.log.streams import StreamPosition
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.optim import OptimizerConfig, ProjectionConfig
from rayrec.training.checkpoint import best_weights
from rayrec.training.loop import updates_of
from tests.training.test_loop import Killed, KilledAfter, experiment, train, train_here  # noqa: F401  (a fixture)


@pytest.mark.parametrize("optimizer", ["apollo", "apollo_mini", "galore", "muon"])
def test_a_killed_run_of_each_optimizer_ends_as_an_undisturbed_one(
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


def test_accumulated_batches_make_one_update_and_resume_between_updates(
    experiment: RankerExperiment,  # noqa: F811
    tmp_path: Path,
) -> None:
    """23 batches of 512 rows an epoch: 6 updates of 4 batches, the last of 3."""
    config = OptimizerConfig(optimizer="apollo", projection=ProjectionConfig(period=5))
    loop = replace(experiment.loop, accumulate_batches=4, checkpoint_every_steps=4, gradient_clip=0.5)
    chosen = replace(experiment, optimizer=config, loop=loop)
    undisturbed, progress = train(chosen, tmp_path / "undisturbed")
    assert progress.step == 2 * 6
    assert progress.rows == 2 * 23 * 512
    with pytest.raises(Killed):
        train_here(chosen, KilledAfter(tmp_path / "killed", 1), say=lambda text: None)
    resumed, resumed_progress = train(chosen, tmp_path / "killed")
    assert replace(resumed_progress, seconds=0) == replace(progress, seconds=0)
    for name, tensor in best_weights(undisturbed).items():
        assert torch.equal(tensor, best_weights(resumed)[name]), name


class SevenBatches:
    """A training stream of seven batches an epoch, from a given one on."""

    steps_per_epoch = 7

    def __init__(self, start: int = 0) -> None:
        self.position = StreamPosition(0, start)

    def epoch_batches(self) -> Iterator[tuple[list[int], None]]:
        for step in range(self.position.step, 7):
            self.position = StreamPosition(0, step + 1) if step < 6 else StreamPosition(1, 0)
            yield [step], None

    def close(self) -> None: ...


def test_updates_take_so_many_batches_and_never_span_two_epochs() -> None:
    updates = [[batch[0] for batch, _ in update] for update in updates_of(SevenBatches(), 3)]
    assert updates == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(update) for update in updates_of(SevenBatches(3), 3)] == [3, 1]
