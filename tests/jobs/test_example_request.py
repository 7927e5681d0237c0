"""Requests made of rows of a log are requests that the service takes, and mean those rows."""

import json
import shlex
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.serve import application_of, limits_of, try_line
from rayrec.bundle import write_bundle
from rayrec.data.log import Log, LogWriter
from rayrec.data.log.encoding import LogEncoder
from rayrec.data.log.schema import (
    CategoricalFeature,
    DenseFeature,
    DenseStatistics,
    LogSchema,
    SequenceFeature,
    TaskLabel,
)
from rayrec.families.ranker.bundle import load_bundle, ranker_parts
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.table import family_of
from rayrec.typed_json import ConfigError, to_plain
from serve_apps.example_request import example_request
from serve_apps.ranker.application import RankerService, example
from serve_apps.ranker.request import RankRequests
from serve_apps.service.limits import ServiceLimits


def test_a_request_of_logged_rows_encodes_to_these_rows(tmp_path: Path) -> None:
    schema = LogSchema(
        name="shop",
        features=(
            DenseFeature("price", statistics=DenseStatistics(0.0, 1.0, 0.0)),
            CategoricalFeature("city", vocabulary=("b", "a"), allow_missing=False),
            SequenceFeature("seen", max_length=3, shares="city"),
        ),
        tasks=(TaskLabel("click"),),
    )
    rows = pa.table(
        {
            "price": pa.array([16777215.0, 0.1, None], pa.float32()),
            "city": pa.array([2, 0, 1], pa.int32()),  # 0: seen too seldom for the vocabulary
            "seen": pa.array([[1, 2], [], [2]], pa.list_(pa.int32())),
            "click": pa.array([1, 0, 0], pa.float32()),
        }
    )
    with LogWriter(tmp_path / "log", schema) as writer:
        writer.write("train", rows)
        writer.finish({})
    request = RankRequests(schema, 10).parse(json.dumps(example_request(Log.open(tmp_path / "log"))).encode())
    encoded = LogEncoder(schema).encode_values(request.columns)
    assert encoded.to_pydict() == rows.drop_columns(["click"]).to_pydict()


def test_what_all_rows_share_stands_in_the_context(tmp_path: Path) -> None:
    schema = LogSchema(
        name="shop",
        features=(CategoricalFeature("user", vocabulary=("u", "v")), CategoricalFeature("item", vocabulary=("i", "j"))),
        tasks=(TaskLabel("click"),),
    )
    with LogWriter(tmp_path / "log", schema) as writer:
        columns = {"user": pa.array([2, 2], pa.int32()), "item": pa.array([1, 2], pa.int32())}
        writer.write("test", pa.table({**columns, "click": pa.array([0, 1], pa.float32())}))
        writer.finish({})
    request = example_request(Log.open(tmp_path / "log"))
    assert request == {"context": {"user": "v"}, "candidates": [{"item": "i"}, {"item": "j"}]}


def test_the_line_to_try_names_only_features_that_the_served_model_reads(small_log: Path, tmp_path: Path) -> None:
    experiment = RankerExperiment(small_log, ignored_features=("price", "history"))
    task = experiment.task()
    folder = write_bundle(
        tmp_path / "bundle",
        ranker_parts(task.build(), task.model_config, task.schema),
        metrics={},
        run_config=to_plain(experiment),
    )
    line = try_line("http://127.0.0.1:8000", example(load_bundle(folder)))
    body = json.loads(shlex.split(line)[-1])
    assert {*body["context"], *body["candidates"][0]} == {"age", "user", "item"}
    RankRequests(task.schema, 10).parse(json.dumps(body).encode())


def test_the_options_of_jobs_serve_are_those_of_the_bundles_family(small_log: Path, tmp_path: Path) -> None:
    task = RankerExperiment(small_log).task()
    folder = write_bundle(
        tmp_path / "bundle",
        ranker_parts(task.build(), task.model_config, task.schema),
        metrics={},
        run_config={},
    )
    assert limits_of(["--model", str(folder)]) is RankerService
    assert limits_of([f"--model={folder}", "--port", "1"]) is RankerService
    assert limits_of(["--help"]) is ServiceLimits
    with pytest.raises(ConfigError, match="a language_model is not served"):
        application_of(family_of("language_model"))
