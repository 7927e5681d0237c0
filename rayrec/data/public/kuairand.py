"""KuaiRand: seven kinds of feedback on short videos (Gao et al., CIKM 2022), as logs with a header, commas or tabs.

Read are the published files (log_*.csv, like = is_like), or one that others made of them (any *.csv, like = label).
Split by time, 70 / 10 / 20. Nothing that is known only after the impression is a feature: the time played is carried along as an
extra. Hour and weekday are Beijing time, where the users are. ``user_<task>_rate`` and ``video_<task>_rate`` tell how often the
user's, or the video's, earlier impressions got that feedback; for them 200 bytes a row are held while the files are read.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayrec.data.importing.checking import RawSource
from rayrec.data.importing.deriving import day_of_week, hour_of_day
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import RawChunk, SourceError, find_files, first_line, read_delimited
from rayrec.data.log.raw_columns import as_identifiers, as_numbers, as_times
from rayrec.data.log.running_rates import running_rates
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, MadeOfLabels, TaskLabel
from rayrec.data.log.splitting import TimeSplit

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
_KEYS = {"user": "user_id", "video": "video_id"}
_RATES = tuple(f"{key}_{task}_rate" for key in _KEYS for task in _TASKS)
_OTHERS = ("user_id", "video_id", "time_ms", "duration_ms", "play_time_ms")


def _open_source(source: Path) -> RawSource:
    files = find_files(source, "*.csv", "*.csv.gz")
    logs = [file for file in files if file.name.startswith("log_")]
    rates: list[NDArray[np.float32]] = []  # found by the first reading, used by all

    def with_rates() -> Iterator[RawChunk]:
        if not rates:
            rates.append(_rates(chain.from_iterable(map(_log, logs or files))))
        first = 0
        for chunk in chain.from_iterable(map(_log, logs or files)):
            own = rates[0][first : first + chunk.table.num_rows]
            first += chunk.table.num_rows
            table = chunk.table
            for name, values in zip(_RATES, own.T, strict=True):
                table = table.append_column(name, pa.array(values))
            yield replace(chunk, table=table)

    return RawSource(
        "kuairand",
        with_rates,
        columns=(*_OTHERS, *_TASKS.values()),
        columns_of=_columns_of,
    )


def _rates(chunks: Iterator[RawChunk]) -> NDArray[np.float32]:
    """(all rows, rates); a label that is neither 0 nor 1 is taken as not observed (its row is quarantined later)."""
    times, keys, labels = [], [], []
    for chunk in chunks:
        needed = ("time_ms", *_KEYS.values(), *_TASKS.values())
        for column in needed:
            if column not in chunk.table.column_names:
                raise SourceError(f"{chunk.source}: column {column!r} is absent")
        times.append(as_times(chunk.table.column("time_ms")).values)
        keys.append([as_identifiers(chunk.table.column(name)).values for name in _KEYS.values()])
        found = np.stack([as_numbers(chunk.table.column(name)).values for name in _TASKS.values()], axis=1)
        labels.append(np.where(np.isin(found, (0, 1)), found, np.nan).astype(np.float32))
    if not times:
        return np.empty((0, len(_RATES)), np.float32)
    when, outcomes = np.concatenate(times), np.concatenate(labels)
    return np.concatenate(
        [running_rates(np.concatenate(key), when, outcomes) for key in zip(*keys, strict=True)], axis=1
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
    columns |= {name: raw.column(name) for name in _RATES}
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
            *(DenseFeature(name) for name in _RATES),
        ),
        tasks=tuple(TaskLabel(task) for task in _TASKS),
        timestamp="time_ms",
        extras=("play_time_ms",),
        made_of_labels=tuple(
            MadeOfLabels(f"{key}_{task}_rate", (task,), rate_of=column)
            for key, column in _KEYS.items()
            for task in _TASKS
        ),
    ),
    folder="kuairand27k_like_hate",
    split=TimeSplit(),
    open_source=_open_source,
    signal="few rows a value",
)
