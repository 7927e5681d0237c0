"""Decisions and feedback joined: labels, silence, windows, splits by time, logs that training reads."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrec.data.log import LogError
from rayrec.traffic.decisions import DecisionLog
from rayrec.traffic.feedback import Feedback, FeedbackLog
from rayrec.traffic.joining import JoinConfig, JoinedLogs, join
from rayrec.traffic.shown import ShownItems
from rayrec.typed_json import ConfigError
from tests.traffic.serving import SCHEMA, STAGES, decision

SECOND = 1_000


def served(folder: Path, requests: int = 10, **labels: Mapping[str, float]) -> None:
    """Requests r0, r1, ... a second apart; feedback by "r0_0" (request, item), half a second after it was shown."""
    with DecisionLog(folder / "decisions", SCHEMA, STAGES, roll_rows=12) as log:
        for i in range(requests):
            log.append([decision(f"r{i}", i * SECOND)])
    shown = ShownItems.read(folder / "decisions", 10**9, 0)
    with FeedbackLog(folder / "feedback", ("click", "buy"), shown.time_of, window_ms=10**9, now_ms=0) as events:
        for name, event in labels.items():
            request, _, item = name.partition("_")
            time_ms = int(request[1:]) * SECOND + SECOND // 2
            assert events.accept(Feedback(request, f"item-{item}", event), time_ms) == "accepted"


def joined(folder: Path, now_ms: int = 10**7, **options: object) -> JoinedLogs:
    config = JoinConfig(window_seconds=1, **options)  # type: ignore[arg-type]
    return join(folder / "decisions", folder / "feedback", folder / "joined", config, now_ms)


def labels_of(logs: JoinedLogs, column: str) -> list[float | None]:
    """Of impressions r0_0, r0_1, r1_0, ..."""
    tables = [pq.read_table(file) for split in ("train", "valid", "test") for file in logs.labeled.files(split)]
    return [value for table in tables for value in table.column(column).to_pylist()]


def test_feedback_labels_its_impression_and_silence_means_no(tmp_path: Path) -> None:
    served(tmp_path, 5, r0_1={"click": 1}, r2_0={"click": 1, "buy": 1}, r4_1={"click": 0})
    logs = joined(tmp_path, valid_share=0.2)
    assert labels_of(logs, "click") == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]
    assert labels_of(logs, "buy") == [None, 0, None, None, 1, None, None, None, None, None]  # where there was a click
    summary = logs.summary
    assert (summary.impressions, summary.candidates, summary.silent, summary.unmatched) == (10, 10, 0, 0)
    assert summary.positives == {"click": 2, "buy": 1}


def test_without_negatives_only_what_was_said_is_a_label(tmp_path: Path) -> None:
    served(tmp_path, 10, **{f"r{i}_0": {"click": i % 2} for i in range(10)})
    logs = joined(tmp_path, negatives=())
    assert labels_of(logs, "click") == [0, 1] * 5
    assert logs.summary.silent == 10
    assert labels_of(logs, "buy") == [None] * 10


def test_splits_are_by_time_and_the_test_is_the_newest(tmp_path: Path) -> None:
    served(tmp_path, 20)
    logs = joined(tmp_path, valid_share=0.1, test_share=0.25)
    times = {
        split: {t for file in log.files(split) for t in pq.read_table(file).column("timestamp").to_pylist()}
        for log in (logs.labeled,)
        for split in log.splits
    }
    assert times == {
        "train": {i * SECOND for i in range(13)},
        "valid": {13 * SECOND, 14 * SECOND},
        "test": {i * SECOND for i in range(15, 20)},
    }
    assert [logs.unlabeled.rows(split) for split in ("train", "valid", "test")] == [26, 4, 10]


def test_impressions_whose_window_is_open_wait_and_late_feedback_does_not_count(tmp_path: Path) -> None:
    served(tmp_path, 10, r9_0={"click": 1}, r3_0={"click": 1})
    logs = joined(tmp_path, now_ms=9 * SECOND)
    assert logs.summary.open == 2
    assert logs.summary.impressions == 18
    assert logs.summary.unmatched == 0  # that on r9 waits with it
    assert sum(value or 0 for value in labels_of(logs, "click")) == 1
    late = join(tmp_path / "decisions", tmp_path / "feedback", tmp_path / "late", JoinConfig(0.4), 10**7)
    assert late.summary.late == 2
    assert late.summary.positives == {"click": 0, "buy": 0}
    with pytest.raises(LogError, match="no decision whose window"):
        join(tmp_path / "decisions", tmp_path / "feedback", tmp_path / "none", JoinConfig(), 0)
    assert not (tmp_path / "none").exists()


def test_a_task_that_the_schema_lacks_is_told(tmp_path: Path) -> None:
    served(tmp_path, 3)
    with pytest.raises(ConfigError, match="no task like"):
        joined(tmp_path, negatives=("like",))
