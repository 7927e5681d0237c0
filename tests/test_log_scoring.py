"""Scoring a log with a bundle: the right numbers beside every row, resumable, by Ray Data and in process alike."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jobs.score_log import ScoreLog, run
from rayrec.bundle import write_bundle
from rayrec.data.log import Log, LogError
from rayrec.data.log.collate import collate
from rayrec.data.log.schema import SchemaError, write_schema
from rayrec.families.ranker.bundle import load_bundle, ranker_parts
from rayrec.families.ranker.log_scoring import ScoringConfig, _FileScorer, score_log
from rayrec.families.ranker.scoring import CalibrationConfig
from rayrec.families.ranker.task import RankingConfig, RankingTask
from rayrec.models.ranker import RankerArchitecture
from rayrec.typed_json import ConfigError
from tests.conftest import with_quantiles


@pytest.fixture(scope="module")
def bundle(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    schema = Log.open(small_log).schema
    task = RankingTask(schema, RankingConfig(architecture=RankerArchitecture(embedding_dim=4, trunk=(8,), tower=(4,))))
    folder = tmp_path_factory.mktemp("scoring") / "bundle"
    return write_bundle(folder, ranker_parts(task.build(), task.model_config, schema), metrics={}, run_config={})


def test_every_row_keeps_its_columns_and_gets_the_models_probability(small_log, bundle, tmp_path) -> None:
    scored = score_log(ScoringConfig(bundle, small_log, tmp_path / "scored", columns={"buy": "big_buy"}), workers=0)
    source = Log.open(small_log)
    assert scored.schema.extras == ("teacher_click", "big_buy")
    assert {split: scored.rows(split) for split in scored.splits} == {s: source.rows(s) for s in source.splits}
    model = load_bundle(bundle).model
    for before, after in zip(source.files("train"), scored.files("train"), strict=True):
        old, new = pq.read_table(before), pq.read_table(after)
        assert new.select(old.column_names).equals(old)
        expected = model(collate(old, source.schema)).sigmoid().detach()
        for column, values in zip(scored.schema.extras, expected.T, strict=True):
            torch.testing.assert_close(torch.tensor(new.column(column).to_numpy()), values, rtol=1e-5, atol=1e-6)


def test_a_killed_job_goes_on_with_the_missing_files_and_ray_gives_the_same_log(
    small_log, bundle, tmp_path, ray_session, monkeypatch
) -> None:
    config = ScoringConfig(bundle, small_log, tmp_path / "scored")
    scored_files: list[str] = []
    score = _FileScorer.score

    def killed_at_the_third(self: _FileScorer, name: str) -> str:
        if len(scored_files) == 2:
            raise KeyboardInterrupt
        scored_files.append(name)
        return score(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(_FileScorer, "score", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            score_log(config, workers=0)
    assert not config.out.exists()
    half_done = tmp_path / "scored.partial" / "train" / "part-00000.parquet"
    written = half_done.stat().st_mtime_ns
    with pytest.raises(LogError, match="another model, log or config"):
        score_log(replace(config, columns={"click": "other"}), workers=0)
    log = run(ScoreLog(config, workers=2))
    assert log.files("train")[0].stat().st_mtime_ns == written
    whole = score_log(replace(config, out=tmp_path / "whole"), workers=0)
    for split in log.splits:
        for resumed, undisturbed in zip(log.files(split), whole.files(split), strict=True):
            left, right = pq.read_table(resumed), pq.read_table(undisturbed)
            assert left.drop_columns(list(log.schema.extras)).equals(right.drop_columns(list(log.schema.extras)))
            for name in log.schema.extras:  # threads differ, so sums may round differently
                torch.testing.assert_close(*(torch.tensor(t.column(name).to_numpy()) for t in (left, right)))
    assert not (tmp_path / "scored.partial").exists()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibrated_scores_average_to_the_observed_rate_of_the_labeled_split(
    small_log, bundle, tmp_path, method
) -> None:
    config = ScoringConfig(bundle, small_log, tmp_path / "scored", calibration=CalibrationConfig(small_log, method))
    scored = score_log(config, workers=0)
    table = pq.read_table(list(scored.files("valid")))
    click = table.column("click").to_numpy()
    assert float(table.column("teacher_click").to_numpy().mean()) == pytest.approx(float(click.mean()), abs=2e-3)
    uncalibrated = load_bundle(bundle).model(collate(table, Log.open(small_log).schema)).sigmoid()[:, 0].detach().mean()
    assert abs(float(uncalibrated) - float(click.mean())) > 0.02


def test_what_does_not_fit_is_refused_by_name(small_log, bundle, tmp_path) -> None:
    log = Log.open(small_log)
    other = tmp_path / "other"
    other.mkdir()
    (other / "train").symlink_to(small_log / "train")
    for features, message in (
        (log.schema.features[1:], r"feature 'age', which this log lacks"),
        (
            (replace(log.schema.features[0], transform="log1p"), *log.schema.features[1:]),
            r"feature 'age' is not encoded",
        ),
    ):
        write_schema(log.schema.with_features(features), other / "schema.json")
        with pytest.raises(SchemaError, match=message):
            score_log(ScoringConfig(bundle, other, tmp_path / "out"), workers=0)
    with pytest.raises(ConfigError, match="clicks"):
        score_log(ScoringConfig(bundle, small_log, tmp_path / "out", columns={"clicks": "x"}), workers=0)
    with pytest.raises(ConfigError, match="age"):
        score_log(ScoringConfig(bundle, small_log, tmp_path / "out", columns={"click": "age"}), workers=0)
    unlabeled = tmp_path / "labels"
    (unlabeled / "valid").mkdir(parents=True)
    table = pq.read_table(small_log / "valid")
    pq.write_table(table.filter(table.column("click").to_numpy() == 0), unlabeled / "valid" / "part-00000.parquet")
    write_schema(log.schema, unlabeled / "schema.json")
    calibration = CalibrationConfig(unlabeled)
    with pytest.raises(ConfigError, match=r"task 'click'.*both labels"):
        score_log(ScoringConfig(bundle, small_log, tmp_path / "out", calibration=calibration), workers=0)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_model_of_a_log_without_quantiles_scores_the_log_imported_again_with_them(
    small_log, bundle, tmp_path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(small_log, again)
    write_schema(with_quantiles(Log.open(small_log).schema), again / "schema.json")
    scored = [
        score_log(ScoringConfig(bundle, log, tmp_path / log.name / "out"), workers=0) for log in (small_log, again)
    ]
    columns = [pq.read_table(log.path / "test").column("teacher_click") for log in scored]
    assert columns[0] == columns[1]
