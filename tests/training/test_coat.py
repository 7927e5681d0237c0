"""UKDSL on Coat: trained on self-chosen ratings, judged on ratings of coats shown at random."""

import json
from pathlib import Path

import pytest

from studies.coat import Command, seed_metrics


@pytest.mark.slow
def test_on_coats_random_ratings_ukdsl_is_better_than_supervised_training(data_root: Path, tmp_path: Path) -> None:
    source = data_root / "coat"
    if not source.is_dir():
        pytest.skip(f"no Coat at {source}")
    metrics = seed_metrics(Command(tmp_path / "coat", source), 0)
    assert metrics["ukdsl"]["log_loss"] < metrics["supervised"]["log_loss"]
    assert metrics["ukdsl"]["ece"] < metrics["supervised"]["ece"]
    assert json.loads((tmp_path / "coat" / "seed-0.json").read_text()) == metrics
