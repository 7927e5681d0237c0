"""Open Bandit Dataset, one campaign, both logging policies (Saito et al., NeurIPS 2021 data sets and benchmarks).

Columns for off-policy evaluation are extras: the propensity of the shown item, and whether the policy was the uniform one.
Split by time over both policies, 70 / 10 / 20. Hour and weekday are Japan time. Item categories are hashed anew in each
policy's item file; one file's are used for all rows. The affinities of the user with all items become the affinity with the shown
item and the sum over all.
"""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.importing.checking import RawSource
from rayrec.data.importing.deriving import day_of_week, hour_of_day
from rayrec.data.importing.public_dataset import PublicDataset
from rayrec.data.importing.reading import RawChunk, SourceError, find_files, read_delimited
from rayrec.data.log.raw_columns import as_numbers, as_times
from rayrec.data.log.schema import CategoricalFeature, DenseFeature, LogSchema, TaskLabel
from rayrec.data.log.splitting import TimeSplit

_JAPAN = 9
_POLICIES = ("random", "bts")
_USER = tuple(f"user_feature_{i}" for i in range(4))
_ITEM = tuple(f"item_feature_{i}" for i in range(4))
_AFFINITY = "user-item_affinity_"
_RAW = ("timestamp", "item_id", "position", "click", "propensity_score", *_USER)


def _open_source(source: Path) -> RawSource:
    files = find_files(source, "random_*.csv", "bts_*.csv")
    contexts = [file for file in files if file.name.endswith("_item_context.csv")]
    logs = [file for file in files if file not in contexts]
    campaigns = {file.stem.partition("_")[2] for file in logs}
    if len(campaigns) != 1 or not contexts:
        raise SourceError(
            f"{source}: expected random_<campaign>.csv and/or bts_<campaign>.csv of one campaign with its "
            f"..._item_context.csv, found campaigns {sorted(campaigns)} and {len(contexts)} item files"
        )
    items = _items(contexts[-1])
    return RawSource(
        "open-bandit",
        lambda: chain.from_iterable(_log(file) for file in logs),
        columns=_RAW,
        columns_of=lambda raw: _columns_of(raw, items),
    )


def _log(file: Path) -> "chain[RawChunk]":
    uniform = float(file.name.startswith("random"))
    return chain(
        RawChunk(
            chunk.table.append_column("uniform_policy", pa.array(np.full(chunk.table.num_rows, uniform))),
            chunk.source,
            chunk.row_numbers,
            chunk.split,
            chunk.rejected,
        )
        for chunk in read_delimited(file, ",")
    )


def _items(path: Path) -> pa.Table:
    """Features of item i in row i."""
    table = pa.concat_tables(chunk.table for chunk in read_delimited(path, ","))
    absent = [name for name in ("item_id", *_ITEM) if name not in table.column_names]
    if absent:
        raise SourceError(f"{path}: column {absent[0]!r} is absent")
    numbers = as_numbers(table.column("item_id")).values
    if not np.array_equal(np.sort(numbers), np.arange(len(numbers))):
        raise SourceError(f"{path}: column 'item_id' does not number the items from 0")
    return table.take(pa.array(np.argsort(numbers))).select(_ITEM).combine_chunks()


def _columns_of(raw: pa.Table, items: pa.Table) -> pa.Table:
    times = as_times(raw.column("timestamp"))
    columns = {name: raw.column(name) for name in (*_RAW, "uniform_policy")}
    columns["hour"] = hour_of_day(times, _JAPAN)
    columns["weekday"] = day_of_week(times, _JAPAN)
    item = as_numbers(raw.column("item_id")).values
    affinity_names = [f"{_AFFINITY}{i}" for i in range(len(items)) if f"{_AFFINITY}{i}" in raw.column_names]
    known = np.isfinite(item) & (item >= 0) & (item < len(items)) & (item == np.floor(item))
    rows = pa.array(np.where(known, item, 0).astype(np.int64), mask=~known)
    columns |= {name: items.column(name).take(rows) for name in _ITEM}
    columns["item_id"] = pc.if_else(pa.array(known), raw.column("item_id"), None)
    affinities = np.full((raw.num_rows, len(items)), np.nan)
    for name in affinity_names:
        affinities[:, int(name.removeprefix(_AFFINITY))] = as_numbers(raw.column(name)).values
    columns["item_affinity"] = affinities[np.arange(raw.num_rows), np.where(known, item, 0).astype(np.int64)]
    columns["affinity_sum"] = affinities.sum(axis=1)
    return pa.table(columns)


OPEN_BANDIT = PublicDataset(
    schema=LogSchema(
        name="open-bandit",
        features=(
            CategoricalFeature("item_id", allow_missing=False),
            CategoricalFeature("position", allow_missing=False),
            *(CategoricalFeature(name) for name in _USER),
            DenseFeature("item_feature_0"),
            *(CategoricalFeature(name) for name in _ITEM[1:]),
            CategoricalFeature("hour"),
            CategoricalFeature("weekday"),
            DenseFeature("item_affinity", transform="log1p"),
            DenseFeature("affinity_sum", transform="log1p"),
        ),
        tasks=(TaskLabel("click"),),
        timestamp="timestamp",
        extras=("propensity_score", "uniform_policy"),
    ),
    folder="open_bandit_men",
    split=TimeSplit(),
    open_source=_open_source,
    signal="few rows a value",
)
