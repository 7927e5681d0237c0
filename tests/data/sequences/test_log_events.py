"""Clicks of a ranking log become histories."""

from pathlib import Path

import pyarrow as pa
import pytest

from rayrec.data.log import Log, LogWriter
from rayrec.data.log.schema import CategoricalFeature, LogSchema, TaskLabel
from rayrec.data.sequences import InteractionsError
from rayrec.data.sequences.events import EventFilter
from rayrec.data.sequences.log_events import LogEvents, read_log_events


@pytest.fixture
def log(tmp_path: Path) -> Log:
    schema = LogSchema(
        "shop",
        (
            CategoricalFeature("user", encoding="hash", buckets=9),
            CategoricalFeature("item", vocabulary=("cup", "pen", "tin")),
            CategoricalFeature("kind", vocabulary=("kitchen", "desk")),
        ),
        (TaskLabel("click"),),
        timestamp="time",
    )
    rows = [  # user, item, kind, time, click
        ("train", 3, 1, 1, 20, 1.0), ("train", 3, 2, 2, 10, 1.0), ("train", 3, 3, 1, 15, 0.0),
        ("train", 5, 3, 1, 11, 1.0), ("train", 5, 0, 0, 12, 1.0), ("test", 3, 3, 1, 30, 1.0), ("test", 5, 1, 1, 31, None),
    ]  # fmt: skip
    with LogWriter(tmp_path / "log", schema) as writer:
        for split in ("train", "test"):
            user, item, kind, time, click = zip(*(row[1:] for row in rows if row[0] == split), strict=True)
            columns = {
                "user": pa.array(user, pa.int32()),
                "item": pa.array(item, pa.int32()),
                "kind": pa.array(kind, pa.int32()),
            }
            writer.write(
                split, pa.table({**columns, "click": pa.array(click, pa.float32()), "time": pa.array(time, pa.int64())})
            )
        writer.finish({})
    return Log.open(tmp_path / "log")


def test_positive_rows_of_all_splits_become_histories_in_time_order_with_the_vocabularys_names(log: Log) -> None:
    data = read_log_events(log, LogEvents("user", "item", "click", ("kind",)), EventFilter(1))
    names = data.items.names.to_pylist()
    histories = {
        user: [names[i - 1] for i in data.interactions.items[start:end]]
        for user, start, end in zip(
            data.users.to_pylist(), data.interactions.offsets[:-1], data.interactions.offsets[1:], strict=True
        )
    }
    assert histories == {"user-3": ["pen", "cup", "tin"], "user-5": ["tin"]}
    assert dict(zip(names, data.items.attributes.to_pylist(), strict=True)) == {"pen": [1], "cup": [2], "tin": [2]}


def test_what_the_log_lacks_is_named(log: Log) -> None:
    with pytest.raises(InteractionsError, match="called 'buyer'; there are user, item, kind"):
        read_log_events(log, LogEvents("buyer", "item", "click"), EventFilter(1))
    with pytest.raises(InteractionsError, match="no task is called 'buy'; there are click"):
        read_log_events(log, LogEvents("user", "item", "buy"), EventFilter(1))
