"""The loop on a small simulated world: what is shown gets better, a bad model is refused, what is done is not done twice."""

from dataclasses import replace
from pathlib import Path

import pytest

from rayrec.registry import runs_folder
from rayrec.runs.closing_the_loop import CloseTheLoop, LoopRecord, close_the_loop
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError, from_json
from studies.closed_loop import ClosedLoopConfig, ClosedLoopResult, run_seed

pytestmark = pytest.mark.slow  # a minute, four trainings
ROUND = "closed-loop-0-round-1"
SMALL = ClosedLoopConfig(random_blocks=1, round_blocks=(2, 3), judged_blocks=2)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> ClosedLoopResult:
    folder = tmp_path_factory.mktemp("closed_loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYREC_RUNS", str(folder / "runs"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        result = run_seed(SMALL, folder / "world", 0)
    RUNS.append(folder / "runs")
    return result


RUNS: list[Path] = []


def test_two_rounds_raise_the_true_value_of_what_is_shown(closed: ClosedLoopResult) -> None:
    values = closed.values
    assert values["first"] < values["round 2"]
    assert values["random"] < values["round 2"]
    assert any(closed.promoted)
    assert closed.in_force == str(1 + sum(closed.promoted))


def test_a_model_trained_on_shuffled_labels_is_refused(closed: ClosedLoopResult) -> None:
    assert not closed.bad_promoted
    assert closed.bad.startswith("REFUSE: log loss")
    assert closed.values["bad"] < closed.values["round 2"]


def test_a_finished_loop_tells_its_verdict_again_and_does_nothing(
    closed: ClosedLoopResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYREC_RUNS", str(RUNS[0]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = runs_folder() / f"{ROUND}-loop" / "loop.json"
    command: CloseTheLoop = from_json(LoopRecord, file.read_bytes(), str(file)).command
    again = close_the_loop(command)
    assert again.verdict.line == closed.verdicts[0]
    assert closed.verdicts[0] in capsys.readouterr().out
    assert Tracker().version_of(command.in_force)[1] == closed.in_force
    assert Tracker().get(again.mlflow_run).data.tags["verdict"] == closed.verdicts[0]
    with pytest.raises(ConfigError, match="begun with other options"):
        close_the_loop(replace(command, task="conversion"))
    with pytest.raises(ConfigError, match="must be models:/NAME@ALIAS"):
        close_the_loop(replace(command, name="other", in_force="folder"))
