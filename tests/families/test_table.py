"""The table of families: experiments of each in JSON, and records whose paths lead somewhere."""

import json
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Literal, get_type_hints

import pytest

from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.table import FAMILIES, Family, follow, read_experiment
from rayrec.runs.run_folder import RunRecord
from rayrec.runs.sweeping import SweepConfig, SweepRecord
from rayrec.typed_json import ConfigError, from_json, to_json, to_plain
from tune_spaces import find_space


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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_path_of_a_record_leads_somewhere_and_its_usual_space_is_for_it(family: Family) -> None:
    assert get_type_hints(family.experiment)["kind"] == Literal[family.name]  # type: ignore[name-defined]
    assert callable(family.load_bundle)
    assert family.evaluation_path is None or is_dataclass(follow(family.evaluation_path))
    assert family.service_path is None or callable(follow(f"{family.service_path}:build"))
    assert family.name in find_space(family.space).families


def test_importing_the_table_imports_no_family() -> None:
    code = "import sys, rayrec.families.table; print([m for m in sys.modules if m.startswith('rayrec.families.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['rayrec.families.table']"
