"""A real Ray Train run of two workers."""

from dataclasses import replace
from pathlib import Path

import pytest

from rayrec.data.log import Log
from rayrec.data.log.streams import StreamConfig
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.runs.fitting import fit
from rayrec.training.experiment import ScalingOptions
from rayrec.training.loop import LoopConfig
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError, from_json


def test_two_workers_train_one_model_that_is_tracked_bundled_and_reported(
    ray_session: None, runs: Path, small_log: Path
) -> None:
    experiment = RankerExperiment(
        log=small_log,
        ranking=RankingConfig(architecture=RankerArchitecture(embedding_dim=4, trunk=(16,), tower=(8,))),
        loop=LoopConfig(epochs=3),
        stream=StreamConfig(batch_size=256),
    )
    finished = fit("two", experiment, ScalingOptions(workers=2))
    test = finished.progress.evaluations["test"]["click"]
    assert test["rows"] == Log.open(small_log).rows("test")  # every row once, whatever the number of workers
    assert test["auc"] > 0.7
    assert finished.progress.rows == 3 * 2 * 256 * (12_000 // 2 // 256)
    bundle = load_bundle(finished.bundle)
    assert bundle.metadata.metrics["test"]["click"]["auc"] == test["auc"]
    page = finished.report.read_text()
    assert "data:image/png;base64" in page
    assert "click" in page
    tracker = Tracker()
    stored = tracker.get(finished.mlflow_run)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["final/test/click/auc"] == pytest.approx(test["auc"])
    assert from_json(RankerExperiment, tracker.config_text(finished.mlflow_run)) == experiment
    assert (
        fit("two", experiment, ScalingOptions(workers=2)).progress == finished.progress
    )  # finished: not trained again
    with pytest.raises(ConfigError, match="exists with another config"):
        fit("two", replace(experiment, loop=LoopConfig(epochs=4)))
