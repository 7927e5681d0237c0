"""KuaiRand: seven kinds of feedback on short videos (Gao et al., CIKM 2022), as logs with a header, commas or tabs.

Read are the published files (log_*.csv, like = is_like), or one that others made of them (any *.csv, like = label).
Split by time, 70 / 10 / 20. Nothing that is known only after the impression is a feature: the time played is carried along as an
extra. Hour and weekday are Beijing time, where the users are.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.importers.checking import RawSource
from rayrec.data.importers.deriving import day_of_week, hour_of_day
from rayrec.data.importers.public_dataset import PublicDataset
from rayrec.data.importers.reading import RawChunk, find_files, first_line, read_delimited
from rayrec.data.raw_columns import as_times
from rayrec.data.schema import CategoricalFeature, DenseFeature, LogSchema, TaskLabel
from rayrec.data.splitting import TimeSplit

_BEIJING = 8
_TASKS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "comment": "is_comment",
    "follow": "is_follow",
    "forward": "is_forward",
    "profile_enter": "is_profile_enter",
}
_OTHERS = ("user_id", "video_id", "time_ms", "duration_ms", "play_time_ms")


def _open_source(source: Path) -> RawSource:
    files = find_files(source, "*.csv", "*.csv.gz")
    logs = [file for file in files if file.name.startswith("log_")]
    return RawSource(
        "kuairand",
        lambda: chain.from_iterable(map(_log, logs or files)),
        columns=(*_OTHERS, *_TASKS.values()),
        columns_of=_columns_of,
    )


def _log(file: Path) -> Iterator[RawChunk]:
    delimiter = "\t" if "\t" in first_line(file) else ","
    for chunk in read_delimited(file, delimiter, quoting=False):
        names = chunk.table.column_names
        if "label" in names and "is_like" not in names:
            renamed = ["is_like" if name == "label" else name for name in names]
            chunk = replace(chunk, table=chunk.table.rename_columns(renamed))
        yield chunk


def _columns_of(raw: pa.Table) -> pa.Table:
    times = as_times(raw.column("time_ms"))
    columns = {name: raw.column(name) for name in _OTHERS}
    columns |= {task: raw.column(column) for task, column in _TASKS.items()}
    columns["hour"] = hour_of_day(times, _BEIJING)
    columns["weekday"] = day_of_week(times, _BEIJING)
    duration = raw.column("duration_ms")
    columns["duration_ms"] = pc.if_else(pc.equal(duration, "0"), None, duration)  # 0 = unknown
    return pa.table(columns)


KUAIRAND = PublicDataset(
    schema=LogSchema(
        name="kuairand",
        features=(
            CategoricalFeature("user_id", allow_missing=False),
            CategoricalFeature("video_id", allow_missing=False),
            CategoricalFeature("hour"),
            CategoricalFeature("weekday"),
            DenseFeature("duration_ms", transform="log1p"),
        ),
        tasks=tuple(TaskLabel(task) for task in _TASKS),
        timestamp="time_ms",
        extras=("play_time_ms",),
    ),
    folder="kuairand27k_like_hate",
    split=TimeSplit(),
    open_source=_open_source,
)
