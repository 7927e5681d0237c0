"""Comparisons: seeds are paired, only what is new is trained, killed trials go on, and the tables say what the trials say."""

import csv
import io
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.compare import Compare, compare, plan_of
from rayrec.data.log import Log
from rayrec.data.log.scarce_labels import keep_labels
from rayrec.data.log.schema import read_schema, write_schema
from rayrec.data.log.streams import StreamConfig
from rayrec.errors import UserError
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods.balancing.pcgrad import Pcgrad
from rayrec.metrics.paired import paired_difference
from rayrec.models.ranker import RankerArchitecture
from rayrec.runs.arm_choice import comparison_of_candidates
from rayrec.runs.comparing import Judging, run_comparison
from rayrec.runs.comparison import (
    Comparison,
    ComparisonRecord,
    ComparisonState,
    TrialKey,
    TrialOptions,
    describe_left,
    open_comparison,
    run_trials,
    trial_folder,
)
from rayrec.runs.comparison_report import (
    OVERALL,
    comparison_sections,
    differences_table,
    means_table,
    outcomes,
    results_csv,
    told_apart,
)
from rayrec.runs.run_folder import RunRecord
from rayrec.runs.seeding import with_seed
from rayrec.training.checkpoint import Progress, read_progress
from rayrec.training.experiment import train_here
from rayrec.training.loop import LoopConfig
from rayrec.training.reporters import CheckpointWriter, FolderReporter
from rayrec.training.tracking import Tracker
from rayrec.typed_json import ConfigError, from_json, to_json


@pytest.fixture
def base(small_log: Path) -> RankerExperiment:
    return RankerExperiment(
        log=small_log,
        ranking=RankingConfig(RankerArchitecture(embedding_dim=4, trunk=(8,), tower=(4,), dropout=0.1)),
        loop=LoopConfig(epochs=1, patience=None),
        stream=StreamConfig(batch_size=1024, window_rows=4096),
    )


def state_of(values: Mapping[str, Mapping[int, tuple[float, float | None]]], base: RankerExperiment) -> ComparisonState:
    """A finished comparison of AUCs of click and buy by arm and seed; the first arm is the baseline."""
    done = {
        TrialKey(arm, seed): Progress(
            evaluations={"test": {"click": {"rows": 9.0, "auc": click}, "buy": {"rows": 9.0, "auc": buy}}}
        )
        for arm, seeds in values.items()
        for seed, (click, buy) in seeds.items()
    }
    comparison = Comparison(dict.fromkeys(values, base), next(iter(values)), (0, 1, 2))
    return ComparisonState(Path("runs/x"), ComparisonRecord(comparison, "run", "uri"), done, ())


def test_every_seed_of_an_experiment_is_the_trials(base: RankerExperiment) -> None:
    base = replace(base, ranking=replace(base.ranking, balancing=Pcgrad()))
    seeded = with_seed(base, 7)
    assert isinstance(seeded, RankerExperiment)
    assert (seeded.loop.seed, seeded.stream.seed) == (7, 7)
    assert seeded.ranking.balancing == Pcgrad(seed=7)
    assert with_seed(seeded, 0) == base


def test_tables_show_means_paired_differences_and_the_mean_over_tasks(base: RankerExperiment) -> None:
    state = state_of(
        {
            "plain": {0: (0.70, 0.60), 1: (0.72, 0.61), 2: (0.71, 0.62)},
            "better": {0: (0.71, 0.60), 1: (0.74, 0.60), 2: (0.72, 0.60)},
        },
        base,
    )
    found = {(o.arm, o.task): o for o in outcomes(state)}
    assert found["plain", "click"].estimate.mean == pytest.approx(0.71)
    assert found["plain", "click"].difference is None
    expected = paired_difference([0.71, 0.74, 0.72], [0.70, 0.72, 0.71])
    assert found["better", "click"].difference == expected
    assert found["better", OVERALL].estimate.mean == pytest.approx((0.71 + 0.74 + 0.72 + 3 * 0.60) / 6)
    table = means_table(outcomes(state), ["plain", "better"], "plain")
    assert table.columns == ("arm", "seeds", "click", "buy", OVERALL)
    assert table.rows[0][:3] == ("plain", "3", "0.71000 ± 0.00577")
    assert table.highlighted == 0
    (row,) = differences_table(outcomes(state), ["plain", "better"]).rows
    assert row[1] == f"+0.01333 [{expected.low:+.5f}, {expected.high:+.5f}]"
    lines = list(csv.DictReader(io.StringIO(results_csv(outcomes(state)))))
    assert len(lines) == 6
    assert float(lines[3]["difference"]) == expected.mean


def test_intervals_cover_judged_rows_where_trials_tell_their_values_by_group(base: RankerExperiment) -> None:
    rest = {"plain": (0.70, 0.71, 0.69, 0.70), "good": (0.73, 0.70, 0.72, 0.75)}
    done = {
        TrialKey(arm, seed): Progress(
            evaluations={"test": {"click": {"auc": value + seed / 1000}}},
            left_out={"test": {"click": {"auc": tuple(v + seed / 1000 for v in rest[arm])}}},
        )
        for arm, value in (("plain", 0.70), ("good", 0.72))
        for seed in range(3)
    }
    comparison = Comparison(dict.fromkeys(rest, base), "plain", (0, 1, 2))
    state = ComparisonState(Path("runs/x"), ComparisonRecord(comparison, "run", "uri"), done, ())
    plain, good = outcomes(state)
    assert plain.estimate.group_error == pytest.approx((3 / 4 * 0.0002) ** 0.5)
    assert good.difference is not None
    assert good.difference.group_error == pytest.approx((3 * np.var([0.03, -0.01, 0.03, 0.05])) ** 0.5)
    assert good.difference.low < 0 < good.difference.high  # the seeds alone agree to the last digit
    (row,) = means_table(outcomes(state), ["plain"], "plain").rows
    assert row[2] == "0.70100 ± 0.00058 (rows 0.01225)"
    old = replace(done[TrialKey("good", 1)], left_out={})
    state = replace(state, done={**done, TrialKey("good", 1): old})
    assert outcomes(state)[1].estimate.group_error is None  # a record from before there were groups


def test_stars_count_all_comparisons_of_their_table(base: RankerExperiment) -> None:
    """A difference of p = .019 has a star alone, and none among three."""
    plain = dict.fromkeys(range(3), (0.7, 0.6))
    gains = (0.010, 0.012, 0.016)  # t 7.2, p .019
    good = {seed: (0.7 + gain, 0.6) for seed, gain in enumerate(gains)}
    both = outcomes(state_of({"plain": plain, "good": good}, base))
    click = [o for o in both if o.task == "click"]
    assert click[-1].difference is not None
    assert click[-1].difference.p_value == pytest.approx(0.0187, abs=1e-3)
    assert told_apart(click) == {("good", "click")}
    assert told_apart(both) == frozenset()  # buy does not differ, the mean of tasks as much as click: 3 x .0187
    starred = differences_table(click, ["plain", "good"]).rows[0][1]
    assert starred.endswith("*")
    assert "*" not in "".join(differences_table(both, ["plain", "good"]).rows[0])
    lines = {(line["arm"], line["task"]): line for line in csv.DictReader(io.StringIO(results_csv(both)))}
    assert float(lines["good", "click"]["p_holm"]) == pytest.approx(3 * float(lines["good", "click"]["p_value"]))


def test_only_seeds_that_both_arms_have_are_paired_and_undefined_metrics_are_left_out(base: RankerExperiment) -> None:
    state = state_of({"plain": {0: (0.7, None), 2: (0.8, None)}, "other": {0: (0.9, 0.5), 1: (0.1, None)}}, base)
    found = {(o.arm, o.task): o for o in outcomes(state)}
    difference = found["other", "click"].difference
    assert difference is not None
    assert (difference.mean, difference.count) == (pytest.approx(0.2), 1)
    assert found["other", "click"].estimate.count == 2
    assert ("plain", "buy") not in found
    assert found["other", "buy"].difference is None
    figures = [name for section in comparison_sections(state, "test") for name in section.figures]
    assert figures == ["difference_test_auc"]


class _Killed(FolderReporter):
    def report(self, metrics: Mapping[str, float], write: CheckpointWriter) -> None:
        super().report(metrics, write)
        raise KeyboardInterrupt


def test_a_comparison_trains_what_is_left_goes_on_from_checkpoints_and_logs_its_report(
    base: RankerExperiment, runs: Path, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    base = replace(base, loop=replace(base.loop, epochs=2))
    (tmp_path / "base.json").write_text(to_json(base))
    plan = tmp_path / "plan.json"
    plan.write_text(
        '{"base": "base.json", "arms": {"plain": {}, "slow": {"settings": {"optimizer.learning_rate": 1e-6}}}}'
    )
    command = Compare("mine", plan, seeds=(0,), trials=TrialOptions(concurrent=2))
    compare(command)
    assert "2 trials: 0 done, 2 left (plain 0; slow 0)" in capsys.readouterr().out
    first = {path: path.stat().st_mtime_ns for path in runs.glob("mine/trials/*/*/result.json")}
    assert len(first) == 2

    killed = trial_folder(runs / "mine", TrialKey("slow", 1)) / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        train_here(with_seed(plan_of(command).comparison({}).arms["slow"], 1), _Killed(killed), say=lambda text: None)
    state = compare(replace(command, seeds=(0, 1)))
    assert "4 trials: 2 done, 2 left (plain 1; slow 1)" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == before for path, before in first.items())
    undisturbed = FolderReporter(tmp_path / "undisturbed")
    train_here(with_seed(plan_of(command).comparison({}).arms["slow"], 1), undisturbed, say=lambda text: None)
    latest = undisturbed.latest()
    assert latest is not None
    resumed = state.done[TrialKey("slow", 1)]
    assert resumed.evaluations == read_progress(latest).evaluations
    assert not killed.exists()

    run = Tracker().get(state.record.mlflow_run)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["slow/test/click/normalized_entropy/difference"] > 0
    page = (runs / "mine" / "report" / "report.html").read_text()
    assert "normalized entropy: difference to plain" in page
    children = Tracker().client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{state.record.mlflow_run}'"
    )
    assert {child.data.tags["mlflow.runName"] for child in children} == {
        "mine-plain-0", "mine-plain-1", "mine-slow-0", "mine-slow-1"
    }  # fmt: skip

    again = Compare("again", arms=(f"was={children[0].info.run_id}", f"base={tmp_path / 'base.json'}"), baseline="was")
    assert with_seed(plan_of(again).comparison({}).arms["base"], 5) == with_seed(base.absolute(), 5)
    with pytest.raises(ConfigError, match=r"plain seed 0 was trained with another experiment"):
        open_comparison(
            "mine", Comparison({"plain": plan_of(command).comparison({}).arms["slow"], "b": base}, "plain", (0,))
        )


def test_a_failing_trial_does_not_stop_the_others_and_is_tried_again(
    base: RankerExperiment, runs: Path, ray_session: None, tmp_path: Path
) -> None:
    gone = Path(shutil.copytree(base.log, tmp_path / "gone"))
    comparison = Comparison({"plain": base, "broken": replace(base, log=gone)}, "plain", (3,))
    state = open_comparison("partly", comparison)
    shutil.rmtree(gone)
    lines: list[str] = []
    state = run_trials(state, TrialOptions(concurrent=1), lines.append)
    assert list(state.done) == [TrialKey("plain", 3)]
    rests = state.done[TrialKey("plain", 3)].left_out["test"]["click"]
    assert set(rests) == {"log_loss", "normalized_entropy", "auc", "calibration_ratio"}
    assert all(len(set(values)) > 32 for values in rests.values())
    assert str(gone) in state.failed[TrialKey("broken", 3)]
    assert describe_left(state) == "2 trials: 1 done, 1 left (broken 3)"
    finished = [line for line in lines if not line.startswith("training ")]  # a slow trial's place comes before
    assert finished[0].startswith("plain seed 3: valid/mean_normalized_entropy")
    late = run_trials(state, TrialOptions(start_until=-1.0), lines.append)
    assert (late.left, late.failed) == ((TrialKey("broken", 3),), {})


def test_each_arm_takes_the_choice_that_is_best_on_validation_and_single_tasks_are_reported_as_one(
    base: RankerExperiment, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = replace(base, log=_without_condition(base.log, tmp_path / "log"))
    (tmp_path / "base.json").write_text(to_json(base))
    plan = tmp_path / "plan.json"
    plan.write_text(
        """{"base": "base.json", "seeds": [3], "choice_seeds": [5], "baseline": "single", "arms": {
            "tuned": {"choices": [{"optimizer.learning_rate": 1e-6}, {"optimizer.learning_rate": 0.01}]},
            "single": {"each_task": true}}}"""
    )
    command = Compare(
        "tuned-run", plan, trials=TrialOptions(in_process=True), settings=("ranking.architecture.tower=[8]",)
    )
    cut = compare(replace(command, trials=TrialOptions(in_process=True, start_until=-1.0)))
    assert len(cut.left) == 2  # of the choice: nothing is compared before it is made
    state = compare(command)
    assert isinstance(chosen := state.record.comparison.arms["tuned"], RankerExperiment)
    assert (chosen.optimizer.learning_rate, chosen.ranking.architecture.tower) == (0.01, (8,))
    assert set(state.done) == {TrialKey(arm, 3) for arm in ("tuned", "single.click", "single.buy")}
    singles = {task: state.done[TrialKey(f"single.{task}", 3)].evaluations["test"] for task in ("click", "buy")}
    assert [list(tasks) for tasks in singles.values()] == [["click"], ["buy"]]
    found = {(o.arm, o.split, o.task, o.metric): o.estimate.mean for o in outcomes(state)}
    means = [singles[task][task]["auc"] for task in ("click", "buy")]
    assert found["single", "test", OVERALL, "auc"] == pytest.approx(sum(means) / 2)
    printed = capsys.readouterr().out
    assert "learning_rate 0.01" in printed.split("chosen")[0].splitlines()[-1]
    assert "difference to single" in printed
    assert "single.click" not in printed.split("difference to single")[1]
    before = state.done
    assert compare(command).done == before


def test_each_single_task_model_takes_the_choice_that_is_best_for_its_own_task(
    base: RankerExperiment, runs: Path, tmp_path: Path
) -> None:
    base = replace(base, log=_without_condition(base.log, tmp_path / "log"))
    (tmp_path / "base.json").write_text(to_json(base))
    plan = tmp_path / "plan.json"
    plan.write_text(
        """{"base": "base.json", "seeds": [3], "choice_seeds": [5], "arms": {"sum": {}, "single": {"each_task": true,
            "choices": [{"optimizer.learning_rate": 1e-6}, {"optimizer.learning_rate": 0.01}]}}}"""
    )
    command = Compare("singles", plan, trials=TrialOptions(in_process=True))
    assert set(plan_of(command).open_arms) == {"single.click", "single.buy"}
    state = compare(command)
    assert set(state.done) == {TrialKey(arm, 3) for arm in ("sum", "single.click", "single.buy")}
    chosen = open_comparison("singles-choice", comparison_of_candidates(plan_of(command).open_arms, (5,)))
    for arm in ("single.click", "single.buy"):
        objectives = {
            rate: chosen.done[TrialKey(f"{arm}.{i}", 5)].best_objective for i, rate in enumerate((1e-6, 0.01))
        }
        taken = state.record.comparison.arms[arm]
        assert isinstance(taken, RankerExperiment)
        assert taken.tasks == (arm.removeprefix("single."),)
        assert taken.optimizer.learning_rate == min(objectives, key=lambda rate: objectives[rate] or 0.0)


def test_a_seed_in_a_path_draws_the_data_of_each_trial_anew(base: RankerExperiment, runs: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        keep_labels(Log.open(base.log), 0.5, tmp_path / str(seed), seed=seed)
    drawn = replace(base, log=tmp_path / "{seed}" / "labeled")
    comparison = Comparison({"plain": drawn, "slow": _slow(drawn)}, "plain", (3, 4))
    state = run_comparison("drawn", comparison, TrialOptions(in_process=True), Judging())
    rows = {seed: Log.open(tmp_path / str(seed) / "labeled").rows("train") for seed in (3, 4)}
    assert rows[3] != rows[4]
    for key in state.done:
        note = trial_folder(state.folder, key) / "trial.json"
        experiment = from_json(RunRecord, note.read_bytes(), str(note)).experiment
        assert isinstance(experiment, RankerExperiment)
        assert experiment.log == tmp_path / str(key.seed) / "labeled"
        assert state.done[key].rows == rows[key.seed] // 1024 * 1024
    with pytest.raises(ConfigError, match=r"arm plain: .*/5/labeled"):
        open_comparison("another", replace(comparison, seeds=(3, 5)))
    assert not (runs / "another").exists()


def _slow(experiment: RankerExperiment) -> RankerExperiment:
    return replace(experiment, optimizer=replace(experiment.optimizer, learning_rate=1e-6))


def _without_condition(log: Path, folder: Path) -> Path:
    """The log with labels of its second task whatever that of the first is."""
    shutil.copytree(log, folder)
    schema = read_schema(folder / "schema.json")
    write_schema(
        replace(schema, tasks=tuple(replace(t, observed_when=None) for t in schema.tasks)), folder / "schema.json"
    )
    return folder


def test_joined_arms_count_only_seeds_that_all_of_them_have(base: RankerExperiment) -> None:
    def of(task: str, auc: float) -> Progress:
        return Progress(evaluations={"test": {task: {"auc": auc}}})

    done = {
        TrialKey("all", 0): Progress(evaluations={"test": {"click": {"auc": 0.8}, "buy": {"auc": 0.6}}}),
        TrialKey("one.click", 0): of("click", 0.7), TrialKey("one.buy", 0): of("buy", 0.5),
        TrialKey("one.click", 1): of("click", 0.1),
    }  # fmt: skip
    joined = {"one": ("one.click", "one.buy")}
    comparison = Comparison(dict.fromkeys(("all", *joined["one"]), base), "one", (0, 1), joined)
    assert list(comparison.parts) == ["all", "one"]
    found = {
        (o.arm, o.task): o for o in outcomes(ComparisonState(Path("x"), ComparisonRecord(comparison, "", ""), done, ()))
    }
    assert found["one", "click"].estimate.mean == 0.7
    assert found["one", OVERALL].estimate.mean == pytest.approx(0.6)
    difference = found["all", OVERALL].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.1)


def test_a_trial_that_fails_in_this_process_does_not_stop_the_others(
    base: RankerExperiment, runs: Path, tmp_path: Path
) -> None:
    gone = Path(shutil.copytree(base.log, tmp_path / "gone"))
    state = open_comparison("here", Comparison({"broken": replace(base, log=gone), "plain": base}, "plain", (3,)))
    shutil.rmtree(gone)
    state = run_trials(state, TrialOptions(in_process=True), lambda text: None)
    assert list(state.done) == [TrialKey("plain", 3)]
    rests = state.done[TrialKey("plain", 3)].left_out["test"]["click"]
    assert set(rests) == {"log_loss", "normalized_entropy", "auc", "calibration_ratio"}
    assert all(len(set(values)) > 32 for values in rests.values())
    assert str(gone) in state.failed[TrialKey("broken", 3)]


@pytest.mark.parametrize("since", ["the beginning", "the end"])
def test_a_store_that_is_away_costs_a_comparison_no_trial_and_is_told_of_all_by_the_next_command(
    base: RankerExperiment, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], since: str
) -> None:
    def away(*arguments: object, **more: object) -> None:
        raise ConnectionError("Max retries exceeded")

    slow = replace(base, optimizer=replace(base.optimizer, learning_rate=1e-6))
    comparison, options = Comparison({"plain": base, "slow": slow}, "plain", (0,)), TrialOptions(in_process=True)
    open_comparison("away", comparison)
    with monkeypatch.context() as patch:
        for name in ("_start", "log_metrics", "finish") if since == "the beginning" else ("log_folder",):
            patch.setattr(Tracker, name, away)
        with pytest.raises(
            UserError, match=r"^2 trials are done and reported .*; run the same command again"
        ) as raised:
            run_comparison("away", comparison, options, Judging())
    assert "\n" not in str(raised.value)
    assert "difference to plain" in capsys.readouterr().out
    assert (runs / "away" / "report" / "results.csv").is_file()
    trained = {path: path.stat().st_mtime_ns for path in runs.glob("away/trials/*/*/result.json")}
    assert len(trained) == 2
    state = run_comparison("away", comparison, options, Judging())
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    tracker = Tracker()
    run = tracker.get(state.record.mlflow_run)
    assert run.info.status == "FINISHED"
    children = tracker.client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{state.record.mlflow_run}'"
    )
    assert {child.data.tags["mlflow.runName"] for child in children} == {"away-plain-0", "away-slow-0"}
    for child in children:
        arm = child.data.tags["mlflow.runName"].split("-")[1]
        wanted = state.done[TrialKey(arm, 0)].evaluations["test"]["click"]["auc"]
        assert child.data.metrics["final/test/click/auc"] == wanted
        assert child.info.status == "FINISHED"
    assert not list(runs.glob("away/trials/*/*/unsent_metrics.json"))


@pytest.mark.parametrize(
    ("message", "arms", "baseline", "seeds"),
    [
        ("at least two arms", ("a",), "a", (0,)),
        ("baseline 'c' is none of the arms: a, b", ("a", "b"), "c", (0,)),
        ("arm '../a'", ("../a", "b"), "b", (0,)),
        ("seeds are different numbers", ("a", "b"), "b", (1, 1)),
        ("seeds are different numbers", ("a", "b"), "b", ()),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(
    base: RankerExperiment, message: str, arms: tuple[str, ...], baseline: str, seeds: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match=message):
        Comparison(dict.fromkeys(arms, base), baseline, seeds)


def test_plans_that_are_wrong_name_file_arm_and_field(base: RankerExperiment, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    (tmp_path / "base.json").write_text(to_json(base))
    for text, message in (
        ('{"arms": {"a": {}, "b": {}}}', r"plan\.json: arm a has no source"),
        ('{"arms": {"a": {"source": "gone.json"}}}', r"gone\.json: no such file"),
        ('{"base": "base.json", "arms": {"a": {"setings": {}}}}', r"plan\.json: arms\.a\.setings"),
        ('{"base": "base.json", "arms": {"a": {"settings": {"loop.epcohs": 1}}}}', r"loop\.epcohs"),
        ('{"base": "base.json", "seeds": [], "arms": {"a": {}, "b": {}}}', "seeds are different numbers"),
        ('{"base": "base.json", "arms": {"a.click": {}, "a": {"each_task": true}}}', r"arm a trains .* as a\.click"),
        ('{"base": "base.json", "arms": {"a": {"each_task": true}, "a.click": {}}}', r"arm a trains .* as a\.click"),
    ):
        plan.write_text(text)
        with pytest.raises(ConfigError, match=message):
            plan_of(Compare("x", plan))
    plan.write_text('{"base": "base.json", "arms": {"a": {}, "b": {"each_task": true}}}')
    for name in ("a", "b", "b.click"):
        with pytest.raises(ConfigError, match=f"--arms {name}: there is an arm of this name"):
            plan_of(Compare("x", plan, arms=(f"{name}={tmp_path / 'base.json'}",)))
    with pytest.raises(ConfigError, match="NAME=SOURCE"):
        plan_of(Compare("x", arms=("base.json",)))
    with pytest.raises(ConfigError, match="PATH=VALUE"):
        plan_of(Compare("x", settings=("log",)))
