"""Experiments as the version before wrote them, whole, in runs, bundles and MLflow: read, but for what is a run option since."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayrec.families.table import read_experiment
from rayrec.runs.run_folder import RunRecord
from rayrec.runs.sweeping import apply_parameters
from rayrec.typed_json import ConfigError, from_plain, to_plain

WRITTEN: dict[str, Any] = json.loads((Path(__file__).parent / "experiments_of_before.json").read_text())
SINCE = {"loop": ("threads", "progress_seconds"), "stream": ("reader", "read_ahead")}


@pytest.mark.parametrize("family", WRITTEN)
def test_all_but_run_options_is_read_as_it_was_written(family: str) -> None:
    written = WRITTEN[family]
    assert (written["loop"]["threads"], written["loop"]["progress_seconds"]) == (2, 0.5)
    found = read_experiment(json.dumps(written), "before")
    kept = {
        part: {name: one for name, one in value.items() if name not in SINCE[part]} if part in SINCE else value
        for part, value in written.items()
    }
    assert of_then(to_plain(found), kept) == kept  # what came since has its defaults
    record = {"experiment": written, "mlflow_run": "run", "tracking_uri": "uri", "data": None}
    assert from_plain(RunRecord, record).experiment == found


def of_then(found: Any, written: Any) -> Any:
    """Without the fields that were not written."""
    if isinstance(found, dict) and isinstance(written, dict):
        return {name: of_then(one, written[name]) for name, one in found.items() if name in written}
    return found


def test_a_run_option_asked_for_as_a_setting_is_refused_not_dropped() -> None:
    found = read_experiment(json.dumps(WRITTEN["ranker"]), "before")
    for part, names in SINCE.items():
        for name in names:
            with pytest.raises(ConfigError, match=rf"^'{part}\.{name}' is no field of an experiment$"):
                apply_parameters(found, {f"{part}.{name}": 1})
    changed = apply_parameters(found, {"loop.epochs": 9, "ranking.perturbation.loss": "scr"})
    assert to_plain(changed)["ranking"]["perturbation"]["loss"] == "scr"
