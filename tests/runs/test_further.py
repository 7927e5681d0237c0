"""Trained models of a comparison judged further: answered once, from the bundle, and reported beside the arms' own evaluation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jobs.compare import Compare, compare, plan_of
from rayrec.data.log.streams import StreamConfig
from rayrec.families.ranker.bundle import load_bundle
from rayrec.families.ranker.evaluation import EvaluateRanker
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.metrics.paired import paired_difference
from rayrec.models.ranker import RankerArchitecture
from rayrec.runs.comparing import Judging, TrialsFailed, run_comparison
from rayrec.runs.comparison import (
    Comparison,
    ComparisonRecord,
    ComparisonState,
    TrialKey,
    TrialOptions,
    open_comparison,
    trial_folder,
)
from rayrec.runs.comparison_report import costs_table, outcomes, reported
from rayrec.training.checkpoint import Progress
from rayrec.training.judging import Judged
from rayrec.training.loop import LoopConfig
from rayrec.typed_json import ConfigError, to_json
from tests.conftest import write_small_log

HERE = TrialOptions(in_process=True)


@pytest.fixture
def comparison(small_log: Path) -> Comparison:
    base = RankerExperiment(
        log=small_log,
        ranking=RankingConfig(RankerArchitecture(embedding_dim=4, trunk=(8,), tower=(4,))),
        loop=LoopConfig(epochs=1, patience=None),
        stream=StreamConfig(batch_size=1024, window_rows=4096),
    )
    slow = replace(base, optimizer=replace(base.optimizer, learning_rate=1e-6))
    return Comparison({"plain": base, "slow": slow}, "plain", (0,))


@dataclass(frozen=True)
class Heads:
    """The largest weight, by which no two trained models agree."""

    times: float = 1.0
    broken: bool = False
    in_vain: bool = False

    def check(self, experiment: RankerExperiment) -> None:
        if self.in_vain and experiment.optimizer.learning_rate < 1e-5:
            raise ConfigError("too slow to ask")

    def judge_each(self, bundle: Path) -> Mapping[str, Judged]:
        if self.broken:
            raise ConfigError("asked in vain")
        parameters = list(load_bundle(bundle).model.parameters())
        value = self.times * max(float(p.detach().abs().max()) for p in parameters)
        judged = Judged("weights", {"heads": {"largest": value}}, costs={"parameters": float(len(parameters))})
        return {"twice": judged, "": judged}


def test_what_else_is_asked_of_a_model_is_answered_from_its_bundle_and_never_trains_again(
    comparison: Comparison, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        TrialsFailed, match="plain seed 0: ConfigError: asked in vain"
    ):  # trained, and killed while judging
        run_comparison("mine", comparison, HERE, Judging(wanted=Heads(broken=True)))
    trained = {file: file.stat().st_mtime_ns for file in runs.glob("mine/trials/*/0/result.json")}
    assert len(trained) == 2
    state = run_comparison("mine", comparison, HERE, Judging(wanted=Heads()))
    again = run_comparison("mine", comparison, HERE, Judging(wanted=Heads(2.0)))
    assert {file: file.stat().st_mtime_ns for file in trained} == trained
    for key, ways in state.further.items():
        assert again.further[key]["twice"].metrics["heads"]["largest"] == 2 * (
            ways["twice"].metrics["heads"]["largest"] or 0
        )
    capsys.readouterr()
    assert run_comparison("mine", comparison, HERE, Judging(wanted=Heads(2.0))).further == again.further
    assert "2 trials: 2 done, 0 left" in capsys.readouterr().out
    assert "plain twice" in (runs / "mine" / "report" / "results.csv").read_text()
    assert not list(runs.glob("mine/trials/*/0/checkpoints"))


def test_a_plan_asks_the_familys_evaluation_of_each_trained_model(
    comparison: Comparison, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_small_log(tmp_path / "tomorrow", rows=2_000, seed=1)
    (tmp_path / "base.json").write_text(to_json(comparison.arms["plain"]))
    plan = tmp_path / "plan.json"
    arms = {"plain": {}, "slow": {"settings": {"optimizer.learning_rate": 1e-6}}}
    text = {"base": "base.json", "seeds": [0], "arms": arms, "further": {"log": str(other), "split": "valid"}}
    plan.write_text(json.dumps(text))
    state = compare(Compare("remote", plan, split="valid of tomorrow", trials=HERE))
    assert not state.left
    for key in state.done:
        bundle = trial_folder(state.folder, key) / "bundle"
        judged = state.further[key][""]
        assert judged.metrics == EvaluateRanker("valid", other).judge(bundle)
        assert judged.metrics != state.done[key].evaluations["valid"]
    assert "normalized_entropy, valid of tomorrow split" in capsys.readouterr().out
    plan.write_text(json.dumps({**text, "further": {"logs": "x"}}))
    with pytest.raises(ConfigError, match=r"plan\.json: further: .*logs"):
        plan_of(Compare("remote", plan))


@pytest.mark.parametrize(
    ("further", "told"),
    [
        ({"log": "nowhere"}, r"nowhere: not a log \(no schema\.json\)"),
        ({"log": "other"}, r"other: the model reads feature 'age', which this log lacks"),
        ({"by": "session"}, r"no column is called 'session'; there are"),
        ({"split": "dev"}, r"plan\.json: further: split: "),
    ],
)
def test_what_cannot_be_asked_is_one_line_before_anything_is_trained_candidates_included(
    comparison: Comparison, runs: Path, tmp_path: Path, further: dict[str, str], told: str
) -> None:
    other = write_small_log(tmp_path / "other", rows=2_000)
    schema = json.loads((other / "schema.json").read_text())
    schema["features"] = [feature for feature in schema["features"] if feature["name"] != "age"]
    (other / "schema.json").write_text(json.dumps(schema))
    if "log" in further:
        further = {"log": str(tmp_path / further["log"])}
    (tmp_path / "base.json").write_text(to_json(comparison.arms["plain"]))
    rates = [{"optimizer.learning_rate": rate} for rate in (1e-3, 1e-2)]
    arms = {"plain": {}, "tuned": {"choices": rates}}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"base": "base.json", "seeds": [0], "arms": arms, "further": further}))
    with pytest.raises(ConfigError, match=told):
        compare(Compare("vain", plan, trials=HERE))
    assert not list(runs.glob("vain*"))


def test_the_arm_whose_model_cannot_be_asked_is_named(comparison: Comparison, runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"^arm slow cannot be judged further: too slow to ask$"):
        run_comparison("vain", comparison, HERE, Judging(wanted=Heads(in_vain=True)))
    assert not (runs / "vain").exists()


def test_a_trial_whose_model_was_not_kept_cannot_be_judged_further(comparison: Comparison, runs: Path) -> None:
    run_comparison("bare", comparison, HERE, Judging())
    with pytest.raises(ConfigError, match="plain seed 0 is trained, but its model was not kept"):
        open_comparison("bare", comparison, Heads())
    assert not (trial_folder(runs / "bare", TrialKey("plain", 0)) / "bundle").exists()


def test_each_way_is_measured_against_the_baseline_judged_in_the_same_way(comparison: Comparison) -> None:
    """The way that the baseline lacks against what the baseline told of itself; what is not trained counts once."""

    def judged(value: float) -> Judged:
        return Judged("test", {"all": {"auc": value}}, costs={"ms a user": value})

    own = {"plain": (0.5, 0.6), "slow": (0.4, 0.55)}
    comparison = replace(comparison, seeds=(0, 1))
    done = {
        TrialKey(arm, seed): Progress(evaluations={"test": {"all": {"auc": value}}}, seconds=2.0, rows=10)
        for arm, values in own.items() for seed, value in enumerate(values)
    }  # fmt: skip
    further = {
        TrialKey("plain", 0): {"wide": judged(0.7)}, TrialKey("plain", 1): {"wide": judged(0.75)},
        TrialKey("slow", 0): {"wide": judged(0.8), "narrow": judged(0.3)},
        TrialKey("slow", 1): {"wide": judged(0.9), "narrow": judged(0.35)},
    }  # fmt: skip
    state = ComparisonState(
        Path("x"), ComparisonRecord(comparison, "", ""), done, (), further=further, untrained={"popular": judged(0.2)}
    )
    found = {outcome.arm: outcome for outcome in outcomes(state)}
    assert reported(outcomes(state)) == ["plain", "plain wide", "slow", "slow wide", "slow narrow", "popular"]
    assert found["plain wide"].difference is None
    assert found["slow wide"].difference == paired_difference([0.8, 0.9], [0.7, 0.75])
    assert found["slow narrow"].difference == paired_difference([0.3, 0.35], own["plain"])
    assert (found["popular"].estimate.count, found["popular"].estimate.standard_error) == (1, None)
    assert found["popular"].difference == paired_difference([0.2, 0.2], own["plain"])
    assert costs_table(state).rows == (
        ("plain wide", "2.0", "5", "0.725"), ("slow wide", "2.0", "5", "0.850"), ("slow narrow", "2.0", "5", "0.325"),
    )  # fmt: skip
