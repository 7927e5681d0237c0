"""A log of selected rows, made of one whose labels are all known: what a model of impressions is worth where it serves.

    <folder>/labeled/    training and validation rows that were selected, with their labels; a link to the whole test split
    <folder>/unlabeled/  the training and validation rows that were not, their labels taken away

Rows meet in random pools; of each pool those with the highest logit of a score, with some noise, are selected: selection depends
on whatever features the score depends on. Columns that were made of labels are left out, a model's score among them.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.log import Log, LogError, LogWriter
from rayrec.files import whole_folder


@dataclass(frozen=True)
class SelectionConfig:
    """score: column of probabilities, an extra of the log. pool: rows that meet; shown: how many of them are selected.

    noise: standard deviation of the error of the logit by which they are, in logit units.
    """

    score: str
    pool: int = 20
    shown: int = 3
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.shown < self.pool:
            raise ValueError(
                f"of a pool of {self.pool} rows between 1 and {self.pool - 1} can be shown, not {self.shown}"
            )
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, not {self.noise}")


def simulate_selection(log: Log, config: SelectionConfig, folder: Path) -> tuple[int, int]:
    """Write the two logs; returns the numbers of selected and other training rows. Holds one split in memory.

    The rows that fill no pool are left out. Raises LogError when ``folder`` is there already, the log lacks the score, or a
    split has fewer rows than a pool.
    """
    if folder.exists():
        raise LogError(f"{folder}: exists already; choose another name")
    if config.score not in log.schema.extras:
        raise LogError(
            f"{log.path}: has no extra {config.score!r} to select by (extras: {', '.join(log.schema.extras)})"
        )
    generator = np.random.default_rng(config.seed)
    with whole_folder(folder) as partial:
        schema = log.schema.without_columns(frozenset(made.column for made in log.schema.made_of_labels))
        with LogWriter(partial / "labeled", schema) as selected, LogWriter(partial / "unlabeled", schema) as others:
            for split in ("train", "valid"):
                table = pq.read_table(list(log.files(split)))
                if len(table) < config.pool:
                    raise LogError(f"{log.path}: {len(table)} rows in split {split!r}, a pool has {config.pool}")
                pools = generator.permutation(len(table))[: len(table) // config.pool * config.pool]
                score = table.column(config.score).to_numpy()[pools].reshape(-1, config.pool).clip(1e-9, 1 - 1e-9)
                logit = np.log(score / (1 - score)) + config.noise * generator.standard_normal(score.shape)
                best = np.argpartition(-logit, config.shown, axis=1)[:, : config.shown]
                shown = np.zeros(score.shape, np.bool_)
                np.put_along_axis(shown, best, True, axis=1)
                selected.write(split, table.take(pools[shown.ravel()]))
                rest = table.take(pools[~shown.ravel()])
                for task in log.schema.tasks:
                    place = rest.schema.get_field_index(task.column)
                    rest = rest.set_column(place, task.column, pa.nulls(len(rest), pa.float32()))
                others.write(split, rest)
            counts = selected.rows["train"], others.rows["train"]
            details = {"source": str(log.path), "selected_by": config.score, "pool": config.pool, "shown": config.shown}
            selected.finish(details)
            others.finish(details)
        (partial / "labeled" / "test").symlink_to(os.path.relpath(log.path / "test", folder / "labeled"))
    return counts
