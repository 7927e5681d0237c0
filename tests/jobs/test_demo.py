"""``make demo DATASET=...``: what it tells its user, and that each data set that it allows has what it needs."""

import json
from pathlib import Path
from typing import get_args

import pytest

from jobs.demo import Demo, run
from jobs.presets import experiment_for
from rayrec.data.public.logs import PublicName


@pytest.mark.parametrize("dataset", get_args(PublicName))
def test_each_data_set_that_the_demo_allows_has_an_experiment(dataset: PublicName, tmp_path: Path) -> None:
    experiment = experiment_for(dataset, tmp_path / "log")
    assert experiment.log == tmp_path / "log"
    assert experiment.unlabeled is None


@pytest.mark.slow
def test_the_demo_of_a_data_set_ends_with_a_report_and_says_nothing_that_is_not_its_own(
    ray_session: None, runs: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYREC_DATA", str(data_root))
    page = run(Demo("criteo", trials=2))
    said = capfd.readouterr()
    assert page.is_file()
    for noise in ("WARNING", "INFO", "(raylet)", "Traceback", "Reporting training result", "╭"):
        assert noise not in said.out + said.err, noise
    steps = json.loads((runs / "demo-criteo-1" / "finished.json").read_text())["steps"]
    assert len(steps) == 7
    assert "POST v1/rank: " in said.out
    assert said.out.count(" took ") == 7
