"""A log with scarce labels, made of one with many: to see what a method is worth where labels are few.

    <folder>/labeled/    a share of the training and validation rows with their labels; all test rows
    <folder>/unlabeled/  all other training and validation rows, their labels taken away

Vocabularies and statistics stay those of the whole log, which needed no labels. What did need some (``made_of_labels`` of the
schema) would still tell of the labels that were taken: rates of earlier rows are made again of the labels that are left, with
their statistics, and all else is left out. Test rows keep all labels to be judged by, but rates know that share of them only.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayrec.data.log import ROW_GROUP_ROWS, Log, LogError, LogWriter
from rayrec.data.log.fitting import Observed, transformed
from rayrec.data.log.running_rates import running_rates
from rayrec.data.log.schema import DenseFeature, Feature
from rayrec.files import whole_folder

Kept = Mapping[str, NDArray[np.bool_]]  # by split: of which rows the labels are known; all of a split that is not there
Columns = Mapping[str, NDArray[np.float32]]


def keep_labels(
    log: Log, share: float, folder: Path, *, seed: int = 0, whole_validation: bool = False
) -> tuple[int, int]:
    """Write the two logs; returns the numbers of training rows in each.

    Each row is drawn by its place in the log and the seed alone: of two shares, the rows of the smaller one are among those of
    the larger. whole_validation: keep all validation rows. Streams through the log, one row group in memory, and 8 bytes a row
    for each label and rate to be made again. Raises LogError when ``folder`` is there already or the share leaves one of the
    logs empty; LogError when it lies outside (0, 1).
    """
    if not 0 < share < 1:
        raise LogError(f"the share of labels must lie between 0 and 1, not {share}")
    if seed < 0:
        raise LogError(f"seed must be at least 0, not {seed}")
    if folder.exists():
        raise LogError(f"{folder}: exists already; choose another name")
    generator = np.random.default_rng(seed)
    thinned = ("train",) if whole_validation or "valid" not in log.splits else ("train", "valid")
    kept = {split: generator.random(log.rows(split)) < share for split in thinned}
    for split, draw in kept.items():
        if draw.all() or not draw.any():
            raise LogError(
                f"{log.path}: a share of {share:g} leaves {draw.sum():,} labeled and {(~draw).sum():,} other rows in {split}"
            )
    judged = {split: generator.random(log.rows(split)) < share for split in log.splits if split == "test"}
    view, made = without_lost_labels(log, kept | judged)
    labels = [task.column for task in log.schema.tasks]
    with whole_folder(folder) as partial:
        with (
            LogWriter(partial / "labeled", view.schema) as few,
            LogWriter(partial / "unlabeled", view.schema) as others,
        ):
            for split in log.splits if log.schema.made_of_labels else thinned:
                first = 0
                for file in log.files(split):
                    for batch in pq.ParquetFile(file).iter_batches(ROW_GROUP_ROWS):
                        table = pa.Table.from_batches([batch])
                        rows = slice(first, first := first + table.num_rows)
                        for name, values in made.get(split, {}).items():
                            table = _with_column(table, name, pa.array(values[rows]))
                        chosen = kept[split][rows] if split in kept else np.ones(table.num_rows, np.bool_)
                        few.write(split, table.filter(pa.array(chosen)))
                        rest = table.filter(pa.array(~chosen))
                        for name in labels:
                            rest = _with_column(rest, name, pa.nulls(rest.num_rows, pa.float32()))
                        others.write(split, rest)
            counts = few.rows["train"], others.rows["train"]
            details = {"source": str(log.path), "label_share": share, "seed": seed}
            few.finish(details)
            others.finish(details)
        for split in log.splits:
            if not (partial / "labeled" / split).exists():
                (partial / "labeled" / split).symlink_to(os.path.relpath(log.path / split, folder / "labeled"))
    return counts


def without_lost_labels(log: Log, kept: Kept) -> tuple[Log, Mapping[str, Columns]]:
    """The log with the schema of what can be made of the labels of the rows ``kept``, and by split the values of its
    columns that were made again, (rows,) each.

    A row whose value is unknown (id 0) has no earlier rows of its value: its rate is that of all rows.
    """
    again = [
        made for made in log.schema.made_of_labels if made.rate_of is not None and log.schema.timestamp is not None
    ]
    names = {made.column for made in again}
    lost = frozenset(made.column for made in log.schema.made_of_labels if made.column not in names)
    schema = log.schema.without_columns(lost)
    if not again:
        return Log(log.path, schema), {}
    assert log.schema.timestamp is not None
    columns = {task.name: task.column for task in log.schema.tasks}
    needed = [log.schema.timestamp, *{made.rate_of for made in again}, *{columns[made.tasks[0]] for made in again}]
    tables = {
        split: pa.concat_tables([pq.read_table(f, columns=needed) for f in log.files(split)]) for split in log.splits
    }
    table = pa.concat_tables(tables.values())
    has_label = np.concatenate([kept.get(split, np.ones(len(rows), np.bool_)) for split, rows in tables.items()])
    times = table.column(log.schema.timestamp).to_numpy()
    bounds = np.cumsum([len(rows) for rows in tables.values()])[:-1]
    found: dict[str, dict[str, NDArray[np.float32]]] = {split: {} for split in tables}
    for key in {made.rate_of for made in again}:
        ids = table.column(key).to_numpy().astype(np.int64)
        keys = np.where(ids > 0, ids, -1 - np.arange(len(ids)))
        of_key = [made for made in again if made.rate_of == key]
        labels = np.stack([table.column(columns[made.tasks[0]]).to_numpy() for made in of_key], axis=1)
        rates = running_rates(keys, times, np.where(has_label[:, None], labels, np.float32(np.nan)))
        for made, values in zip(of_key, rates.T, strict=True):
            for split, part in zip(tables, np.split(values, bounds), strict=True):
                found[split][made.column] = part
    features = tuple(_fitted(f, found["train"][f.name]) if f.name in names else f for f in schema.features)
    return Log(log.path, schema.with_features(features)), found


def _fitted(feature: Feature, values: NDArray[np.float32]) -> Feature:
    """With statistics of the new values of the training rows."""
    assert isinstance(feature, DenseFeature)
    observed = Observed()
    observed.update(transformed(values.astype(np.float64), feature.transform))
    return replace(feature, statistics=observed.statistics())


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)
