"""SSFS: exact influences of known models, planted features among noise, and its labeled peer."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jobs.select_features import SelectFeatures, run
from rayrec.batch import Batch
from rayrec.data.log import Log
from rayrec.data.log.streams import StreamConfig
from rayrec.data.simulation import SimulationConfig, WorldConfig, simulate
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.feature_selection import (
    FeatureSelectionConfig,
    influences,
    keep_most_influential,
    permutation_importances,
    spoiled_batch,
)
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import FolderReporter


class _Linear(nn.Module):
    """Logit: weights on three numbers and on whether the first id, and the first item of a sequence, is 1."""

    def forward(self, batch: Batch) -> Tensor:
        dense = batch.dense.nan_to_num(0.0) @ torch.tensor([2.0, 0.0, 1.0])
        return (dense + 0.5 * (batch.categorical[:, 0] == 1) + 0.2 * (batch.sequences[0][:, 0] == 1)).unsqueeze(1)


def batches(count: int = 4, rows: int = 500, *, labeled: bool = False) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        batch = Batch(
            dense=torch.randn(rows, 3, generator=generator),
            categorical=torch.randint(0, 3, (rows, 2), generator=generator),
            sequences=(torch.randint(0, 3, (rows, 4), generator=generator),),
            labels=torch.full((rows, 1), torch.nan),
        )
        if labeled:
            chance = torch.sigmoid(_Linear()(batch))
            batch.labels.copy_(torch.rand(chance.shape, generator=generator) < chance)
        made.append(batch)
    return made


@pytest.mark.parametrize("spoil", ["shuffle", "default"])
@pytest.mark.parametrize("measure", ["mse", "symmetric_kl"])
def test_influence_orders_features_by_their_effect_and_is_zero_for_unused_ones(spoil, measure) -> None:
    found = influences(_Linear(), batches(), FeatureSelectionConfig(spoil, measure))[:, 0]
    assert found.argsort(descending=True)[:4].tolist() == [0, 2, 3, 5]
    assert found[1] == found[4] == 0


def test_spoiling_changes_one_feature_only_and_shuffling_keeps_its_values() -> None:
    batch, generator = batches(1)[0], torch.Generator().manual_seed(1)
    for feature in range(6):
        for spoil in ("shuffle", "default"):
            spoiled = spoiled_batch(batch, feature, FeatureSelectionConfig(spoil), generator)
            columns = [*batch.dense.T, *batch.categorical.T, *batch.sequences]
            changed = [*spoiled.dense.T, *spoiled.categorical.T, *spoiled.sequences]
            assert [i for i, (a, b) in enumerate(zip(columns, changed, strict=True)) if not torch.equal(a, b)] == [
                feature
            ]
            if spoil == "shuffle" and feature < 5:
                torch.testing.assert_close(changed[feature].sort().values, columns[feature].sort().values)


def test_ssfs_agrees_with_labeled_permutation_importance() -> None:
    config = FeatureSelectionConfig()
    free = influences(_Linear(), batches(8), config)[:, 0]
    labeled = permutation_importances(_Linear(), batches(8, labeled=True), config)[:, 0]
    assert free.argsort(descending=True)[:3].tolist() == labeled.argsort(descending=True)[:3].tolist()
    assert torch.corrcoef(torch.stack([free, labeled]))[0, 1] > 0.98


def test_ssfs_recovers_planted_features_among_noise_ones_from_unlabeled_rows(tmp_path: Path) -> None:
    """Precision@k of 9 early signals and matches against 12 noise signals, on a log whose labels are all null."""
    world = WorldConfig(users=300, ads=100, campaigns=20, advertisers=10, noise_signals=12, early_signals=6, late_signals=1,
                        early_signal_effect=1.2, base_click_probability=0.1)  # fmt: skip
    logs = simulate(SimulationConfig(requests=3_000, unlabeled_share=0.2, world=world), tmp_path / "world")
    experiment = RankerExperiment(
        logs.labeled,
        ignored_features=("user", "ad", "campaign"),
        ranking=RankingConfig(
            architecture=RankerArchitecture(embedding_dim=4, interaction="none", trunk=(8,), tower=())
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(epochs=4),
        stream=StreamConfig(batch_size=128),
    )
    reporter = FolderReporter(tmp_path / "train")
    train_here(experiment, reporter, say=lambda text: None)
    checkpoint = reporter.latest()
    assert checkpoint is not None
    bundle = experiment.save_bundle(checkpoint, tmp_path / "bundle")
    weights = {f"early_signal_{i}" for i in range(6)} | {"interest_match", "late_signal_0"}
    ranking = run(SelectFeatures(bundle, logs.unlabeled, keep=6, rows=8_192, out=tmp_path / "ranking.json"))
    dense = [name for name in ranking.influence if "signal" in name or name == "interest_match"]
    assert len(set(dense[:5]) & weights) >= 4, dense
    assert (tmp_path / "ranking.json").is_file()
    assert set(ranking.kept) | set(ranking.ignored) == {f.name for f in Log.open(logs.labeled).schema.features} - {
        "user",
        "ad",
        "campaign",
    }


def test_the_budget_counts_features_or_costs() -> None:
    influence = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    assert keep_most_influential(influence, budget=2) == ("a", "b")
    assert keep_most_influential(influence, budget=2, always=("d",)) == ("a", "d")
    costs = {"a": 8.0, "b": 1.0, "c": 1.0, "d": 1.0}
    assert keep_most_influential(influence, budget=3, costs=costs) == ("b", "c", "d")
    with pytest.raises(ValueError, match="more than the budget"):
        keep_most_influential(influence, budget=1, always=("a", "b"))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        influences(_Linear(), [], FeatureSelectionConfig())
