"""The loop in process, on the decisions of 150 users: what is learned from feedback goes live once, and nothing else does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayrec.data.log.streams import StreamConfig
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.models.ranker import RankerArchitecture
from rayrec.optim import OptimizerConfig
from rayrec.runs.closing_the_loop import CloseTheLoop, close_the_loop
from rayrec.runs.fitting import fit
from rayrec.traffic.decisions import DecisionLog
from rayrec.traffic.feedback import Feedback, FeedbackLog
from rayrec.traffic.joining import JoinConfig, join
from rayrec.traffic.shown import ShownItems
from rayrec.training.loop import LoopConfig
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError, to_json
from tests.traffic.serving import SCHEMA, STAGES, decision

SERVING = "models:/loop@serving"
REQUESTS, WINDOW_MS = 600, 10_000
NOW_MS = REQUESTS * 1000 + 2 * WINDOW_MS


@pytest.fixture
def command(runs: Path, tmp_path: Path) -> CloseTheLoop:
    """Two items were shown in each request; four of five users click the first, one of twenty the second. In force: a
    ranker that was trained with a learning rate of nothing."""
    feedback, decisions = tmp_path / "feedback", tmp_path / "decisions"
    generator, shown = np.random.default_rng(0), ShownItems(2 * WINDOW_MS)
    with DecisionLog(decisions, SCHEMA, STAGES) as log:
        log.append([decision(f"r{i}", time_ms=i * 1000, user=f"user-{i % 150}") for i in range(REQUESTS)])
    with FeedbackLog(feedback, SCHEMA.task_names, shown.time_of, window_ms=WINDOW_MS, now_ms=0) as accepted:
        for i in range(REQUESTS):
            shown.add(f"r{i}", i * 1000, ["item-0", "item-1"])
            for place in np.flatnonzero(generator.random(2) < (0.8, 0.05)):
                accepted.accept(Feedback(f"r{i}", f"item-{place}", {"click": 1.0}), i * 1000 + 500)
    window = JoinConfig(WINDOW_MS / 1000)
    first = join(decisions, feedback, tmp_path / "first", window, NOW_MS)
    trained = fit("first", learning(first.labeled.path, 1e-9), in_process=True)
    Tracker().register(trained.mlflow_run, "loop")
    file = tmp_path / "learning.json"
    file.write_text(to_json(learning(first.labeled.path, 3e-2)))
    return CloseTheLoop(
        decisions, feedback, SERVING, "round", experiment=file, task="click", join=window, in_process=True
    )


def learning(log: Path, rate: float, seed: int = 0) -> RankerExperiment:
    return RankerExperiment(
        log,
        tasks=("click",),
        ranking=RankingConfig(
            architecture=RankerArchitecture(embedding_dim=4, interaction="none", trunk=(8,), tower=())
        ),
        optimizer=OptimizerConfig(learning_rate=rate, embedding_learning_rate=rate),
        loop=LoopConfig(epochs=1 if rate < 1e-3 else 8, seed=seed),
        stream=StreamConfig(batch_size=64),
    )


def in_force() -> str:
    return Tracker().version_of(SERVING)[1]


def test_what_learned_from_feedback_goes_live_once_however_often_its_loop_is_run(
    command: CloseTheLoop, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_force() == "1"
    done = close_the_loop(command, NOW_MS)
    assert done.verdict.promote, done.verdict.line
    assert done.verdict.users == len({f"user-{i % 150}" for i in range(REQUESTS - REQUESTS // 5, REQUESTS)})
    # near the entropy of .8 and .05, below which no ranker gets
    p = np.array([0.8, 0.05])
    assert done.verdict.new < -np.mean(p * np.log(p) + (1 - p) * np.log1p(-p)) + 0.1
    assert done.verdict.old == pytest.approx(np.log(2), abs=0.1)
    assert (done.version, in_force()) == ("2", "2")
    capsys.readouterr()
    assert close_the_loop(command) == done  # told again, not done again
    assert capsys.readouterr().out.strip() == f"{done.verdict.line}; {SERVING} is version 2 (was 1)"
    (runs / "round-loop" / "result.json").unlink()  # killed behind the promotion: its own version is no stranger
    assert close_the_loop(command).version == "2"
    Tracker().point_alias("loop", "serving", "1")  # killed between registering and the alias
    (runs / "round-loop" / "result.json").unlink()
    assert close_the_loop(command).version == "2"
    assert in_force() == "2"
    assert Tracker().version_made_of(done.mlflow_run, "loop") == "2"


def test_nothing_goes_live_over_a_version_that_it_was_not_compared_with(command: CloseTheLoop, runs: Path) -> None:
    close_the_loop(command, NOW_MS)
    first = Tracker().client.get_model_version("loop", "1").run_id
    stranger = Tracker().register(first, "loop")
    (runs / "round-loop" / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"is version 3 by now, .* nothing is promoted"):
        close_the_loop(command)
    assert in_force() == stranger.version == "3"


def test_a_model_that_learned_nothing_is_refused(command: CloseTheLoop, tmp_path: Path) -> None:
    """Its first weights are those of another seed."""
    file = tmp_path / "idle.json"
    file.write_text(to_json(learning(tmp_path / "first" / "labeled", 1e-9, seed=1)))
    done = close_the_loop(replace(command, experiment=file, name="idle"), NOW_MS)
    assert not done.verdict.promote
    assert done.version is None
    assert in_force() == "1"
    assert Tracker().version_made_of(done.mlflow_run, "loop") is None
