"""Experiments of every kind are one typed union in JSON."""

import json
from pathlib import Path

import pytest

from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.table import read_experiment
from rayrec.runs.ray_train import RunRecord
from rayrec.runs.sweeping import SweepConfig, SweepRecord
from rayrec.typed_json import ConfigError, from_json, to_json, to_plain


def test_a_run_record_keeps_its_experiment() -> None:
    record = RunRecord(
        RankerExperiment(Path("/logs/a"), unlabeled=Path("/logs/b"), unlabeled_ratio=1.0), "run", "sqlite:///x"
    )
    assert from_json(RunRecord, to_json(record)) == record


def test_a_sweep_record_keeps_its_base() -> None:
    record = SweepRecord("ranker", SweepConfig(RankerExperiment(Path("/logs/a")), trials=3), "run", "sqlite:///x")
    assert from_json(SweepRecord, to_json(record)) == record


def test_an_experiment_from_before_there_were_kinds_is_a_ranker() -> None:
    plain = to_plain(RankerExperiment(Path("/logs/a")))
    del plain["kind"]
    assert read_experiment(json.dumps(plain), "old run") == RankerExperiment(Path("/logs/a"))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run x: .*kind 'regressor'|run x: .*'regressor'"):
        read_experiment('{"kind": "regressor"}', "run x")
