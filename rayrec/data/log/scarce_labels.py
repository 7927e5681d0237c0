"""A log with scarce labels, made of one with many: to see what a method is worth where labels are few.

    <folder>/labeled/    a share of the training rows with their labels; links to the other splits
    <folder>/unlabeled/  all other training rows, their labels taken away

Schema, vocabularies and statistics stay those of the whole log, which needed no labels.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.log import ROW_GROUP_ROWS, Log, LogError, LogWriter
from rayrec.files import whole_folder


def keep_labels(log: Log, share: float, folder: Path, *, seed: int = 0) -> tuple[int, int]:
    """Write the two logs; returns the numbers of training rows in each.

    Each row is drawn by its place in the log and the seed alone: of two shares, the rows of the smaller one are among those of
    the larger. Streams through the log, one row group in memory. Raises LogError when ``folder`` is there already or the share
    leaves one of the logs empty; LogError when it lies outside (0, 1).
    """
    if not 0 < share < 1:
        raise LogError(f"the share of labels must lie between 0 and 1, not {share}")
    if folder.exists():
        raise LogError(f"{folder}: exists already; choose another name")
    generator = np.random.default_rng(seed)
    labels = {task.column for task in log.schema.tasks}
    with whole_folder(folder) as partial:
        with LogWriter(partial / "labeled", log.schema) as kept, LogWriter(partial / "unlabeled", log.schema) as others:
            for file in log.files("train"):
                for batch in pq.ParquetFile(file).iter_batches(ROW_GROUP_ROWS):
                    table = pa.Table.from_batches([batch])
                    chosen = generator.random(table.num_rows) < share
                    kept.write("train", table.filter(pa.array(chosen)))
                    rest = table.filter(pa.array(~chosen))
                    for name in labels:
                        place = rest.schema.get_field_index(name)
                        rest = rest.set_column(place, name, pa.nulls(rest.num_rows, pa.float32()))
                    others.write("train", rest)
            counts = kept.rows["train"], others.rows["train"]
            if min(counts) == 0:
                raise LogError(
                    f"{log.path}: a share of {share:g} leaves {counts[0]:,} labeled and {counts[1]:,} other rows"
                )
            details = {"source": str(log.path), "label_share": share, "seed": seed}
            kept.finish(details)
            others.finish(details)
        for split in log.splits:
            if split != "train":
                (partial / "labeled" / split).symlink_to(os.path.relpath(log.path / split, folder / "labeled"))
    return counts
