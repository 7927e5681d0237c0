"""Simulated logs on disk: the same rows however they are made, consistent with each other, whole or not there."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from rayrec.data.log import Log, LogError
from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.schema import DenseFeature, SchemaError
from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.data.simulation import (
    STAGES,
    SimulatedLogs,
    SimulationConfig,
    WorldConfig,
    open_student_view,
    simulate,
    student_schema,
    teacher_only_features,
)
from rayrec.files import temporary_beside

WORLD = WorldConfig(users=1_000, ads=300, campaigns=60, advertisers=15)
SMALL = SimulationConfig(requests=3_000, unlabeled_share=1.0, user_buckets=256, world=WORLD)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> SimulatedLogs:
    return simulate(SMALL, tmp_path_factory.mktemp("simulation") / "ads")


def rows(log: Path | Log, split: str) -> pa.Table:
    log = log if isinstance(log, Log) else Log.open(log)
    return pq.read_table([str(file) for file in log.files(split)], partitioning=None)


def test_rows_do_not_depend_on_threads_or_file_sizes(logs: SimulatedLogs, tmp_path: Path) -> None:
    again = simulate(SMALL, tmp_path / "again", workers=1, rows_per_file=10_000)
    assert again.summary == logs.summary
    assert len(Log.open(again.unlabeled).files("train")) > len(Log.open(logs.unlabeled).files("train"))
    for name in ("labeled", "unlabeled", "candidates"):
        assert Log.open(again.folder / name).schema == Log.open(logs.folder / name).schema
        for split in Log.open(logs.folder / name).splits:
            assert rows(again.folder / name, split).equals(rows(logs.folder / name, split))


def test_another_seed_gives_other_rows(logs: SimulatedLogs, tmp_path: Path) -> None:
    other = simulate(replace(SMALL, seed=1), tmp_path / "other")
    assert not rows(other.labeled, "train").equals(rows(logs.labeled, "train"))


def test_labeled_and_unlabeled_rows_together_are_the_whole_pool(logs: SimulatedLogs) -> None:
    funnel = SMALL.funnel
    for split, (first, last) in SMALL.split_requests.items():
        labeled, unlabeled = rows(logs.labeled, split), rows(logs.unlabeled, split)
        assert labeled.num_rows == (last - first) * funnel.slots
        assert unlabeled.num_rows == (last - first) * (funnel.pool - funnel.slots)
        assert set(labeled["stage"].unique().to_pylist()) == {"impression"}
        assert set(unlabeled["stage"].unique().to_pylist()) == set(STAGES) - {"impression"}
        both = pa.concat_tables([labeled.select(["request", "ad"]), unlabeled.select(["request", "ad"])])
        assert set(both["request"].unique().to_pylist()) == set(range(first, last))
        known = both.filter(pc.greater(both["ad"], 0))  # 0 = not in the vocabulary
        assert known.group_by(["request", "ad"]).aggregate([]).num_rows == known.num_rows


def test_crossed_features_are_functions_of_the_others_and_change_no_other_column(
    logs: SimulatedLogs, tmp_path: Path
) -> None:
    crossed = simulate(replace(SMALL, crossed_features=True), tmp_path / "crossed")
    found, before = rows(crossed.candidates, "test"), rows(logs.candidates, "test")
    assert found.drop_columns(["segment_category", "signal_product"]).equals(before)
    seen = {feature.name for feature in student_schema(Log.open(crossed.labeled).schema).features}
    assert {"segment_category", "signal_product"} <= seen
    pairs = {names: found.group_by(list(names)).aggregate([]).num_rows for names in (
        ("segment", "category"), ("segment_category",), ("segment", "category", "segment_category"))}  # fmt: skip
    assert len(set(pairs.values())) == 1
    expected = found["early_signal_0"].to_numpy() * (np.log1p(found["early_signal_1"].to_numpy()) - 2)
    np.testing.assert_allclose(found["signal_product"].to_numpy(), expected, rtol=1e-3, atol=1e-5)


def test_an_unlabeled_share_keeps_that_share_and_changes_nothing_else(logs: SimulatedLogs, tmp_path: Path) -> None:
    thinned = simulate(replace(SMALL, unlabeled_share=0.25), tmp_path / "thinned")
    assert rows(thinned.labeled, "test").equals(rows(logs.labeled, "test"))
    whole = logs.summary.rows["unlabeled"]["train"]
    assert thinned.summary.rows["unlabeled"]["train"] == pytest.approx(0.25 * whole, rel=0.02)


def test_splits_follow_each_other_in_time(logs: SimulatedLogs) -> None:
    for log in (logs.labeled, logs.unlabeled):
        train, valid, test = (rows(log, split)["timestamp"].to_numpy() for split in ("train", "valid", "test"))
        assert train.max() <= valid.min() <= valid.max() <= test.min()


def test_labels_are_null_on_unlabeled_rows_and_conversions_where_there_is_no_click(logs: SimulatedLogs) -> None:
    unlabeled, labeled = rows(logs.unlabeled, "train"), rows(logs.labeled, "train")
    assert unlabeled["click"].null_count == unlabeled["conversion"].null_count == unlabeled.num_rows
    assert labeled["click"].null_count == 0
    assert set(labeled["click"].unique().to_pylist()) == {0.0, 1.0}
    assert pc.all(pc.equal(pc.is_null(labeled["conversion"]), pc.equal(labeled["click"], 0))).as_py()


def test_candidates_are_all_of_the_test_period_request_by_request_with_the_outcomes_of_the_shown(
    logs: SimulatedLogs,
) -> None:
    candidates, labeled = rows(logs.candidates, "test"), rows(logs.labeled, "test")
    first, last = SMALL.split_requests["test"]
    assert candidates["request"].to_pylist() == np.repeat(np.arange(first, last), SMALL.funnel.pool).tolist()
    shown = candidates.filter(pc.equal(candidates["stage"], "impression"))
    assert shown.equals(labeled)
    assert Log.open(logs.candidates).splits == ("test",)
    assert candidates["click"].null_count == 0


def test_the_summary_counts_what_the_files_hold(logs: SimulatedLogs) -> None:
    summary = logs.summary
    for name in ("labeled", "unlabeled", "candidates"):
        log = Log.open(logs.folder / name)
        assert summary.rows[name] == {split: log.rows(split) for split in log.splits}
    assert summary.candidates == SMALL.requests * SMALL.funnel.pool
    shown = pa.concat_tables([rows(logs.labeled, split) for split in ("train", "valid", "test")])
    assert summary.impression_click_rate == pytest.approx(pc.mean(shown["click"]).as_py())
    assert summary.true_impression_click_rate == pytest.approx(pc.mean(shown["true_click_probability"]).as_py())
    assert summary.conversion_rate == pytest.approx(pc.mean(shown["conversion"]).as_py())
    assert SimulatedLogs.open(logs.folder) == logs


def test_the_schema_is_fitted_on_the_training_period(logs: SimulatedLogs) -> None:
    schema = Log.open(logs.unlabeled).schema
    pool = pa.concat_tables([rows(log, "train") for log in (logs.labeled, logs.unlabeled)])
    counts = np.bincount(pool["campaign"].to_numpy())
    assert (np.diff(counts[1:]) <= 0).all()  # every training row was seen: ids by falling frequency
    for feature in schema.dense:
        values = pool[feature.name].to_numpy().astype(np.float64)
        values = np.log1p(values) if feature.transform == "log1p" else values
        assert feature.statistics is not None
        assert feature.statistics.mean == pytest.approx(np.nanmean(values), abs=1e-6)
        assert feature.statistics.std == pytest.approx(np.nanstd(values), rel=1e-5)
        assert feature.statistics.missing_share == pytest.approx(np.isnan(values).mean())
    assert Log.open(logs.labeled).schema == schema == Log.open(logs.candidates).schema


def test_serving_the_raw_names_gives_the_ids_of_the_log(logs: SimulatedLogs) -> None:
    schema = Log.open(logs.labeled).schema
    names: dict[str, list] = {f.name: [f.vocabulary[0], f.vocabulary[-1]] for f in schema.categorical if f.vocabulary}
    names["user"] = ["user-3", "user-7"]
    names["history"] = [names["category"], []]
    encoded = LogEncoder(schema).encode_values(names | {feature.name: [1.0, 2.0] for feature in schema.dense})
    assert encoded["ad"].to_pylist() == [1, schema.categorical[1].size - 1]
    users = rows(logs.unlabeled, "train")["user"]
    assert pc.all(pc.is_in(encoded["user"], value_set=users.combine_chunks())).as_py()
    assert (pc.min(users).as_py(), pc.max(users).as_py()) == (1, 256)


def test_a_student_view_has_the_same_rows_without_the_late_signals(logs: SimulatedLogs) -> None:
    full = Log.open(logs.labeled)
    hidden = teacher_only_features(full.schema)
    assert hidden == tuple(f"late_signal_{i}" for i in range(WORLD.late_signals))
    for view in (open_student_view(full), Log.open(logs.student / "labeled")):
        assert view.schema == student_schema(full.schema)
        assert not set(hidden) & {feature.name for feature in view.schema.features}
        assert rows(view, "test")["request"].equals(rows(full, "test")["request"])
    with pytest.raises(SchemaError, match="no feature named late_signal_"):
        student_schema(student_schema(full.schema))


def test_a_student_view_streams_like_any_log_also_after_the_folder_has_moved(tmp_path: Path) -> None:
    simulate(replace(SMALL, requests=300), tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    log = Log.open(tmp_path / "after" / "student" / "unlabeled")
    config = StreamConfig(batch_size=64)
    with LogStream(log, "train", config, extras=("true_click_probability", "request")) as stream:
        batch = stream.next_batch()
    assert batch.dense.shape == (64, 1 + WORLD.early_signals)
    assert batch.categorical.shape == (64, 9)
    assert batch.labels.isnan().all()
    assert (batch.extras["true_click_probability"] > 0).all()


def test_a_student_fitted_to_impressions_over_predicts_on_all_candidates_and_a_teacher_much_less(
    tmp_path: Path,
) -> None:
    only_signals = {"user_effect": 0.0, "ad_effect": 0.0, "affinity_effect": 0.0, "context_effect": 0.0, "drift": 0.0}
    world = replace(WORLD, base_click_probability=0.02, interaction_effect=0.0, **only_signals)
    logs = simulate(replace(SMALL, requests=24_000, unlabeled_share=0.0, world=world), tmp_path / "ads")
    labeled, candidates = rows(logs.labeled, "train"), rows(logs.candidates, "test")
    ratios = []
    full = Log.open(logs.labeled)
    for schema in (student_schema(full.schema), full.schema):
        model = LogisticRegression().fit(design(labeled, schema.dense), labeled["click"].to_numpy())
        predicted = model.predict_proba(design(candidates, schema.dense))[:, 1]
        ratios.append(predicted.mean() / candidates["true_click_probability"].to_numpy().mean())
    student, teacher = ratios
    assert 1.5 < student < 2.6
    assert abs(teacher - 1) < (student - 1) / 3


def design(table: pa.Table, features: tuple[DenseFeature, ...]) -> np.ndarray:
    """(n, D) standardized dense features."""
    columns = []
    for feature in features:
        values = table[feature.name].to_numpy().astype(np.float64)
        values = np.log1p(values) if feature.transform == "log1p" else values
        assert feature.statistics is not None
        columns.append(np.nan_to_num((values - feature.statistics.mean) / feature.statistics.std))
    return np.stack(columns, 1)


def test_a_simulation_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    def break_off(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(SMALL, tmp_path / "ads", progress=break_off)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_simulation_left_is_replaced(tmp_path: Path) -> None:
    left = temporary_beside(tmp_path / "ads")
    gone = left.with_name(left.name.replace(f".{os.getpid()}-", ".4999999-"))  # above the largest id that Linux gives
    (gone / "labeled").mkdir(parents=True)
    simulate(replace(SMALL, requests=100), tmp_path / "ads")
    assert [path.name for path in tmp_path.iterdir()] == ["ads"]
    assert sorted(path.name for path in (tmp_path / "ads").iterdir()) == [
        "candidates",
        "labeled",
        "simulation.json",
        "student",
        "unlabeled",
    ]


def test_only_an_earlier_simulation_is_overwritten_and_only_when_asked(tmp_path: Path) -> None:
    few = replace(SMALL, requests=100)
    simulate(few, tmp_path / "ads")
    with pytest.raises(LogError, match="ads: exists already; choose another name or allow overwriting"):
        simulate(few, tmp_path / "ads")
    replaced = simulate(replace(few, seed=9), tmp_path / "ads", overwrite=True)
    assert SimulatedLogs.open(tmp_path / "ads").summary == replaced.summary
    assert replaced.summary.config.seed == 9
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("words")
    with pytest.raises(LogError, match=r"precious: holds files and no simulation\.json"):
        simulate(few, tmp_path / "precious", overwrite=True)
    with pytest.raises(LogError, match=r"precious: no simulated logs \(no simulation.json\)"):
        SimulatedLogs.open(tmp_path / "precious")


@pytest.mark.slow
def test_peak_memory_stays_constant_while_the_logs_grow_fivefold(tmp_path: Path) -> None:
    assert peak_memory(tmp_path / "large", 200_000) < 1.15 * peak_memory(tmp_path / "small", 40_000)


def peak_memory(out: Path, requests: int) -> int:
    """Peak resident memory of a process that simulates, in the unit of ``getrusage``."""
    program = (
        "import resource, sys; from rayrec.data.simulation import SimulationConfig, simulate; "
        "simulate(SimulationConfig(requests=int(sys.argv[2])), sys.argv[1]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    return int(
        subprocess.run([sys.executable, "-c", program, out, str(requests)], check=True, capture_output=True).stdout
    )
